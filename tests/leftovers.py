"""What is on this machine, seen from outside: containers, networks, volumes, images, mounts, processes, temporary files.

The demo's wrapper and the tests of leaks compare two of these; the product has no part in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import docker

Snapshot = dict[str, set[str]]
_PR_SET_CHILD_SUBREAPER = 36


def take(client: docker.DockerClient) -> Snapshot:
    return {
        "container": {f"{each['Names'][0]} {each['Id'][:12]}" for each in client.api.containers(all=True)},
        "network": {f"{each['Name']} {each['Id'][:12]}" for each in client.api.networks()},
        "volume": {str(each["Name"]) for each in client.api.volumes()["Volumes"] or ()},
        "image": {f"{(each['RepoTags'] or ['untagged'])[0]} {each['Id'][7:19]}" for each in client.api.images()},
        "mount": _mounts(),
        "process": _descendants(),
        "temporary file": {
            str(path) for folder in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(folder).glob("moorage*")
        },
    }


def adopt_orphans() -> None:
    """From now on a process started from here stays our descendant, however it detaches itself (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def new(before: Snapshot, after: Snapshot) -> list[str]:
    return [f"{kind} {name}" for kind, names in after.items() for name in sorted(names - before[kind])]


def wait_for_none(before: Snapshot, look: Callable[[], Snapshot], *, seconds: float) -> list[str]:
    """What is left over. Looks again for a while: the engine unmounts, and processes end, a moment after they are told to."""
    deadline = time.monotonic() + seconds
    while (left := new(before, look())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _mounts() -> set[str]:
    """Without those that belong to a container: a container left over is reported as one."""
    mounts = Path("/proc/self/mounts")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    return {
        line.split()[1]
        for line in lines
        if not any(of_container in line for of_container in ("/overlay2/", "/containers/", "/netns/"))
    }


def _descendants() -> set[str]:
    """This process's descendants; the ended ones are reaped first."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {f"{pid} {_command(pid)}" for pid in ours - {os.getpid()}}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended)"
