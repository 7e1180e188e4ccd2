"""Networks of cluster sessions: which subnet is whose, which kernel has which address, and who is told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, ip_network
from typing import Any, Final
from uuid import UUID

from agent.wire import ClusterNetwork
from domain.ids import AgentId, KernelId, SessionId
from domain.session import FINAL, KernelState
from repositories.database import Connection

#: 2,048 networks of 253 addresses; `cluster_pool` in manager.toml names another range.
DEFAULT_POOL: Final = IPv4Network("10.216.0.0/13")
PREFIX: Final = 24
#: Kernels of one session. The rest of a subnet is for its hosts, and for those that leave while others come.
MOST_KERNELS: Final = 200
_FIRST_ADDRESS: Final = 2
_LAST_GATEWAY: Final = 254
#: Held for the few statements in which a subnet is chosen.
_LOCK: Final = 0x6D6F6F72


async def reserve(
    connection: Connection, session_id: SessionId, agents: Collection[AgentId], *, pool: IPv4Network, now: datetime
) -> bool:
    """A subnet for this session that none of these hosts uses otherwise; False when the pool has none left.

    Inside the caller's transaction, which has locked the session's row. One that it has already stays its own.
    """
    if await connection.fetchval("SELECT true FROM cluster_networks WHERE session_id = $1", session_id):
        return True
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
    taken = {ip_network(str(row["subnet"])) for row in await connection.fetch("SELECT subnet FROM cluster_networks")}
    foreign = await connection.fetch(
        "SELECT DISTINCT jsonb_array_elements_text(info -> 'networks') AS subnet FROM agents WHERE id = ANY($1::text[])",
        list(agents),
    )
    subnet = free_subnet(pool, session_id, taken, [IPv4Network(row["subnet"], strict=False) for row in foreign])
    if subnet is None:
        return False
    await connection.execute(
        "INSERT INTO cluster_networks (session_id, subnet, vni, created_at) VALUES ($1, $2, $3, $4)",
        session_id,
        subnet,
        vni_of(subnet),
        now,
    )
    return True


def free_subnet(
    pool: IPv4Network, session_id: UUID, taken: Collection[object], foreign: Iterable[IPv4Network]
) -> IPv4Network | None:
    """The first free one. Where the search begins is the session's own, so that two installations that share a host
    seldom choose the same."""
    others = list(foreign)
    count = 1 << max(PREFIX - pool.prefixlen, 0)
    start = session_id.int % count
    for step in range(count):
        number = (start + step) % count
        subnet = IPv4Network((int(pool.network_address) + (number << (32 - PREFIX)), PREFIX))
        if subnet not in taken and not any(subnet.overlaps(other) for other in others):
            return subnet
    return None


def vni_of(subnet: IPv4Network) -> int:
    """Its 24 bits, so that no two subnets share a VXLAN."""
    return int(subnet.network_address) >> (32 - PREFIX)


async def weave(connection: Connection, session_id: SessionId, *, now: datetime) -> None:
    """Tell every kernel of a cluster that has a host who the others are, by its next intent.

    Inside the transaction in which kernels came or went, with the session's row locked. A kernel that knows all of it
    already is left alone.
    """
    network = await connection.fetchrow("SELECT subnet, vni FROM cluster_networks WHERE session_id = $1", session_id)
    if network is None:
        return
    rows = await connection.fetch(
        """
        SELECT k.id, k.role, k.idx, k.agent_id, k.spec -> 'network' AS network, a.info ->> 'address' AS host_address,
            k.attempt = s.attempt AND k.left_at IS NULL AND k.want = 'RUN' AS member, k.id = s.main_kernel_id AS is_main
        FROM kernels k JOIN sessions s ON s.id = k.session_id LEFT JOIN agents a ON a.id = k.agent_id
        WHERE s.id = $1 AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE' OR k.session_id = $1
            AND k.attempt = s.attempt AND k.left_at IS NULL AND k.want = 'RUN'
        ORDER BY k.id <> s.main_kernel_id, k.role, k.idx
        """,
        session_id,
    )
    networks = networks_of(IPv4Network(str(network["subnet"])), network["vni"], rows)
    known = {row["id"]: row["network"] for row in rows}
    changed = {kernel_id: made for kernel_id, made in networks.items() if made != known[kernel_id]}
    await connection.execute(
        """
        UPDATE kernels k SET spec = k.spec || jsonb_build_object('network', n.network), generation = k.generation + 1,
            next_try_at = $3, tries = 0, claimed_by = NULL, claimed_until = NULL
        FROM unnest($1::uuid[], $2::jsonb[]) AS n(id, network) WHERE k.id = n.id
        """,
        list(changed),
        list(changed.values()),
        now,
    )


def networks_of(subnet: IPv4Network, vni: int, kernels: Sequence[Mapping[str, Any]]) -> dict[UUID, dict[str, Any]]:
    """What each member sees of its network. Pure; addresses and gateways that were given out stay, until their kernel
    is gone: `kernels` holds the members by rank, and all others that may still have a container."""
    members = [kernel for kernel in kernels if kernel["member"]]
    base = int(subnet.network_address)
    addresses = {k["id"]: _number(k["network"]["address"], base) for k in kernels if k["network"]}
    gateways = {k["agent_id"]: _number(k["network"]["gateway"], base) for k in kernels if k["network"]}
    for kernel in members:
        if kernel["id"] not in addresses:
            used = set(addresses.values())
            addresses[kernel["id"]] = next(n for n in range(_FIRST_ADDRESS, _LAST_GATEWAY) if n not in used)
        if kernel["agent_id"] not in gateways:
            used = set(gateways.values())
            gateways[kernel["agent_id"]] = next(n for n in range(_LAST_GATEWAY, 1, -1) if n not in used)
    hosts = [[f"{k['role']}{k['idx']}", str(subnet[addresses[k["id"]]])] for k in members]
    reached = {k["agent_id"]: k["host_address"] for k in members}
    return {
        kernel["id"]: ClusterNetwork(
            subnet=str(subnet),
            gateway=str(subnet[gateways[kernel["agent_id"]]]),
            address=str(subnet[addresses[kernel["id"]]]),
            vni=vni,
            hosts=hosts,
            peers=sorted(a for host, a in reached.items() if a is not None and host != kernel["agent_id"]),
        ).pack()
        for kernel in members
    }


def _number(address: str, base: int) -> int:
    return int(IPv4Network(address).network_address) - base


async def free(connection: Connection, sessions: Collection[SessionId] | None = None) -> int:
    """Give back the networks of sessions that have ended and of which no host has anything left; of these, or of all."""
    finals = ", ".join(f"'{status}'" for status in sorted(FINAL))
    status = await connection.execute(
        f"""
        DELETE FROM cluster_networks n USING sessions s
        WHERE s.id = n.session_id AND s.status IN ({finals}) AND ($1::uuid[] IS NULL OR s.id = ANY($1::uuid[]))
            AND NOT EXISTS (SELECT FROM kernels k WHERE k.session_id = s.id AND k.want <> 'NONE'
                AND k.observed IS DISTINCT FROM 'GONE')
        """,
        None if sessions is None else list(sessions),
    )
    return int(status.rsplit(" ", 1)[-1])


# -- who belongs to it -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A kernel of a cluster's present attempt."""

    id: KernelId
    role: str
    index: int
    observed: KernelState | None
    slots: Mapping[str, int]
    spec: Mapping[str, Any]


