# ruff: noqa: ASYNC220, ASYNC221 -- nothing else runs in this loop
"""The runner alone: the agent's link, the ring, files, start. `python -m bench.runner [--container IMAGE]`.

Without --container the runner is an ordinary process. Figures are of this machine at this moment; each has its
reference measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agent.rings import RingReader
from agent.runner_link import RunnerConfig, RunnerLink, prepare_link
from agent.runtime import LINK_IN_CONTAINER, RUNTIME_IN_CONTAINER, command, ensure_runtime

MIB = 1 << 20


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--container", metavar="IMAGE", help="run it as PID 1 of a hardened container of this image")
    options.add_argument("--calls", type=int, default=1000)
    options.add_argument("--file-mib", type=int, default=1024)
    options.add_argument("--starts", type=int, default=5)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    figures: dict[str, Any] = {}
    data = Path(tempfile.mkdtemp(prefix="bench-runner-", dir="/var/tmp"))
    try:
        began = time.perf_counter()
        runtime = ensure_runtime(data)
        figures["runtime built ms"] = _ms(began)
        began = time.perf_counter()
        ensure_runtime(data)
        figures["runtime found ms"] = _ms(began)
        starts = []
        for number in range(args.starts):
            async with started(data / f"start{number}", runtime, args.container) as (link, reader, ms):
                starts.append(ms)
                began = time.perf_counter()
                await execute(link, reader, "first", "print(1)")
                figures["hello -> first print ms"] = _ms(began)
        figures["start -> hello ms"] = round(statistics.median(starts), 1)
        async with started(data / "main", runtime, args.container) as (link, reader, _):
            await latency(link, reader, args.calls, figures)
            await output(link, reader, figures)
            await files(link, data, args.file_mib, figures)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:42} {value}")


async def latency(link: RunnerLink, reader: RingReader, calls: int, figures: dict[str, Any]) -> None:
    for mode, code in (("query", "print(1)"), ("batch", "echo 1")):
        times = []
        for number in range(calls if mode == "query" else calls // 10):
            began = time.perf_counter()
            await execute(link, reader, f"{mode}-{number}", code, mode)
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        p50, p95, p99 = (times[int(len(times) * part)] for part in (0.5, 0.95, 0.99))
        figures[f"{code} through link and ring, ms p50/95/99"] = f"{p50:.3f} / {p95:.3f} / {p99:.3f}"


async def output(link: RunnerLink, reader: RingReader, figures: dict[str, Any]) -> None:
    writing = "import os\nfor _ in range(100): os.write(1, piece)"
    await execute(link, reader, "piece", "piece = b'x' * (1 << 20)")
    began = time.perf_counter()
    size = await execute(link, reader, "out-100", writing)
    figures["100 MiB of output into the ring, MB/s"] = _rate(100 * MIB, began)
    figures["  of which kept and read"] = size
    prints = "for i in range(1_000_000): print(i)"
    began = time.perf_counter()
    await execute(link, reader, "prints", prints)
    figures["1 M prints s"] = round(time.perf_counter() - began, 2)
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", prints], stdout=subprocess.PIPE) as plain:
        assert plain.stdout is not None
        while plain.stdout.read(65536):
            pass
    figures["  reference: plain Python into a pipe s"] = round(time.perf_counter() - began, 2)


async def files(link: RunnerLink, data: Path, mib: int, figures: dict[str, Any]) -> None:
    piece = os.urandom(MIB)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(mib):
            yield piece

    for turn in ("cold", "warm"):
        began = time.perf_counter()
        await link.put_file("big", source(), size=mib * MIB)
        figures[f"put {mib} MiB, MB/s, {turn}"] = _rate(mib * MIB, began)
    began = time.perf_counter()
    fd, facts = await link.open_file("big")
    figures["open ms"] = _ms(began)
    with os.fdopen(fd, "rb", buffering=0) as file:
        began = time.perf_counter()
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass
        figures[f"read {facts.size // MIB} MiB of it, MB/s"] = _rate(facts.size, began)
    began = time.perf_counter()
    archive = await link.archive(["big"])
    total = 0
    async for part in archive:
        total += len(part)
    await archive.aclose()
    figures["archive, MB/s"] = _rate(total, began)
    began = time.perf_counter()
    with (data / "copy").open("wb", buffering=0) as copy:
        for _ in range(mib):
            copy.write(piece)
    figures["  reference: writing it from here, MB/s"] = _rate(mib * MIB, began)


async def execute(link: RunnerLink, reader: RingReader, run: str, code: str, mode: str = "query") -> int:
    """Run it and read all that is kept of its output; how many bytes that was."""
    await link.execute(run, mode=mode, code=code, wait_seconds=60, opts={"stdin": False})
    at = size = 0
    while True:
        chunk = reader.read(run, at)
        at = chunk.next_seq
        size += len(chunk.records)
        if chunk.done is not None:
            return size
        if not chunk.records:
            await link.wait_tail(run, at - 1, 60)


@contextlib.asynccontextmanager
async def started(
    folder: Path, runtime: Path, image: str | None
) -> AsyncIterator[tuple[RunnerLink, RingReader, float]]:
    link_dir, work = folder / "link", folder / "work"
    work.mkdir(parents=True)
    uid, gid = (1000, 1000) if image else (os.getuid(), os.getgid())
    os.chown(work, uid, gid)
    environ = {"PATH": "/usr/bin:/bin"}
    config = RunnerConfig(
        environ=environ, workdir="/home/work" if image else str(work), python=None if image else sys.executable
    )
    ready = prepare_link(link_dir, config, uid=uid, gid=gid)
    if image:
        name = f"moorage-bench-{os.getpid()}-{folder.name}"
        packages = sysconfig.get_path("purelib")
        mounts = [
            f"{runtime}:{RUNTIME_IN_CONTAINER}:ro",
            f"{link_dir}:{LINK_IN_CONTAINER}",
            f"{work}:/home/work",
            f"{packages}:/packages:ro",
        ]
        first, *rest = command(runtime)
        create = [
            "docker",
            "create",
            "--name",
            name,
            "--user",
            "1000:1000",
            "--network",
            "none",
            "--read-only",
            "--tmpfs",
            "/tmp",
        ]
        create += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "256"]
        create += [word for mount in mounts for word in ("-v", mount)]
        subprocess.run([*create, "--entrypoint", first, image, *rest], check=True, stdout=subprocess.DEVNULL)
        start, stop = ["docker", "start", name], ["docker", "rm", "-f", name]
    else:
        process: subprocess.Popen[bytes] | None = None
        entry = [*command(runtime, str(runtime), str(link_dir)), "--any-peer"]
    began = time.perf_counter()
    if image:
        await (await asyncio.create_subprocess_exec(*start, stdout=subprocess.DEVNULL)).wait()
    else:
        process = subprocess.Popen(entry, env={})
    try:
        await ready.wait(20)
        link = await RunnerLink.connect(link_dir, folder / "private", None)
        ms = (time.perf_counter() - began) * 1000
        reader = RingReader(link_dir)
        yield link, reader, ms
        reader.close()
        await link.shutdown(0.1)
        await link.close()
    finally:
        ready.close()
        if image:
            subprocess.run(stop, check=False, stdout=subprocess.DEVNULL)
        elif process is not None:
            process.kill()
            process.wait()


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def _rate(size: int, began: float) -> int:
    return round(size / (time.perf_counter() - began) / 1e6)


if __name__ == "__main__":
    asyncio.run(main())
