"""Whose the processes on a device are: our containers', or other people's."""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.gpu import GpuProcess

_CONTAINER: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What Linux knows of a process. `kernel_id`: of one of our containers."""

    kernel_id: str | None = None
    user: str = ""
    command: str = ""
    visible: bool = True  #: it is in our /proc; one that is not has just ended, or belongs to another namespace


@dataclass(frozen=True, slots=True)
class Seen:
    """A process on a device, and whose it is."""

    process: GpuProcess
    owner: Owner

    def to_json(self) -> dict[str, Any]:
        said = {"pid": self.process.pid, "user": self.owner.user, "command": self.owner.command}
        return {**said, "mem_mib": self.process.mem_mib, "kernel_id": self.owner.kernel_id}


def owner_of(pid: int, containers: Mapping[str, str], proc: Path = Path("/proc")) -> Owner:
    """`containers`: kernels by the ids of their containers."""
    folder = proc / str(pid)
    try:
        cgroups = (folder / "cgroup").read_text()
    except OSError:
        return Owner(visible=False)
    kernel = next((containers[one] for one in _CONTAINER.findall(cgroups) if one in containers), None)
    user = command = ""
    with contextlib.suppress(OSError, KeyError):
        command = (folder / "comm").read_text().strip()[:64]
        uid = folder.stat().st_uid
        user = str(uid)
        user = pwd.getpwuid(uid).pw_name
    return Owner(kernel_id=kernel, user=user, command=command)
