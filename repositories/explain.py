"""What an explanation needs to know beside the scheduler's snapshot; nothing here is needed to place anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from domain.explain import Away
from domain.ids import AgentId, SessionId
from domain.placement import Scope
from domain.session import Session
from repositories.database import Connection
from repositories.resource_groups import groups_for

#: What a priority may be, where no limit says less.
MOST_PRIORITY = 100


async def away_hosts(connection: Connection, group: str, *, now: datetime) -> tuple[Away, ...]:
    """Hosts of the group that take no sessions now, and why."""
    rows = await connection.fetch(
        """
        SELECT id, architecture, schedulable, draining, uid IS NULL AS unknown FROM agents
        WHERE resource_group = $1 AND NOT (schedulable AND NOT lost AND uid IS NOT NULL AND lease_until > $2) ORDER BY id
        """,
        group,
        now,
    )
    return tuple(_away(row) for row in rows)


def _away(row: Mapping[str, Any]) -> Away:
    if row["unknown"]:
        code, text = "away", "has not reported yet"
    elif row["draining"]:
        code, text = "draining", "is being drained by an administrator"
    elif not row["schedulable"]:
        code, text = "cordoned", "cordoned: an administrator lets no sessions start there"
    else:
        code, text = "lost", "does not answer"
    return Away(id=AgentId(row["id"]), architecture=row["architecture"], code=code, text=text)


async def counted(connection: Connection, session_id: SessionId) -> dict[SessionId, dict[tuple[Scope, str], int]]:
    """What sessions that have been placed count for the limits that bind this one."""
    rows = await connection.fetch(
        """
        SELECT u.session_id, u.scope, u.scope_id, u.name, u.amount FROM quota_uses u JOIN quota_uses own
            ON own.session_id = $1 AND (own.scope, own.scope_id, own.name) = (u.scope, u.scope_id, u.name)
        WHERE u.placed AND u.name <> 'pending_sessions'
        """,
        session_id,
    )
    found: dict[SessionId, dict[tuple[Scope, str], int]] = {}
    for row in rows:
        found.setdefault(SessionId(row["session_id"]), {})[(row["scope"], row["scope_id"]), row["name"]] = row["amount"]
    return found


async def most_priority(connection: Connection, session_id: SessionId) -> int:
    """That limits allow the session's owner."""
    least = await connection.fetchval(
        """
        SELECT min(q.max_amount) FROM quotas q JOIN sessions s ON (q.scope, q.scope_id) IN (
            ('keypair', s.access_key), ('user', s.user_id::text), ('project', s.project_id::text), ('domain', s.domain))
        WHERE s.id = $1 AND q.name = 'priority'
        """,
        session_id,
    )
    return MOST_PRIORITY if least is None else min(MOST_PRIORITY, int(least))


async def groups_of_owner(connection: Connection, session: Session) -> tuple[str, ...]:
    """Groups in which the session could have been asked for."""
    groups = await groups_for(connection, user_id=session.user_id, projects=[session.project], domain=session.domain)
    return tuple(group["name"] for group in groups if group["allowed"] and group["active"])


async def unmet(connection: Connection, session_id: SessionId) -> list[dict[str, Any]]:
    """{id, name, status, condition} of the sessions that it still waits for."""
    rows = await connection.fetch(
        """
        SELECT o.id, o.name, o.status, d.condition FROM session_dependencies d JOIN sessions o ON o.id = d.depends_on_id
        WHERE d.session_id = $1 AND d.met_at IS NULL ORDER BY o.created_at, o.id
        """,
        session_id,
    )
    return [dict(row) for row in rows]
