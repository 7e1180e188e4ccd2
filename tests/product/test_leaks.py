"""Nothing is left of sessions that came and went: judged from outside, and by the database's own sums.

`LEAK_SESSIONS=200 LEAK_AT_ONCE=50` makes it the long campaign; by default it is a short one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import docker
import moorage
import pytest

from tests import leftovers
from tests.product.conftest import Installation

pytestmark = pytest.mark.alone

IN_A_ROW = int(os.environ.get("LEAK_SESSIONS", "12"))
AT_ONCE = int(os.environ.get("LEAK_AT_ONCE", "12"))
SETTINGS = {"image": "python", "cpu": 0.5, "mem": "128m"}


def descriptors(installation: Installation) -> int:
    """Open files, sockets and pipes of all daemons."""
    processes = [*installation.processes("manager"), *installation.processes("agent")]
    return sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in processes)


def threads_and_children(installation: Installation) -> int:
    processes = [*installation.processes("manager"), *installation.processes("agent")]
    return sum(len(list(Path(f"/proc/{process}/task").iterdir())) for process in processes)


def test_many_in_a_row_and_many_at_once_leave_nothing(
    installation: Installation, client: moorage.Client, engine: docker.DockerClient
) -> None:
    one(client)  # what is made once, such as thread pools and the first connections, is there before
    asyncio.run(many(installation, AT_ONCE))
    before, files, threads = leftovers.take(engine), descriptors(installation), threads_and_children(installation)
    for _ in range(IN_A_ROW):
        one(client)
    asyncio.run(many(installation, AT_ONCE))
    left = leftovers.wait_for_none(before, lambda: leftovers.take(engine), seconds=20)
    assert left == []
    # Pools may hold a connection or two more than before; a leak is one for each session.
    settles(lambda: descriptors(installation) <= files + 6)
    settles(lambda: threads_and_children(installation) <= threads + 6)
    slots_add_up(client)


def one(client: moorage.Client) -> None:
    with client.sessions.create(**SETTINGS) as session:  # type: ignore[arg-type]
        assert session.run_code("print(1)").stdout == "1\n"


async def many(installation: Installation, count: int) -> None:
    """As many sessions at once, each created, used and destroyed."""
    async with moorage.aio.Client(
        endpoint=installation.endpoint, access_key=installation.access_key, secret_key=installation.secret_key
    ) as client:

        async def one() -> None:
            async with await client.sessions.create(**SETTINGS) as session:  # type: ignore[arg-type]
                assert (await session.run_code("print(1)")).stdout == "1\n"

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())


def slots_add_up(client: moorage.Client) -> None:
    """Nothing is taken when nothing runs."""

    def nothing_is_taken() -> bool:
        return all(not any(agent.used.values()) for agent in client.agents.list())

    settles(nothing_is_taken)


def settles(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not settle"
        time.sleep(0.1)
