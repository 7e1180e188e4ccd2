"""What live sessions hold of limits, and the limits themselves: own ones, and those that policies set."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from domain.errors import QuotaExceeded, RequestInProgress
from domain.limits import Wanted, in_words
from repositories import tables
from repositories.database import Connection

Scope = tuple[str, str]

#: The scopes of a session `s`.
SCOPES_OF: Final = """
    (VALUES ('keypair', s.access_key), ('user', s.user_id::text), ('project', s.project_id::text), ('domain', s.domain))
        AS v(scope, scope_id)
"""
#: What a session `s` is charged, by the names of limits: for all of its kernels, wherever they are.
CHARGES: Final = """
    (
        SELECT 'sessions' AS name, 1::bigint AS amount UNION ALL SELECT 'pending_sessions', 1
        UNION ALL SELECT 'priority', s.priority WHERE s.priority > 0
        UNION ALL SELECT 'lifetime', ceil(s.timeout_seconds)::bigint WHERE s.timeout_seconds > 0
        UNION ALL SELECT p.prefix || e.key, sum(e.value::bigint)::bigint
            FROM kernels k, jsonb_each_text(k.slots) e, (VALUES (''), ('session.')) AS p(prefix)
            WHERE k.session_id = s.id AND k.attempt = s.attempt AND k.left_at IS NULL
            GROUP BY 1 HAVING sum(e.value::bigint) > 0
    )
"""
#: The limits that bind one session, locked in the order of the triggers, with what it is charged of each.
_BOUND: Final = f"""
    held AS MATERIALIZED (
        SELECT s.id, s.status, q.scope, q.scope_id, q.name, q.max_amount FROM sessions s CROSS JOIN LATERAL {SCOPES_OF}
        JOIN quotas q ON q.scope = v.scope AND q.scope_id = v.scope_id
        WHERE s.id = $1 AND s.session_type <> 'system' ORDER BY q.scope, q.scope_id, q.name FOR NO KEY UPDATE OF q
    ), bound AS MATERIALIZED (
        SELECT h.id, h.scope, h.scope_id, h.name, c.amount, h.status <> 'PENDING' AS placed
        FROM held h JOIN sessions s ON s.id = h.id CROSS JOIN LATERAL {CHARGES} c WHERE c.name = h.name
    )
"""
_INSERT: Final = "INSERT INTO quota_uses (session_id, scope, scope_id, name, amount, placed)"
#: $2: of which limits it takes what there is, because nobody has chosen: `lifetime`, `priority`.
_CHARGE: Final = f"""
    WITH {_BOUND}, asked AS (
        SELECT b.*, CASE WHEN name = ANY($2::text[]) THEN (SELECT min(h.max_amount) FROM held h WHERE h.name = b.name) END AS most
        FROM bound b
    ), charged AS (
        {_INSERT} SELECT id, scope, scope_id, name, least(amount, most), placed FROM asked WHERE least(amount, most) > 0
    )
    SELECT h.name, h.max_amount, h.scope, quota_owner(h.scope, h.scope_id) AS of FROM held h JOIN sessions s ON s.id = h.id
    WHERE h.name = ANY($2::text[]) AND CASE h.name WHEN 'priority' THEN s.priority > h.max_amount
        WHEN 'lifetime' THEN coalesce(s.timeout_seconds, 'infinity') > h.max_amount END
    ORDER BY h.max_amount DESC, position(h.scope IN 'keypair user project domain') DESC
