"""A warm call through REST against a bare aiohttp worker in a like container; and what many calls leave behind.

`CALLS=10000 python -m bench worker`: so many on one warm session.
"""

from __future__ import annotations

import asyncio
import os
import time
import tomllib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import asyncpg
import docker

from agent.statistics import Cgroup
from bench import inference as like
from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile
from runner.ring import MAX_RUNS

BLOCKS, EACH = 10, 40
CALLS: Final = int(os.environ.get("CALLS", "10000"))
#: Of these tables a call has a row, or a few.
TABLES: Final = ("calls", "executions", "audit", "events")
#: A session that has been called so often has all that it will ever have in memory: the output of so many runs, and a few.
WARM: Final = MAX_RUNS + 500


def run(installation: Installation) -> Iterator[Row]:
    http = HTTPConnection(installation.host, installation.port, timeout=120)
    like._deploy(http, {"Authorization": f"Bearer {installation.bearer}"})
    http.close()
    client = Client.of(installation)
    slots = {"cpu": 1, "mem": 256}
    asked = {"app": "bench", "idle_timeout": 3600, "resource_slots": slots}
    session = client.ask("POST", "/v1/sessions?wait=60", asked)
    path = f"/v1/sessions/{session['id']}"
    call = client.request("POST", f"{path}/calls", {"input": {"n": 1}})
    try:
        yield _warm(client, call, session["id"])
        yield from _growth(installation, client, call, session["id"])
    finally:
        client.ask("DELETE", f"{path}?wait=60")
        client.close()


def _warm(client: Client, call: bytes, session_id: str) -> Row:
    ours: list[float] = []
    reference: list[float] = []
    with like._worker(session_id) as worker:
        for block in range(BLOCKS + 1):
            mine = [_ours(client, call) for _ in range(EACH)]
            theirs = [like._theirs(worker) for _ in range(EACH)]
            if block:  # the first warms both up
                ours, reference = ours + mine, reference + theirs
    return Row(
        name="warm call of an app, p50",
        ours=p50(ours),
        reference=p50(reference),
        unit="ms",
        reference_is="bare aiohttp worker in such a container",
        note=f"p95 {percentile(ours, 0.95):.2f} ms over {BLOCKS * EACH} calls; on record, audited, idempotent",
    )


def _growth(installation: Installation, client: Client, call: bytes, session_id: str) -> Iterator[Row]:
    cgroup = _cgroup(session_id)
    fresh = _charged(cgroup)
    for _ in range(min(WARM, CALLS)):
        _ours(client, call)
    before, rows_before = _memory(installation, cgroup), asyncio.run(_rows(installation))
    started = time.perf_counter()
    taken = [_ours(client, call) for _ in range(CALLS)]
    seconds = time.perf_counter() - started
    after, rows_after = _memory(installation, cgroup), asyncio.run(_rows(installation))
    for what in before:
        yield Row(
            name=f"memory of {what} after {CALLS} calls",
            ours=after[what],
            reference=before[what],
            unit="MiB",
            bound="ratio <= 1.1",
            reference_is=f"the same after {min(WARM, CALLS)} calls",
            note=f"{CALLS / seconds:.0f} calls/s; p50 of the last tenth {p50(taken[-CALLS // 10 :]):.2f} ms, of the first "
            f"{p50(taken[: CALLS // 10 or 1]):.2f} ms",
        )
    charged = _charged(cgroup)
    yield Row(
        name="what the container is charged, files and all",
        ours=sum(charged.values()),
        reference=sum(fresh.values()),
        unit="MiB",
        reference_is="the same, fresh",
        note=", ".join(f"{what} {fresh[what]:.1f} to {charged[what]:.1f}" for what in charged)
        + "; what is no process is the kernel's memory of files, which it gives up when there is need",
    )
    made = {table: (rows_after[table][0] - rows_before[table][0]) / CALLS for table in TABLES}
    size = sum(rows_after[table][1] - rows_before[table][1] for table in TABLES) / CALLS
    yield Row(
        name="what a call leaves in the database",
        ours=size / 1024,
        reference=None,
        unit="KiB",
        note="rows: " + ", ".join(f"{number:.2f} {table}" for table, number in made.items()),
    )


def _ours(client: Client, call: bytes) -> float:
    started = time.perf_counter()
    status, said = client.send(call)
    taken = (time.perf_counter() - started) * 1000
    assert status == 200, said
    assert b'"completed"' in said, said
    return taken


def _memory(installation: Installation, cgroup: Cgroup) -> dict[str, float]:
    """MiB: of the daemons' processes, and of those of the session."""
    found = {f"the {daemon}": _pss_mib(installation, daemon) for daemon in ("manager", "agent")}
    return {**found, "the session's processes": _charged(cgroup)["processes"]}


def _charged(cgroup: Cgroup) -> dict[str, float]:
    """MiB, by whose they are; as both versions of cgroups call it."""
    told = {}
    for line in (cgroup.memory / "memory.stat").read_text().splitlines():
        name, number = line.split()
        told[name] = int(number) / 2**20
    if cgroup.version == 2:
        return {"processes": told["anon"], "files": told["file"], "kernel": told.get("kernel", told["slab"])}
    kernel = int((cgroup.memory / "memory.kmem.usage_in_bytes").read_text()) / 2**20
    return {"processes": told["total_rss"], "files": told["total_cache"], "kernel": kernel}


def _cgroup(session_id: str) -> Cgroup:
    engine = docker.from_env(timeout=60)
    [container] = engine.containers.list(filters={"label": f"moorage.session={session_id}"})
    found = Cgroup.of_pid(container.attrs["State"]["Pid"])
    engine.close()
    assert found is not None
    return found


def _pss_mib(installation: Installation, daemon: str) -> float:
    total = 0
    for process in installation.processes(daemon):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


async def _rows(installation: Installation) -> dict[str, tuple[int, int]]:
    """Of each table: rows, and bytes with its indexes and partitions."""
    config = tomllib.loads((installation.data_dir / "manager.toml").read_text())
    connection = await asyncpg.connect(config["database_url"])
    try:
        found = {}
        for table in TABLES:
            number = await connection.fetchval(f"SELECT count(*) FROM {table}")
            size = await connection.fetchval(
                "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree($1::regclass)", table
            )
            if size is None:
                size = await connection.fetchval("SELECT pg_total_relation_size($1::regclass)", table)
            found[table] = (number, size)
        return found
    finally:
        await connection.close()
