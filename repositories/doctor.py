"""What `moorage doctor` asks the database about itself and about the fleet."""

from __future__ import annotations

from typing import Any, Final

from repositories.database import Connection

_SETTINGS: Final = (
    "server_version",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "max_connections",
    "idle_in_transaction_session_timeout",
)


async def settings(connection: Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(_SETTINGS))
    return {row["name"]: row["setting"] for row in rows}


async def facts(connection: Connection) -> dict[str, Any]:
    """{now, revision}; the revision is None before the first migration."""
    revision = None
    if await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
        revision = await connection.fetchval("SELECT version_num FROM alembic_version")
    return {"now": await connection.fetchval("SELECT clock_timestamp()"), "revision": revision}


async def fleet(connection: Connection) -> dict[str, Any]:
    """{managers: seen within a minute, agents: [{id, lost, seen_at, version, warnings, quarantined}]}"""
    agents = await connection.fetch(
        """
        SELECT id, lost, seen_at, version, info -> 'warnings' AS warnings,
            coalesce(jsonb_array_length(info -> 'quarantined'), 0) AS quarantined
        FROM agents WHERE seen_at IS NOT NULL ORDER BY id
        """
    )
    managers = await connection.fetchval(
        "SELECT count(*) FROM managers WHERE seen_at > clock_timestamp() - interval '1 minute'"
    )
    return {"managers": managers, "agents": [dict(row) for row in agents]}
