"""The authorisation matrix: every cell is asked of a running server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from actions import ACTIONS
from repositories.database import Database
from tests.gate import matrix
from tests.gate.asks import Cell
from tests.gate.people import populate
from tests.gate.raw import Wire
from tests.gate.roles import EXPECTED, RELATIONS, ROLES
from tests.gate.server import running
from tests.gate.things import add_store

ROOT = Path(__file__).resolve().parents[2]


def test_every_action_is_in_it() -> None:
    """A new action fails here until somebody has written down who may do it."""
    assert {row.partition(":")[0] for row in EXPECTED} - {"proxy"} == set(ACTIONS)


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs/authorisation.md").read_text()
    assert page == matrix.page(), "python -m tests.gate.matrix > docs/authorisation.md"


async def test_every_cell(dsn: str, tmp_path: Path) -> None:
    database = await Database.connect(dsn)
    async with database.transaction() as connection:
        await populate(connection)
        await add_store(connection)
        await matrix.prepare_all(connection)
    await database.close()
    cells = list(matrix.cells())
    assert len(cells) == len(EXPECTED) * len(ROLES) * len(RELATIONS)
    faults: list[str] = []
    few = asyncio.Semaphore(8)
    async with running(dsn, tmp_path, bare=True) as told:
        rest, services = Wire(str(told["rest"])), Wire(str(told["services"]))

        async def ask(cell: Cell) -> None:
            async with few:
                reply = await matrix.ask(cell, rest, services)
            if fault := matrix.fault(cell, reply):
                faults.append(fault)

        # One role after the other: what somebody removes of its own is not what another comes upon.
        for role in ROLES:
            await asyncio.gather(*(ask(cell) for cell in cells if cell.role == role))
        log = (tmp_path / "server.log").read_text()
    assert not faults, f"{len(faults)} of {len(cells)} cells:\n" + "\n".join(faults)
    assert "Traceback" not in log, log[:4000]
