"""What each profile allows inside a real session, and what neither does: not even to who has become root."""

from __future__ import annotations

import json
from collections.abc import Iterator

import docker
import moorage
import pytest

from agent.profiles import confinement
from tests import standard_image
from tests.product.conftest import Installation
from tests.standard_image import PACKAGE, SETUID

#: Each must fail. x86-64 numbers with arguments that would do something; 0 is success, else the error's number.
_PROBE = """
import ctypes, json, os, platform, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def call(name, *args):
    ctypes.set_errno(0)
    found[name] = ctypes.get_errno() if libc.syscall(*args) < 0 else 0
def attempt(name, do):
    try:
        do()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
params = ctypes.create_string_buffer(248)
text = lambda value: ctypes.c_char_p(value)
call("mount tmpfs", 165, text(b"none"), text(b"/tmp"), text(b"tmpfs"), 0, None)
call("bind mount", 165, text(b"/"), text(b"/tmp"), None, 4096, None)
call("new mount api", 430, text(b"tmpfs"), 0)
call("remount /proc", 165, None, text(b"/proc/sys"), None, 32, None)
call("umount", 166, text(b"/home/work"), 2)
call("pivot_root", 155, text(b"/"), text(b"/tmp"))
call("userns", 272, 0x10000000)
call("mntns", 272, 0x00020000)
call("clone userns", 56, 0x10000011, 0, 0, 0, 0)
call("clone3", 435, params, 88)
call("io_uring", 425, 8, params)
call("bpf", 321, 0, params, 48)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, text(b"user"), text(b"a"), text(b"b"), 1, -3)
call("perf_event_open", 298, params, 0, -1, -1, 0)
call("userfaultfd", 323, 0)
call("open_by_handle_at", 304, -100, params, 0)
call("init_module", 175, params, 8, text(b""))
call("kexec_load", 246, 0, 0, None, 0)
call("reboot", 169, 0xFEE1DEAD, 672274793, 0x01234567, 0)
call("swapon", 167, text(b"/tmp/x"), 0)
call("sethostname", 170, text(b"evil"), 4)
call("chroot", 161, text(b"/tmp"))
call("iopl", 172, 3)
call("syslog", 103, 3, params, 100)
call("set the clock", 227, 0, (ctypes.c_long * 2)(0, 0))
call("ptrace PID 1", 101, 16, 1, 0, 0)
call("quotactl", 179, 0x800002, None, 0, None)
attempt("memory of PID 1", lambda: open("/proc/1/mem", "r+b").close())
attempt("descriptors of PID 1", lambda: os.readlink("/proc/1/fd/0"))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("block device", lambda: os.mknod("/home/work/disk", 0o60666, os.makedev(8, 0)))
attempt("memory device", lambda: os.mknod("/home/work/mem", 0o20666, os.makedev(1, 1)))
attempt("core pattern", lambda: open("/proc/sys/kernel/core_pattern", "w"))
attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
attempt("kernel memory", lambda: open("/proc/kcore", "rb").read(1))
attempt("cgroup", lambda: open("/sys/fs/cgroup/memory/memory.limit_in_bytes", "w"))
attempt("uevent helper", lambda: open("/sys/kernel/uevent_helper", "w"))
attempt("the runtime", lambda: open("/moorage/rt/evil", "w"))
attempt("the engine", lambda: os.stat("/var/run/docker.sock"))
print(json.dumps({"uid": os.geteuid(), "machine": platform.machine(), "worked": [n for n, e in found.items() if e == 0],
    "tried": len(found)}))
"""
#: What debuggers do to programs of the same user.
_PTRACE = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if not child:
    signal.pause()
done = libc.ptrace(16, child, 0, 0), os.waitpid(child, 0)[0] == child
os.kill(child, signal.SIGKILL)
print(done == (0, True))
"""


@pytest.fixture(scope="module")
def image(engine: docker.DockerClient, kernel_image: str) -> str:
    try:
        return standard_image.ensure_image(engine, kernel_image)
    except standard_image.CannotBuild as why:
        pytest.skip(str(why))


@pytest.fixture
def registered(client: moorage.Client, image: str) -> Iterator[str]:
    client.images.register(image)
    yield image
    for session in client.sessions.list():
        session.destroy(wait=30)
    client.images.remove(image)


def worked(session: moorage.Session, *before: str) -> list[str]:
    session.files.write("probe.py", _PROBE)
    done = session.commands.run([*before, "python3", "/home/work/probe.py"])
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    if said["machine"] != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    assert said["tried"] >= 40
    assert said["uid"] == (0 if before else 1000)
    found: list[str] = said["worked"]
    return found


def test_hardened_nobody_becomes_root(client: moorage.Client, registered: str) -> None:
    with client.sessions.create(image=registered, cpu=0.5, mem="256m") as session:
        assert session.info.profile == "hardened"
        run = session.commands.run
        assert "euid" not in run([SETUID]).stdout
        assert run("sudo -n id").exit_code != 0
        assert run(f"apt-get install -y {PACKAGE}").exit_code != 0
        assert run("touch /usr/bin/x || touch /etc/x || touch /x").exit_code != 0
        assert session.run_code(_PTRACE).stdout == "True\n"  # of its own programs
        assert worked(session) == []


def test_standard_has_sudo_and_apt_and_nothing_beyond(
    installation: Installation, client: moorage.Client, engine: docker.DockerClient, registered: str
) -> None:
    done = installation.run("admin", "resource-group", "modify", "default", "--profile", "standard")
    assert (done.returncode, "standard" in done.stdout) == (0, True), done.stderr
    try:
        with client.sessions.create(image=registered, cpu=0.5, mem="256m") as session:
            assert "standard, egress open" in installation.run("info", session.name).stdout
            assert "sudo" in installation.run("explain", session.name).stdout
            run = session.commands.run
            assert run("id -u").stdout == "1000\n"
            assert "euid=0(root)" in run([SETUID]).stdout
            assert run("sudo -n id -u").stdout == "0\n"
            assert run("sudo -n -u nobody id -u").stdout == "65534\n"
            assert run(f"sudo -n apt-get install -y {PACKAGE} && moored").stdout.endswith("installed\n")
            assert session.run_code(_PTRACE).stdout == "True\n"
            assert worked(session) == worked(session, "sudo", "-n") == []
            # what fsck looks at
            (container,) = engine.containers.list(filters={"label": f"moorage.session={session.id}"})
            given = container.attrs["HostConfig"]
            assert (confinement("standard").holds(given), confinement("hardened").holds(given)) == (True, False)
    finally:
        client.resource_groups.modify("default", profile="hardened")
