"""The whole OpenAPI document against a running server: every refusal is planned, nothing hangs, and nothing is left over.

First every operation with what the document's own bounds suggest, then at random for as long as there is time.
`MOORAGE_FUZZ_SECONDS=3600` makes it long, `MOORAGE_FUZZ_SEED=n` another one.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from tests.gate.fuzz import Findings, schemathesis
from tests.gate.people import SUPERADMIN, USER, Person
from tests.gate.raw import Wire
from tests.gate.server import running

SECONDS: Final = int(os.environ.get("MOORAGE_FUZZ_SECONDS", "20"))
SEED: Final = int(os.environ.get("MOORAGE_FUZZ_SEED", "1"))
MOST_GROWTH_BYTES: Final = 50 << 20

pytestmark = pytest.mark.slow


def held(pid: int) -> dict[str, int]:
    """What a process holds: bytes of memory, file descriptors, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "bytes": int(lines["VmRSS"].split()[0]) * 1024,
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(lines["Threads"]),
    }


async def left_open(dsn: str) -> int:
    """Transactions that nobody has ended."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(
            await connection.fetchval(
                """
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
                """
            )
        )
    finally:
        await connection.close()


async def settled(pid: int, before: dict[str, int]) -> dict[str, int]:
    """What it holds once what was asked is over; connections of a client that has gone take a moment to be seen."""
    for _ in range(100):
        now = held(pid)
        if now["descriptors"] <= before["descriptors"] + 8:
            break
        await asyncio.sleep(0.1)
    return now


#: No control process runs here, and the rows that were there before have no history.
_NOT_HERE: Final = {"overdue", "history_chain"}


async def fsck(rest: str) -> set[str]:
    """The names of the checks that find something."""
    reply = await Wire(rest).ask("GET", "/v1/fsck?hosts=false", (SUPERADMIN.header,))
    assert reply.status == 200, reply
    findings: list[dict[str, Any]] = json.loads(reply.body)["findings"]
    return {finding["check"] for finding in findings} - _NOT_HERE


async def test_every_operation_with_anything(dsn: str, tmp_path: Path) -> None:
    async with running(dsn, tmp_path) as told:
        pid, rest = int(told["pid"]), str(told["rest"])
        invariants = await fsck(rest)
        assert (await Wire(rest).ask("GET", "/openapi.json")).status == 200
        before = held(pid)
        first = await schemathesis(rest, SUPERADMIN, tmp_path, phases="examples,coverage", seconds=None, seed=SEED)
        check(first, SUPERADMIN)
        assert first.operations > 100
        assert first.tested == first.operations
        shares: tuple[tuple[Person, float], ...] = ((SUPERADMIN, 0.3), (USER, 0.15))  # the rest is what goes before
        for by, share in shares:
            seconds = max(5, round(SECONDS * share))
            check(await schemathesis(rest, by, tmp_path, phases="fuzzing,stateful", seconds=seconds, seed=SEED), by)
            assert (await Wire(rest).ask("GET", "/v1/whoami", (by.header,))).status == 200, "it has locked itself out"
        after = await settled(pid, before)
        assert await left_open(dsn) == 0
        assert await fsck(rest) <= invariants
        log = (tmp_path / "server.log").read_text()
    assert after["bytes"] - before["bytes"] < MOST_GROWTH_BYTES, (before, after)
    assert after["descriptors"] <= before["descriptors"] + 8, (before, after)
    assert "Traceback" not in log, log[:4000]
    assert "exception was never retrieved" not in log, log[:4000]


def check(found: Findings, by: Person) -> None:
    print(f"{by.name}: {found.requests} requests, {found.tested} of {found.operations} operations")
    told = found.said[found.said.find("FAILURES") :][:6000]
    assert not found.failures, told
    errors = [error for error in found.errors if error["title"] != "Serialization not possible"]
    assert not errors, found.said[found.said.find("ERRORS") :][:6000]