"""
_CHARGE_ANEW: Final = f"""
    WITH {_BOUND}, gone AS (
        DELETE FROM quota_uses u WHERE u.session_id = $1
            AND NOT EXISTS (SELECT FROM bound b WHERE (b.scope, b.scope_id, b.name) = (u.scope, u.scope_id, u.name))
    )
    {_INSERT} SELECT id, scope, scope_id, name, amount, placed FROM bound
    ON CONFLICT (session_id, scope, scope_id, name) DO UPDATE SET amount = excluded.amount, placed = excluded.placed
        WHERE (quota_uses.amount, quota_uses.placed) IS DISTINCT FROM (excluded.amount, excluded.placed)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A lifetime or priority that is nobody's choice but the limit's."""

    amount: int
    message: str


async def charge(connection: Connection, session_id: UUID, chosen: Collection[str]) -> dict[str, Granted]:
    """Of a session that holds nothing yet: it asks for all that it would hold. Raises QuotaExceeded.

    What was not `chosen` of lifetime and priority is what the limits allow; by name, where that is less.
    """
    rows = await connection.fetch(_CHARGE, session_id, sorted({"lifetime", "priority"} - set(chosen)))
    return {
        row["name"]: Granted(
            amount=row["max_amount"],
            message=_GRANTED[row["name"]].format(
                in_words(row["name"], row["max_amount"]), f"{row['scope']} {row['of']}"
            ),
        )
        for row in rows
    }


_GRANTED: Final = {
    "lifetime": "It ends {} after its start: the limit lifetime of {}.",
    "priority": "Its priority is {}: the limit priority of {}.",
}


async def charge_anew(connection: Connection, session_id: UUID) -> None:
    """Its kernels, priority or lifetime have changed, in this transaction. Raises QuotaExceeded for what has grown."""
    await connection.execute(_CHARGE_ANEW, session_id)


async def lock_limits(connection: Connection, session_id: UUID) -> None:
    """Before resources are locked: whoever locks both begins with the limits. And not while others set limits."""
    await connection.execute("LOCK TABLE quota_uses IN ROW EXCLUSIVE MODE")
    await connection.execute(
        f"""
        SELECT FROM quotas q JOIN (SELECT v.* FROM sessions s CROSS JOIN LATERAL {SCOPES_OF} WHERE s.id = $1) v
            USING (scope, scope_id) ORDER BY q.scope, q.scope_id, q.name FOR NO KEY UPDATE OF q
        """,
        session_id,
    )


#: For the moment that it takes to count what is in use already.
_NO_LIMIT: Final = 2**60


class LimitRepository:
    """Every writing method begins with `alone`: no session is made, placed or ended while its use is counted."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def alone(self) -> None:
        """Raises RequestInProgress when it does not come to that within some seconds.

        Whoever waits for the lock makes all others wait behind it, also one for whom somebody waits who has it: so it waits
        for short times only, and lets others go first in between.
        """
        for patience in (50, 100, 200, 400, 800, 800, 800, 800):
            try:
                async with self._connection.transaction():
                    await self._connection.execute(f"SET LOCAL lock_timeout = {patience}")
                    await self._connection.execute("LOCK TABLE quota_uses IN SHARE ROW EXCLUSIVE MODE")
                    await self._connection.execute("SET LOCAL lock_timeout = 0")
                    return
            except asyncpg.LockNotAvailableError:
                await asyncio.sleep(patience / 2000)
        raise RequestInProgress("Too much is being created and ended just now; ask again in a moment.")

    async def limits(self, scopes: Collection[Scope] | None, *, viewer: UUID) -> list[dict[str, Any]]:
        """Those of the scopes, or all. What belongs to users is counted for the user, or for the viewer."""
        keys = None if scopes is None else sorted(scopes)
        columns = (None, None) if keys is None else ([scope for scope, _ in keys], [scope_id for _, scope_id in keys])
        return [dict(row) for row in await self._connection.fetch(_LIST, *columns, viewer)]

    async def scopes_around(self, scope: Scope) -> set[Scope]:
        """A user's keypairs, projects and domain bind the user as well."""
        return {(row["scope"], row["scope_id"]) for row in await self._connection.fetch(_EVERYTHING_AROUND, *scope)}

    async def scopes_of_domain(self, domain: str) -> set[Scope]:
        """The domain, its projects, its users and their keypairs."""
        rows = await self._connection.fetch(
            """
            SELECT 'domain' AS scope, $1::text AS scope_id
            UNION ALL SELECT 'project', id::text FROM projects WHERE domain = $1
            UNION ALL SELECT 'user', id::text FROM users WHERE domain = $1
            UNION ALL SELECT 'keypair', k.access_key FROM keypairs k JOIN users u ON u.id = k.user_id WHERE u.domain = $1
            """,
            domain,
        )
        return {(row["scope"], row["scope_id"]) for row in rows}

    async def resources(self) -> set[str]:
        """What hosts have, by kinds."""
        rows = await self._connection.fetch("SELECT DISTINCT split_part(name, '/', 1) AS kind FROM resources")
        return {row["kind"] for row in rows}

    async def forget(self, scope: Scope) -> None:
        """Of a user with all keypairs, a project or a keypair that will be removed."""
        for table in ("policy_assignments", "quotas"):
            await self._connection.execute(
                f"""
                DELETE FROM {table} WHERE (scope, scope_id) = ($1, $2) OR $1 = 'user' AND scope = 'keypair'
                    AND scope_id IN (SELECT access_key FROM keypairs WHERE user_id::text = $2)
                """,
                *scope,
            )

    async def set_own(self, scope: Scope, wanted: Sequence[Wanted], lifted: Collection[str]) -> None:
        """What is set for a scope by itself; it comes before what a policy says. `lifted` falls back to the policy's."""
        await self.alone()
        await self._connection.execute(
            "DELETE FROM quotas WHERE (scope, scope_id) = ($1, $2) AND name = ANY($3::text[]) AND policy IS NULL",
            *scope,
            list(lifted),
        )
        await self._begin([(*scope, one.name) for one in wanted])
        await self._connection.execute(
            """
            UPDATE quotas q SET max_amount = w.amount, waits = w.waits, policy = NULL
            FROM unnest($3::text[], $4::bigint[], $5::boolean[]) AS w(name, amount, waits)
            WHERE q.scope = $1 AND q.scope_id = $2 AND q.name = w.name
            """,
            *scope,
            *columns(wanted),
        )
        if lifted:
            await self.follow([scope])

    async def _begin(self, limits: Sequence[tuple[str, str, str]]) -> None:
        """Rows for limits that are not there yet, with what live sessions hold of them."""
        made = await self._connection.fetch(
            """
            INSERT INTO quotas (scope, scope_id, name, max_amount)
            SELECT w.scope, w.scope_id, w.name, $4 FROM unnest($1::text[], $2::text[], $3::text[]) AS w(scope, scope_id, name)
            ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING RETURNING scope, scope_id, name
            """,
            [scope for scope, _, _ in limits],
            [scope_id for _, scope_id, _ in limits],
            [name for _, _, name in limits],
            _NO_LIMIT,
        )
        if not made:
            return
        await self._connection.execute(
            f"""
            {_INSERT}
            SELECT s.id, w.scope, w.scope_id, w.name, c.amount, s.status <> 'PENDING'
            FROM sessions s CROSS JOIN LATERAL {SCOPES_OF}
            JOIN unnest($1::text[], $2::text[], $3::text[]) AS w(scope, scope_id, name)
                ON w.scope = v.scope AND w.scope_id = v.scope_id
            CROSS JOIN LATERAL {CHARGES} c
            WHERE {tables.NOT_FINAL.replace("status", "s.status")} AND s.session_type <> 'system' AND c.name = w.name
            """,
            *([row[column] for row in made] for column in ("scope", "scope_id", "name")),
        )

    async def follow(self, scopes: Sequence[Scope]) -> None:
        """Make the limits of these scopes what their policies say, but for those that they have of their own."""
        keys = [scope for scope, _ in scopes], [scope_id for _, scope_id in scopes]
        rows = await self._connection.fetch(
            """
            SELECT a.scope, a.scope_id, l.name, l.max_amount, l.waits, l.policy
            FROM unnest($1::text[], $2::text[]) AS w(scope, scope_id)
            JOIN policy_assignments a USING (scope, scope_id) JOIN policy_limits l USING (policy) ORDER BY 1, 2, 3
            """,
            *keys,
        )
        columns = [[row[n] for row in rows] for n in ("scope", "scope_id", "name", "max_amount", "waits", "policy")]
        await self._connection.execute(
            """
            DELETE FROM quotas q USING unnest($1::text[], $2::text[]) AS w(scope, scope_id)
            WHERE q.scope = w.scope AND q.scope_id = w.scope_id AND q.policy IS NOT NULL AND NOT EXISTS (
                SELECT FROM unnest($3::text[], $4::text[], $5::text[]) AS k(scope, scope_id, name)
                WHERE (k.scope, k.scope_id, k.name) = (q.scope, q.scope_id, q.name))
            """,
            *keys,
            *columns[:3],
        )
        own = await self._connection.fetch(
            """
            SELECT q.scope, q.scope_id, q.name FROM quotas q
            JOIN unnest($1::text[], $2::text[]) AS w(scope, scope_id) USING (scope, scope_id) WHERE q.policy IS NULL
            """,
            *keys,
        )
        kept = {tuple(row) for row in own}
        await self._begin([key for key in zip(*columns[:3], strict=True) if key not in kept])
        await self._connection.execute(
            """
            UPDATE quotas q SET max_amount = w.max_amount, waits = w.waits, policy = w.policy
            FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::text[], $7::boolean[])
                AS w(scope, scope_id, name, max_amount, waits, policy, own)
            WHERE NOT w.own AND q.scope = w.scope AND q.scope_id = w.scope_id AND q.name = w.name
            """,
            *columns,
            [key in kept for key in zip(*columns[:3], strict=True)],
        )


