"""What the hardened profile refuses, seen from inside a container; and that ordinary programs do not notice it."""

from __future__ import annotations

import json
from collections.abc import Callable

import docker
import pytest

from agent.seccomp import profile

#: x86-64 numbers and harmless arguments; -38 is "no such call", -1 "not permitted"
_PROBE = """
import ctypes, json, os, platform
calls = {
    "io_uring_setup": (425, 8, 0), "bpf": (321, 0, 0, 0), "keyctl": (250, 0, -3, 0), "add_key": (248, 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000), "clone into a namespace": (56, 0x10000011, 0, 0, 0, 0), "userfaultfd": (323, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "setns": (308, 0, 0),
    "open_by_handle_at": (304, 0, 0, 0), "clone3": (435, 0, 0), "getpid": (39,),
}
libc = ctypes.CDLL(None, use_errno=True)
print(json.dumps({name: -ctypes.get_errno() if libc.syscall(*args) < 0 else 0 for name, args in calls.items()}))
"""
_ORDINARY = """
import mmap, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading
thread = threading.Thread(target=sum, args=([1],)); thread.start(); thread.join()
assert subprocess.run(["sh", "-c", "id -u"], capture_output=True, text=True).stdout == "1000\\n"
with multiprocessing.get_context("fork").Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
one, other = socket.socketpair(); one.send(b"x"); assert other.recv(1) == b"x"
with tempfile.NamedTemporaryFile() as file: os.posix_fallocate(file.fileno(), 0, 4096); mmap.mmap(file.fileno(), 4096)
assert sqlite3.connect("/tmp/x.db").execute("select 1").fetchone() == (1,)
print("fine")
"""


def test_it_allows_by_name_and_refuses_the_rest() -> None:
    parsed = json.loads(profile())
    assert parsed["defaultAction"] == "SCMP_ACT_ERRNO"
    plain = {name for rule in parsed["syscalls"] if not rule.get("args") for name in rule["names"]}
    for name in "io_uring_setup bpf keyctl unshare setns userfaultfd perf_event_open mount kexec_load chroot".split():
        assert name not in plain


@pytest.fixture
def run_inside(engine: docker.DockerClient, kernel_image: str) -> Callable[[str], str]:
    def run(program: str) -> str:
        output: bytes = engine.containers.run(
            kernel_image,
            ["python3", "-c", program],
            remove=True,
            user="1000:1000",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true", f"seccomp={profile()}"],
            read_only=True,
            tmpfs={"/tmp": ""},
            network_mode="none",
        )
        return output.decode().strip()

    return run


def test_dangerous_calls_are_refused(run_inside: Callable[[str], str]) -> None:
    answers = json.loads(run_inside(_PROBE))
    if answers["getpid"] != 0:
        pytest.skip("the numbers are those of x86-64")
    assert answers.pop("getpid") == 0
    assert answers.pop("clone3") == -38
    assert set(answers.values()) == {-1}, answers


def test_ordinary_programs_do_not_notice(run_inside: Callable[[str], str]) -> None:
    assert run_inside(_ORDINARY) == "fine"
