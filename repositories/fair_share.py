"""What users hold and held in resource groups, decayed by the groups' half-lives.

Of an amount q that was held from a to b, there counts at T the integral of q * 2^(-(T-t)/H) over t, which is
q * H/ln2 * (2^(-(T-b)/H) - 2^(-(T-a)/H)). What has ended is summed up in `fair_usage`, which decays as a whole; what
is not there yet, and what is still held, is read from `usage`. So the sum is exact at any time, whoever counts when.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from domain.placement import Share
from repositories.database import Connection

KINDS: Final = ("cpu", "mem", "gpu")
#: Of a row of `usage`: devices are counted whole, or by their share.
_KIND: Final = "CASE WHEN u.name LIKE 'gpu/%' THEN 'gpu' ELSE u.name END"
_QUANTITY: Final = "CASE WHEN u.name LIKE 'gpu/%' THEN u.share ELSE u.amount END"
_COUNTS: Final = "(u.name IN ('cpu', 'mem', 'gpu') OR u.name LIKE 'gpu/%')"


def _seconds(since: str, until: str) -> str:
    return f"date_part('epoch', {until} - {since})"


def _weight(since: str, until: str) -> str:
    """What is as old as this counts so much. After a hundred half-lives nothing: PostgreSQL takes no underflow."""
    age = _seconds(since, until)
    return f"CASE WHEN {age} > 100 * g.h THEN 0 ELSE power(2::double precision, -greatest({age}, 0) / g.h) END"


def _integral(until: str) -> str:
    """Of a row of `usage`, at this time, as a part of H/ln2."""
    return f"({_weight(f'coalesce(u.until_at, {until})', until)} - {_weight('u.since_at', until)})"


_SUMS: Final = ", ".join(
    f"sum({what}) FILTER (WHERE kind = '{kind}') AS {what}_{kind}" for kind in KINDS for what in ("held", "past")
)
#: $1 now, $2 groups or NULL.
_SHARES: Final = f"""
    WITH g AS MATERIALIZED (
        SELECT name, half_life_seconds AS h FROM resource_groups WHERE $2::text[] IS NULL OR name = ANY($2)
    ), parts AS (
        SELECT u.resource_group, u.user_id, {_KIND} AS kind,
            CASE WHEN u.until_at IS NULL THEN {_QUANTITY} ELSE 0 END AS held, {_QUANTITY} * {_integral("$1::timestamptz")} AS past
        FROM usage u JOIN g ON g.name = u.resource_group WHERE NOT u.counted AND {_COUNTS}
        UNION ALL
        SELECT f.resource_group, f.user_id, f.name, 0, f.amount * ln(2::double precision) / g.h * {_weight("f.at", "$1::timestamptz")}
        FROM fair_usage f JOIN g ON g.name = f.resource_group
        UNION ALL
        SELECT w.resource_group, w.user_id, '', 0, 0 FROM fair_shares w JOIN g ON g.name = w.resource_group
    ), sums AS (
        SELECT resource_group, user_id, {_SUMS}
        FROM parts GROUP BY 1, 2
    )
    SELECT s.*, coalesce(w.weight, 1) AS weight FROM sums s LEFT JOIN fair_shares w USING (resource_group, user_id)
    ORDER BY 1, 2
"""


async def shares(connection: Connection, now: datetime, groups: Sequence[str] | None = None) -> tuple[Share, ...]:
    """Of everybody who holds or held something in these groups, or weighs more or less than 1 there."""
    rows = await connection.fetch(_SHARES, now, None if groups is None else list(groups))
    return tuple(
        Share(
            resource_group=row["resource_group"],
            user_id=row["user_id"],
            held={kind: amount for kind in KINDS if (amount := row[f"held_{kind}"])},
            past={kind: amount for kind in KINDS if (amount := row[f"past_{kind}"])},
            weight=row["weight"],
        )
        for row in rows
    )


#: $1 now, $2 rows at most. One writer at a time, in the order of the key; `at` never goes back.
_COUNT: Final = f"""
    WITH g AS MATERIALIZED (SELECT name, half_life_seconds AS h FROM resource_groups), ended AS MATERIALIZED (
        SELECT id FROM usage WHERE NOT counted AND until_at IS NOT NULL ORDER BY until_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
    ), u AS (
        UPDATE usage u SET counted = true FROM ended e WHERE u.id = e.id
        RETURNING u.resource_group, u.user_id, u.name, u.amount, u.share, u.since_at, u.until_at
    ), moment AS (
        SELECT greatest($1::timestamptz, max(until_at)) AS at FROM u
    ), sums AS (
        SELECT u.resource_group, u.user_id, {_KIND} AS name, m.at,
            sum({_QUANTITY} * g.h / ln(2::double precision) * {_integral("m.at")}) AS amount
        FROM u JOIN g ON g.name = u.resource_group JOIN users p ON p.id = u.user_id CROSS JOIN moment m
        WHERE {_COUNTS} GROUP BY 1, 2, 3, 4
    ), merged AS (
        INSERT INTO fair_usage AS f (resource_group, user_id, name, amount, at)
        SELECT resource_group, user_id, name, amount, at FROM sums WHERE amount > 0 ORDER BY 1, 2, 3
        ON CONFLICT (resource_group, user_id, name) DO UPDATE SET at = greatest(f.at, excluded.at), amount = (
            SELECT f.amount * {_weight("f.at", "greatest(f.at, excluded.at)")}
                + excluded.amount * {_weight("excluded.at", "greatest(f.at, excluded.at)")}
            FROM g WHERE g.name = f.resource_group)
    )
    SELECT count(*) FROM u
"""


async def count_ended(connection: Connection, *, now: datetime, limit: int = 5000) -> int:
    """Sum up what has ended. Inside the caller's transaction, of which only one is to do this; how many rows it took."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM usage WHERE NOT counted AND until_at IS NOT NULL)"):
        return 0
    await connection.execute("SELECT FROM resource_groups ORDER BY name FOR SHARE")  # half-lives stay as they are
    return int(await connection.fetchval(_COUNT, now, limit))


async def recount(connection: Connection, group: str, *, now: datetime) -> None:
    """The group's half-life has changed: sum up anew, exactly, as far as usage is kept. The caller has locked the group."""
    await connection.execute("DELETE FROM fair_usage WHERE resource_group = $1", group)
    await connection.execute(
        f"""
        INSERT INTO fair_usage (resource_group, user_id, name, amount, at)
        SELECT u.resource_group, u.user_id, {_KIND}, sum({_QUANTITY} * g.h / ln(2::double precision) * {_integral("$2")}), $2
        FROM usage u JOIN (SELECT name, half_life_seconds AS h FROM resource_groups) g ON g.name = u.resource_group
        JOIN users p ON p.id = u.user_id
        WHERE u.resource_group = $1 AND u.counted AND {_COUNTS}
            AND u.until_at > $2::timestamptz - make_interval(secs => 100 * g.h) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        """,
        group,
        now,
    )
