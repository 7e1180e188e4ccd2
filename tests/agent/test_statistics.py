"""The same figures from both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.statistics import Cgroup

V1 = {
    "cpuacct/docker/abc/cpuacct.usage": "1500000000\n",
    "memory/docker/abc/memory.usage_in_bytes": "20000\n",
    "memory/docker/abc/memory.stat": "cache 9000\ntotal_inactive_file 5000\n",
    "memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/docker/abc/memory.max_usage_in_bytes": "30000\n",
    "memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "pids/docker/abc/pids.current": "7\n",
    "pids/docker/abc/pids.max": "4096\n",
    "blkio/docker/abc/blkio.throttle.io_service_bytes": "8:0 Read 4096\n8:0 Write 10\n8:16 Read 4\nTotal 4110\n",
}
V2 = {
    "docker/abc/cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
    "docker/abc/memory.current": "20000\n",
    "docker/abc/memory.stat": "anon 9000\ninactive_file 5000\n",
    "docker/abc/memory.max": "max\n",
    "docker/abc/memory.peak": "30000\n",
    "docker/abc/memory.events": "low 0\noom 3\noom_kill 2\n",
    "docker/abc/pids.current": "7\n",
    "docker/abc/pids.max": "4096\n",
    "docker/abc/io.stat": "8:0 rbytes=4096 wbytes=10 rios=1\n8:16 rbytes=4 wbytes=0 rios=1\n",
}
LINES_V1 = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n4:pids:/docker/abc\n3:blkio:/docker/abc\n0::/\n"
FIGURES = {
    "cpu_seconds": 1.5,
    "mem_bytes": 15000,
    "mem_peak_bytes": 30000,
    "pids": 7,
    "pids_limit": 4096,
    "oom_kills": 2,
    "io_read_bytes": 4100,
    "io_write_bytes": 10,
}


@pytest.mark.parametrize(("lines", "files"), [(LINES_V1, V1), ("0::/docker/abc\n", V2)], ids=["v1", "v2"])
def test_figures(tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    for name, text in {"proc/42/cgroup": lines, **{f"sys/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    cgroup = Cgroup.of_pid(42, proc=tmp_path / "proc", root=tmp_path / "sys")

    assert cgroup is not None
    assert cgroup.read() == FIGURES


def test_this_host_answers() -> None:
    cgroup = Cgroup.of_pid(os.getpid())
    if cgroup is None:
        pytest.skip("this host shows no cgroups")
    assert set(cgroup.read()) <= {*FIGURES, "mem_limit_bytes"}


def test_a_process_that_has_gone_has_none(tmp_path: Path) -> None:
    assert Cgroup.of_pid(1, proc=tmp_path) is None