async def members(connection: Connection, session_id: SessionId) -> list[Member]:
    """By rank, those included that have not been placed yet."""
    rows = await connection.fetch(
        """
        SELECT k.id, k.role, k.idx, k.observed, k.slots, k.spec FROM kernels k
        JOIN sessions s ON s.id = k.session_id AND s.attempt = k.attempt
        WHERE s.id = $1 AND k.left_at IS NULL ORDER BY k.id <> s.main_kernel_id, k.role, k.idx
        """,
        session_id,
    )
    return [
        Member(
            id=KernelId(row["id"]),
            role=row["role"],
            index=row["idx"],
            observed=KernelState(row["observed"]) if row["observed"] else None,
            slots=row["slots"],
            spec=row["spec"],
        )
        for row in rows
    ]


async def model_of_workers(connection: Connection, session_id: SessionId) -> Mapping[str, Any]:
    """{role, index, slots, spec} of the worker that came last, also when it has left; else of the main kernel."""
    row = await connection.fetchrow(
        """
        SELECT role, idx AS index, slots, spec FROM kernels WHERE session_id = $1
        ORDER BY role = 'worker' DESC, attempt DESC, created_at DESC LIMIT 1
        """,
        session_id,
    )
    assert row is not None
    return dict(row)


async def leave(connection: Connection, kernels: Sequence[KernelId], *, now: datetime) -> None:
    """Take kernels out of their cluster: what has a host goes there, what waits for one waits no longer."""
    await connection.execute(
        """
        UPDATE kernels SET left_at = $2, joining = false, want = CASE want WHEN 'RUN' THEN 'GONE' ELSE want END,
            generation = generation + 1, next_try_at = $2, tries = 0, claimed_by = NULL, claimed_until = NULL
        WHERE id = ANY($1::uuid[]) AND left_at IS NULL
        """,
        list(kernels),
        now,
    )
