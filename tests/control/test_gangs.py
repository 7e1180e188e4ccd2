"""Clusters are placed whole or not at all, whatever the hosts are like and whoever else is placing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from ipaddress import IPv4Network
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import Host, PendingKernel, PendingSession, Plan, Snapshot
from domain.scheduler import plan
from domain.session import ClusterMode
from repositories.clusters import free_subnet, networks_of
from repositories.database import Database
from repositories.gangs import join_cluster, place_cluster
from repositories.placement import snapshot
from tests.control.rows import (
    NOW,
    add_agent,
    add_sessions,
    assert_slots_add_up,
    destroy,
    fact_of,
    kernels_of,
    row_of,
    status_of,
    tell,
)

POOL = IPv4Network("10.216.0.0/22")
T0 = datetime(2030, 1, 1, tzinfo=UTC)


# -- the plan ------------------------------------------------------------------------------------------------------------
@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    """Hosts with and without an address, and gangs that wait or grow."""
    hosts = [
        Host(
            id=AgentId(f"h{number}"),
            architecture="x86_64",
            free={"cpu": draw(st.integers(0, 8))},
            capacity={"cpu": 8},
            address=draw(st.sampled_from([None, f"10.0.0.{number}"])),
        )
        for number in range(draw(st.integers(1, 5)))
    ]
    pending = []
    for number in range(draw(st.integers(1, 6))):
        joins = draw(st.booleans())
        kernels = tuple(
            PendingKernel(id=KernelId(uuid4()), slots={"cpu": draw(st.integers(1, 5))})
            for _ in range(1 if joins else draw(st.integers(2, 5)))
        )
        pending.append(
            PendingSession(
                id=SessionId(UUID(int=number + 1)),
                architecture="x86_64",
                priority=draw(st.integers(0, 2)),
                created_at=T0,
                kernels=kernels,
                cluster_mode=draw(st.sampled_from(ClusterMode)),
                clustered=True,
                joins=joins,
                hosts=frozenset(draw(st.sets(st.sampled_from([h.id for h in hosts]), min_size=1, max_size=1)))
                if joins
                else frozenset(),
            )
        )
    return Snapshot(pending=tuple(pending), hosts=tuple(hosts))


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_a_plan_holds_whole_gangs_on_hosts_that_reach_each_other(seen: Snapshot) -> None:
    made = plan(seen, T0)
    sessions = {session.id: session for session in seen.pending}
    hosts = {host.id: host for host in seen.hosts}
    used = dict.fromkeys(hosts, 0)
    for placement in made.placements:
        session = sessions[placement.session_id]
        assert {kernel.kernel_id for kernel in placement.kernels} == {kernel.id for kernel in session.kernels}
        on = {kernel.agent_id for kernel in placement.kernels} | session.hosts
        assert len(on) == 1 or (
            session.cluster_mode is ClusterMode.MULTI_NODE and all(hosts[host].address for host in on)
        )
        for kernel in placement.kernels:
            used[kernel.agent_id] += kernel.amounts["cpu"]
    assert all(used[host] <= hosts[host].free["cpu"] for host in hosts)
    assert set(made.blocked) | {placement.session_id for placement in made.placements} == set(sessions)
    assert_nothing_fits_that_was_blocked(seen, made, used)


def assert_nothing_fits_that_was_blocked(seen: Snapshot, made: Plan, used: dict[AgentId, int]) -> None:
    """Of the gangs on one host, for which that is easy to say."""
    left = {host.id: host.free["cpu"] - used[host.id] for host in seen.hosts}
    for session in seen.pending:
        why = made.blocked.get(session.id)
        if why and why.code != "reserved" and session.cluster_mode is ClusterMode.SINGLE_NODE:
            asked = sum(kernel.slots["cpu"] for kernel in session.kernels)
            assert all(left[host] < asked for host in (session.hosts or left))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**127), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)))
def test_a_subnet_is_nobody_elses(number: int, taken: set[int], foreign: set[int]) -> None:
    subnets = list(POOL.subnets(new_prefix=24))
    others = [next(subnets[at].subnets(new_prefix=28)) for at in foreign]  # a part of it is enough
    found = free_subnet(POOL, UUID(int=number), {subnets[at] for at in taken}, others)
    free = {subnet for at, subnet in enumerate(subnets) if at not in taken | foreign}
    assert (found in free) if free else (found is None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
def test_no_two_kernels_share_an_address_and_no_two_hosts_a_gateway(kernels: list[tuple[str, bool]]) -> None:
    """Kernels come one after the other, and some leave: what they had is nobody's until they are gone."""
    rows: list[dict[str, object]] = []
    for number, (host, stays) in enumerate(kernels):
        rows.append(
            {"id": uuid4(), "role": "worker", "idx": number, "agent_id": host, "host_address": host, "network": None}
            | {"member": True}
        )
        networks = networks_of(IPv4Network("10.0.0.0/24"), 7, rows)
        for row in rows:
            row["network"] = networks.get(row["id"], row["network"])  # type: ignore[call-overload]
        rows[-1]["member"] = stays
    told = [row["network"] for row in rows]
    addresses = [network["address"] for network in told]  # type: ignore[index]
    gateways = {row["agent_id"]: row["network"]["gateway"] for row in rows}  # type: ignore[index]
    assert len(set(addresses)) == len(rows)
    assert len(set(gateways.values())) == len(gateways)
    assert not set(addresses) & set(gateways.values())


