"""What a session holds, changed while it waits or runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from domain.errors import ResourceUnavailable
from domain.ids import AgentId, KernelId
from domain.resources import ResourceSlot
from repositories.database import Connection

#: What is older says nothing of now.
_FRESH: Final = timedelta(seconds=90)


async def memory_in_use(connection: Connection, kernel_id: KernelId, *, now: datetime) -> int | None:
    """MiB, rounded up, as its host told last; None when it has not told lately."""
    used: int | None = await connection.fetchval(
        "SELECT mem_bytes FROM samples WHERE kernel_id = $1 AND at > $2 ORDER BY at DESC LIMIT 1",
        kernel_id,
        now - _FRESH,
    )
    return None if used is None else -(-used // (1 << 20))


async def reallocate(
    connection: Connection, kernel_id: KernelId, agent_id: AgentId | None, slots: Mapping[str, int], *, now: datetime
) -> None:
    """Give one kernel these slots: in the queue or on its host, which is told by its next intent.

    Inside the transaction that has locked the session. Raises ResourceUnavailable when its host has not that much free.
    """
    await connection.execute(
        """
        UPDATE kernels SET slots = $2, spec = spec || jsonb_build_object('slots', $2::jsonb),
            generation = generation + CASE want WHEN 'RUN' THEN 1 ELSE 0 END,
            next_try_at = CASE want WHEN 'RUN' THEN $3::timestamptz ELSE next_try_at END, tries = 0, claimed_by = NULL,
            claimed_until = NULL
        WHERE id = $1
        """,
        kernel_id,
        dict(slots),
        now,
    )
    if agent_id is None:
        return
    held = await _changed(connection, kernel_id, agent_id, {name: slots[name] for name in ("cpu", "mem")})
    await connection.execute(
        "DELETE FROM allocations WHERE kernel_id = $1 AND name = ANY($2::text[])", kernel_id, list(held)
    )
    await connection.execute(
        """
        INSERT INTO allocations (kernel_id, agent_id, name, amount)
        SELECT $1, $2, name, amount FROM unnest($3::text[], $4::bigint[]) AS a(name, amount)
        """,
        kernel_id,
        agent_id,
        list(held),
        list(held.values()),
    )


async def _changed(
    connection: Connection, kernel_id: KernelId, agent_id: AgentId, held: Mapping[str, int]
) -> dict[str, int]:
    """Of these, what the kernel does not hold already; its host has room for it.

    Locks the host's rows in the order of the triggers, which write them and check it again.
    """
    rows = await connection.fetch(
        """
        SELECT r.name, greatest(r.reported - r.used, 0) AS free, coalesce(a.amount, 0) AS own FROM resources r
        LEFT JOIN allocations a ON a.kernel_id = $2 AND a.agent_id = r.agent_id AND a.name = r.name
        WHERE r.agent_id = $1 AND r.name = ANY($3::text[]) ORDER BY r.agent_id, r.name FOR NO KEY UPDATE OF r
        """,
        agent_id,
        kernel_id,
        list(held),
    )
    for row in rows:
        if held[row["name"]] > row["own"] and held[row["name"]] - row["own"] > row["free"]:
            most = ResourceSlot.from_units({row["name"]: row["own"] + row["free"]}).to_json()
            asked = ResourceSlot.from_units({row["name"]: held[row["name"]]}).to_json()
            raise ResourceUnavailable(
                f"Its host has not enough free for {row['name']}={asked[row['name']]}: at most {most.get(row['name'], 0)} at "
                "the moment.",
                most=most.get(row["name"], 0),
            )
    return {row["name"]: held[row["name"]] for row in rows if held[row["name"]] != row["own"]}
