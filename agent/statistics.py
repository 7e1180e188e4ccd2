"""What a kernel uses, from its cgroup's own files (both versions): 0.2 ms, where the engine takes seconds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
#: What version 1 answers where nothing is limited.
_UNLIMITED_V1: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where the files of one process's cgroup are. Version 2: one folder for all."""

    version: int
    cpu: Path
    memory: Path
    pids: Path
    io: Path
    quota_folder: Path  #: version 1 has a hierarchy of its own for it

    @classmethod
    def of_pid(cls, pid: int, *, proc: Path = Path("/proc"), root: Path = CGROUP_ROOT) -> Cgroup | None:
        """None when there is no such process any more."""
        try:
            lines = (proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            return None
        paths: dict[str, str] = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        if "memory" in paths:
            places = {name: root / name / paths.get(name, "") for name in ("memory", "pids", "blkio")}
            accounting = root / "cpuacct" / paths.get("cpuacct", "")
            quota = root / "cpu" / paths.get("cpu", "")
            return cls(1, accounting, places["memory"], places["pids"], places["blkio"], quota)
        if not paths.get(""):
            return None
        folder = root / paths[""]
        return cls(2, folder, folder, folder, folder, folder)

    def read(self) -> dict[str, Any]:
        """{cpu_seconds, mem_bytes, mem_limit_bytes, mem_peak_bytes, pids, pids_limit, oom_kills, io_read_bytes, io_write_bytes}.

        What the kernel does not tell is left out.
        """
        found = self._v1() if self.version == 1 else self._v2()
        return {name: value for name, value in found.items() if value is not None}

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory; 0 when the cgroup has gone."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _fields(self.memory / name).get("oom_kill", 0)

    def processes(self) -> int | None:
        """How many processes and threads there are; None when the cgroup has gone."""
        return _number(self.pids / "pids.current")

    def forks_refused(self) -> int:
        """How often the limit of processes has refused one; 0 when the cgroup has gone."""
        return _fields(self.pids / "pids.events").get("max", 0)

    def quota(self) -> tuple[Path, str]:
        """The file of the CPU quota, and what it holds when there is none."""
        return (self.quota_folder / "cpu.cfs_quota_us", "-1") if self.version == 1 else (self.cpu / "cpu.max", "max")

    def limits(self) -> tuple[int | None, int | None]:
        """Bytes of memory, and microseconds of CPU in each period; None where nothing is limited."""
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        quota = _text(self.quota()[0]).split()[:1]
        return _number(self.memory / name), int(quota[0]) if quota and quota[0].isdigit() else None

    def _v1(self) -> dict[str, Any]:
        used, statistics = _number(self.memory / "memory.usage_in_bytes"), _fields(self.memory / "memory.stat")
        limit, cpu = _number(self.memory / "memory.limit_in_bytes"), _number(self.cpu / "cpuacct.usage")
        read, written = _blkio(self.io / "blkio.throttle.io_service_bytes")
        return {
            "cpu_seconds": None if cpu is None else cpu / 1e9,
            "mem_bytes": None if used is None else max(used - statistics.get("total_inactive_file", 0), 0),
            "mem_limit_bytes": limit if limit is not None and limit < _UNLIMITED_V1 else None,
            "mem_peak_bytes": _number(self.memory / "memory.max_usage_in_bytes"),
            "pids": _number(self.pids / "pids.current"),
            "pids_limit": _number(self.pids / "pids.max"),
            "oom_kills": self.oom_kills(),
            "io_read_bytes": read,
            "io_write_bytes": written,
        }

    def _v2(self) -> dict[str, Any]:
        used, statistics = _number(self.memory / "memory.current"), _fields(self.memory / "memory.stat")
        cpu = _fields(self.cpu / "cpu.stat").get("usage_usec")
        read, written = _io(self.io / "io.stat")
        return {
            "cpu_seconds": None if cpu is None else cpu / 1e6,
            "mem_bytes": None if used is None else max(used - statistics.get("inactive_file", 0), 0),
            "mem_limit_bytes": _number(self.memory / "memory.max"),
            "mem_peak_bytes": _number(self.memory / "memory.peak"),  # Linux >= 5.19
            "pids": _number(self.pids / "pids.current"),
            "pids_limit": _number(self.pids / "pids.max"),
            "oom_kills": self.oom_kills(),
            "io_read_bytes": read,
            "io_write_bytes": written,
        }


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _number(path: Path) -> int | None:
    """None for `max`, and for a file that is not there."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _blkio(path: Path) -> tuple[int, int]:
    """Lines such as `8:0 Read 4096`, over all devices."""
    sums = {"Read": 0, "Write": 0}
    for words in map(str.split, _text(path).splitlines()):
        if len(words) == 3 and words[1] in sums:
            sums[words[1]] += int(words[2])
    return sums["Read"], sums["Write"]


def _io(path: Path) -> tuple[int, int]:
    """Lines such as `8:0 rbytes=4096 wbytes=0 ...`, over all devices."""
    sums = {"rbytes": 0, "wbytes": 0}
    for words in map(str.split, _text(path).splitlines()):
        for name, _, value in (word.partition("=") for word in words[1:]):
            if name in sums:
                sums[name] += int(value)
    return sums["rbytes"], sums["wbytes"]
