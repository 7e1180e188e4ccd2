"""What one manager changes, another one knows: no answer is stale, also when the other's word was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from actions import ModifyKeypairAction, ModifyUserAction
from manager.herald import Herald
from manager.world import World
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, ROOT, people_and_a_host

CREDENTIAL = f"{ALICE.access_key}.secret-alice"


@pytest.fixture
async def managers(dsn: str) -> AsyncIterator[tuple[World, World]]:
    made = []
    for _ in range(2):
        database, herald = await Database.connect(dsn), Herald(dsn, check_seconds=0.1)
        await herald.start()
        made.append(World.build(database, herald, FakeAgent(), observe=lambda *_: None))
    async with made[0].database.transaction() as connection:
        await people_and_a_host(connection)
    yield made[0], made[1]
    for world in made:
        await world.herald.close()
        await world.database.close()


async def told(world: World, holds: Callable[[], object]) -> None:
    """Until `holds()`, looked at whenever this manager hears of identities; 0.9 s at most, which no cache outlives."""
    heard = asyncio.Event()
    forget = world.herald.subscribe("identity", lambda _: heard.set())
    try:
        async with asyncio.timeout(0.9):
            while not await holds():  # type: ignore[misc]
                heard.clear()
                await heard.wait()
    finally:
        forget()


async def test_a_disabled_keypair_is_refused_by_the_other_manager_too(managers: tuple[World, World]) -> None:
    one, other = managers
    assert await other.authenticate(CREDENTIAL) is not None

    async def refused() -> bool:
        return await other.authenticate(CREDENTIAL) is None

    waiting = asyncio.ensure_future(told(other, refused))
    await asyncio.sleep(0)
    await one.processor.run(ModifyKeypairAction(keypair=ALICE.access_key, active=False), by=ROOT)
    await waiting


async def test_a_closed_account_is_refused_by_the_other_manager_too(managers: tuple[World, World]) -> None:
    one, other = managers
    assert await other.authenticate(CREDENTIAL) is not None

    async def refused() -> bool:
        return await other.authenticate(CREDENTIAL) is None

    waiting = asyncio.ensure_future(told(other, refused))
    await asyncio.sleep(0)
    await one.processor.run(ModifyUserAction(user="alice@example.org", active=False), by=ROOT)
    await waiting


async def test_what_was_missed_while_the_connection_was_down_is_not_believed_any_more(
    managers: tuple[World, World],
) -> None:
    one, other = managers
    assert await other.authenticate(CREDENTIAL) is not None
    heard = asyncio.Event()
    other.herald.subscribe("identity", lambda _: heard.set())
    async with one.database.reader() as connection:
        await connection.execute("UPDATE keypairs SET active = false WHERE access_key = $1", ALICE.access_key)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'moorage herald' "
            "AND datname = current_database()"
        )
    async with asyncio.timeout(5.0):
        await heard.wait()  # on reconnecting, everybody looks again
    assert await other.authenticate(CREDENTIAL) is None


async def test_a_wrong_secret_is_refused_however_often(managers: tuple[World, World]) -> None:
    one, _ = managers
    assert await one.authenticate(f"{ALICE.access_key}.wrong") is None
    assert await one.authenticate(CREDENTIAL) is not None
    assert await one.authenticate(f"{ALICE.access_key}.wrong") is None
    assert await one.authenticate("no-dot-at-all") is None