def columns(wanted: Sequence[Wanted]) -> tuple[list[str], list[int], list[bool]]:
    return [one.name for one in wanted], [one.amount for one in wanted], [one.waits for one in wanted]


_EVERYTHING_AROUND: Final = """
    WITH w AS (SELECT $1::text AS scope, $2::text AS scope_id)
    SELECT scope, scope_id FROM w
    UNION SELECT 'keypair', k.access_key FROM w JOIN keypairs k ON w.scope = 'user' AND k.user_id::text = w.scope_id
    UNION SELECT 'project', m.project_id::text
        FROM w JOIN project_members m ON w.scope = 'user' AND m.user_id::text = w.scope_id
    UNION SELECT 'domain', u.domain FROM w JOIN users u ON w.scope = 'user' AND u.id::text = w.scope_id
"""
_LIST: Final = """
    SELECT q.scope, q.scope_id, quota_owner(q.scope, q.scope_id) AS of, q.name, q.max_amount AS max,
        CASE q.name WHEN 'images' THEN (SELECT count(*) FROM images i WHERE i.owner_id = o.id AND i.kind <> 'registered')
            WHEN 'volumes' THEN (SELECT count(*) FROM volumes w WHERE w.user_id = o.id AND w.status <> 'removing') ELSE q.used END AS used,
        q.queued, q.waits, q.policy
    FROM quotas q CROSS JOIN LATERAL (SELECT CASE q.scope WHEN 'user' THEN q.scope_id::uuid WHEN 'keypair' THEN (
        SELECT user_id FROM keypairs WHERE access_key = q.scope_id) ELSE $3::uuid END AS id) o
    WHERE $1::text[] IS NULL OR (q.scope, q.scope_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
    ORDER BY position(q.scope IN 'keypair user project domain'), 3, q.name LIKE 'session.%', q.name
"""
#: Of what belongs to users: each user's number, whichever scope limits it.
_MOST_OWNED: Final = """
    SELECT q.max_amount, q.scope, quota_owner(q.scope, q.scope_id) AS of FROM users u CROSS JOIN LATERAL (
        SELECT 'user' AS scope, u.id::text AS scope_id UNION ALL SELECT 'domain', u.domain
        UNION ALL SELECT 'keypair', k.access_key FROM keypairs k WHERE k.user_id = u.id
        UNION ALL SELECT 'project', m.project_id::text FROM project_members m WHERE m.user_id = u.id
    ) v JOIN quotas q USING (scope, scope_id)
    WHERE u.id = $1 AND q.name = $2 ORDER BY 1, position(q.scope IN 'keypair user project domain') LIMIT 1
"""


async def check_owned(connection: Connection, name: str, user_id: UUID, there: int, *, otherwise: int | None) -> None:
    """One more of them may be made. Raises QuotaExceeded; the caller has locked what it has counted."""
    row = await connection.fetchrow(_MOST_OWNED, user_id, name)
    most = otherwise if row is None else row["max_amount"]
    if most is None or there < most:
        return
    whose = "everybody" if row is None else f"{row['scope']} {row['of']}"
    noun, is_there = name.removesuffix("s"), f"{there} {'is' if there == 1 else 'are'}"
    raise QuotaExceeded(
        f"The limit {name} of {whose} is {in_words(name, most)} for each user, and {is_there} there already; "
        f"remove one with 'moorage {noun} rm', or ask an administrator for more.",
        limit=name,
        max=most,
        used=there,
    )