# -- the placing ---------------------------------------------------------------------------------------------------------
async def clusters(database: Database, number: int = 1, **options: object) -> list[SessionId]:
    async with database.transaction() as connection:
        sessions = await add_sessions(connection, number, **options)  # type: ignore[arg-type]
        await connection.execute('UPDATE kernels SET spec = spec || \'{"cluster": "multi-node"}\'')
        await connection.execute("UPDATE kernels SET idx = idx - 1 WHERE role = 'worker'")
    return sessions


async def agents(database: Database, *names: str, cpu: int = 4000) -> None:
    async with database.transaction() as connection:
        for number, name in enumerate(names, 1):
            await add_agent(connection, name, cpu=cpu, mem=65536)
            await connection.execute(
                "UPDATE agents SET info = jsonb_build_object('address', $2::text) WHERE id = $1",
                name,
                f"10.9.9.{number}",
            )


async def place_all(database: Database, pool: IPv4Network = POOL) -> dict[SessionId, str | None]:
    """What the scheduler's step does."""
    async with database.reader() as connection:
        planned = plan(await snapshot(connection, now=NOW), NOW)
    told = {}
    for placement in planned.placements:
        async with database.transaction() as connection:
            placing = join_cluster if placement.joins else place_cluster
            told[placement.session_id] = await placing(connection, placement, pool=pool, now=NOW)
    return told


async def test_a_cluster_is_placed_with_its_network(database: Database) -> None:
    await agents(database, "a", "b", cpu=2000)
    [session_id] = await clusters(database, kernels=3, cluster_mode="multi-node")
    assert await place_all(database) == {session_id: None}
    async with database.reader() as connection:
        kernels = await kernels_of(connection, session_id)
    kernels.sort(key=lambda kernel: (kernel["role"], kernel["idx"]))
    networks = [kernel["spec"]["network"] for kernel in kernels]
    assert [kernel["agent_id"] for kernel in kernels] == ["a", "a", "b"]
    assert [name for name, _ in networks[0]["hosts"]] == ["main1", "worker1", "worker2"]
    assert [network["peers"] for network in networks] == [["10.9.9.2"], ["10.9.9.2"], ["10.9.9.1"]]
    assert len({network["address"] for network in networks}) == 3
    assert networks[0]["gateway"] == networks[1]["gateway"] != networks[2]["gateway"]
    await assert_slots_add_up(database)


async def test_without_a_free_subnet_a_cluster_waits_and_the_others_go_on(database: Database) -> None:
    await agents(database, "a", cpu=64000)
    sessions = await clusters(database, 3, kernels=2, cluster_mode="multi-node")
    told = await place_all(database, IPv4Network("10.216.0.0/23"))
    assert sorted(told.values(), key=str) == [None, None, "no_network"]
    waiting = next(one for one in sessions if told[one])
    assert await status_of(database, waiting) == "PENDING"
    await assert_slots_add_up(database)


async def test_two_schedulers_place_a_cluster_once(database: Database) -> None:
    await agents(database, "a", "b", cpu=3000)
    await clusters(database, 4, kernels=3, cluster_mode="multi-node")
    told = await asyncio.gather(*(place_all(database) for _ in range(4)))
    placed = [session for one in told for session, conflict in one.items() if conflict is None]
    assert len(placed) == len(set(placed)) == 2
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM cluster_networks") == 2
        held = await connection.fetch("SELECT session_id, count(*) FROM kernels WHERE want = 'RUN' GROUP BY 1")
    assert {row["count"] for row in held} == {3}
    await assert_slots_add_up(database)


async def test_the_network_is_free_when_the_last_kernel_is_gone(database: Database) -> None:
    await agents(database, "a")
    [session_id] = await clusters(database, kernels=2, cluster_mode="multi-node")
    await place_all(database)
    await destroy(database, session_id)
    async with database.reader() as connection:
        facts = [
            await fact_of(connection, session_id, "GONE", 20, kernel_id=k["id"].hex, generation=k["generation"])
            for k in await kernels_of(connection, session_id)
        ]
    for number, fact in enumerate(facts):
        async with database.reader() as connection:
            assert await connection.fetchval("SELECT count(*) FROM cluster_networks") == 1, number
        await tell(database, "a", fact)
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM cluster_networks") == 0
    assert (await row_of(database, session_id))["status"] == "TERMINATED"


@pytest.mark.parametrize("addressed", [True, False])
async def test_hosts_without_an_address_share_no_cluster(database: Database, addressed: bool) -> None:
    await agents(database, "a", "b", cpu=2000)
    if not addressed:
        async with database.reader() as connection:
            await connection.execute("UPDATE agents SET info = '{}' WHERE id = 'b'")
    [session_id] = await clusters(database, kernels=3, cluster_mode="multi-node")
    assert await place_all(database) == ({session_id: None} if addressed else {})
