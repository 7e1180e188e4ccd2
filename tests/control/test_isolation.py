"""A resource group's profile and egress reach the containers that are started from then on, and no others."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any
from uuid import uuid4

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import KernelPlacement, Placement
from domain.session import Event
from repositories.agents import addresses
from repositories.database import Database
from repositories.gangs import join_cluster
from repositories.transit import transit
from tests.control.rows import NOW, TEST, add_agent, kernels_of, running

POOL = IPv4Network("10.216.0.0/22")


async def policy(database: Database, profile: str, egress: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE resource_groups SET profile = $1, egress = $2 WHERE name = 'default'", profile, egress
        )


async def specs(database: Database, session_id: SessionId) -> list[tuple[Any, Any]]:
    async with database.reader() as connection:
        return [
            (one["spec"].get("profile"), one["spec"].get("egress")) for one in await kernels_of(connection, session_id)
        ]


async def test_containers_have_what_their_group_said_when_they_were_placed(database: Database) -> None:
    (before,) = await running(database)
    await policy(database, "standard", "none")
    (after,) = await running(database)
    assert await specs(database, before) == [("hardened", "open")]
    assert await specs(database, after) == [("standard", "none")]


async def test_a_restart_in_place_starts_a_container(database: Database) -> None:
    (session,) = await running(database)
    await policy(database, "standard", "none")
    async with database.transaction() as connection:
        await transit(connection, session, Event.RESTART, cause=TEST, now=NOW)
    assert await specs(database, session) == [("standard", "none")]


async def test_who_joins_a_cluster_later_has_what_the_group_says_then(database: Database) -> None:
    (session,) = await running(database)
    await policy(database, "standard", "none")
    joining = KernelId(uuid4())
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO kernels (id, session_id, role, idx, slots, spec, joining)
            SELECT $2, session_id, 'worker', 2, slots, spec - 'profile' - 'egress', true FROM kernels WHERE session_id = $1
            """,
            session,
            joining,
        )
        placed = KernelPlacement(kernel_id=joining, agent_id=AgentId("a"), amounts={"cpu": 1000}, devices={})
        placement = Placement(session_id=session, kernels=(placed,))
        assert await join_cluster(connection, placement, pool=POOL, now=NOW) is None
    assert await specs(database, session) == [("hardened", "open"), ("standard", "none")]


async def test_agents_are_told_whom_to_close_to_sessions(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b", "c"):
            await add_agent(connection, name)
        await connection.execute("UPDATE agents SET info = jsonb_build_object('address', '192.0.2.7') WHERE id < 'c'")
        here = await connection.fetchval("SELECT host(inet_server_addr())")
        postgres = [] if here is None else [here]
        assert await addresses(connection) == [*postgres, "192.0.2.7"]
        assert await addresses(connection, most=0) == postgres  # too many to name one by one
