"""Apps: of a user, a project or a domain, their versions, and the archives that these are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.apps import AppDefinition, parse_app
from domain.errors import AppNotFound, InvalidRequest, QuotaExceeded, StillInUse
from domain.names import as_uuid
from domain.principal import Principal
from repositories import tables
from repositories.database import Connection
from repositories.scope import BY_NAME, NEAREST_FIRST, OF_SCOPE, OWNER_COLUMNS, OWNER_JOINS, VISIBLE, Scope, seen_by

#: Of one app; older ones that no live session is made of are forgotten.
MOST_VERSIONS: Final = 50
#: Of one user, project or domain.
MOST_APPS: Final = 500
#: Of the archives of one user, project or domain, all versions together.
MOST_STORED_BYTES: Final = 4 * 1024**3
_NOT_FINAL: Final = tables.NOT_FINAL.replace("status", "s.status")


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """One version of an app; the newest, unless another was asked for."""

    id: UUID
    name: str
    scope: str  #: user, project, domain
    of: str  #: the user's e-mail address, the project's or the domain's name
    owner_domain: str
    created_by: UUID | None
    version: int
    latest: int
    definition: AppDefinition
    archive_bytes: int
    archive_sha256: str | None
    created_at: datetime
    changed_at: datetime


#: `t.version` counts on when the newest is removed.
_SELECT: Final = f"""
    SELECT t.id, t.name, {OWNER_COLUMNS}, t.created_by, v.version, n.latest, v.definition, v.archive_bytes, v.archive_sha256,
        t.created_at, v.created_at AS changed_at
    FROM apps t {OWNER_JOINS}
    CROSS JOIN LATERAL (SELECT max(o.version) AS latest FROM app_versions o WHERE o.app_id = t.id) n
    JOIN app_versions v ON v.app_id = t.id AND v.version = coalesce($1, n.latest)
"""


class AppRepository:
    """As far as `viewer` may see."""

    def __init__(self, connection: Connection, viewer: Principal, *, now: datetime) -> None:
        self._connection = connection
        self._viewer = viewer
        self._now = now

    async def get(self, named: str) -> App:
        """`NAME`, `ID`, each with or without `@VERSION`. By name: the viewer's own first, then those of projects, then
        the domain's. Raises AppNotFound."""
        name, version = parse_app(named)
        app_id = as_uuid(name)
        condition = "t.id = $6" if app_id is not None else BY_NAME
        rows = await self._connection.fetch(
            f"{_SELECT} WHERE {condition} AND {VISIBLE} ORDER BY {NEAREST_FIRST} LIMIT 2",
            version,
            *seen_by(self._viewer),
            app_id or name,
        )
        if not rows:
            raise AppNotFound(
                f"There is no app '{named[:100]}', or it is not visible to you; see 'moorage app ls'.", app=named[:100]
            )
        found = [_app(row) for row in rows]
        if len(found) == 2 and found[0].scope == found[1].scope == "project":
            raise InvalidRequest(
                f"Several projects of yours have an app '{name[:80]}'; name it by its id.", field="app"
            )
        return found[0]

    async def all(self) -> list[App]:
        rows = await self._connection.fetch(
            f"{_SELECT} WHERE {VISIBLE} ORDER BY t.name, t.created_at", None, *seen_by(self._viewer)
        )
        return [_app(row) for row in rows]

    async def versions(self, app_id: UUID) -> list[dict[str, Any]]:
        """{version, by, at, archive_bytes}, the newest first."""
        rows = await self._connection.fetch(
            """
            SELECT version, by_access_key AS by, created_at AS at, archive_bytes FROM app_versions
            WHERE app_id = $1 ORDER BY version DESC
            """,
            app_id,
        )
        return [dict(row) for row in rows]

    async def of_scope(self, name: str, scope: Scope) -> UUID | None:
        """The app of this name there, locked."""
        found: UUID | None = await self._connection.fetchval(
            f"SELECT id FROM apps WHERE {OF_SCOPE} AND name = $4 FOR NO KEY UPDATE", *scope.values, name
        )
        return found

    async def create(self, app_id: UUID, name: str, scope: Scope) -> bool:
        """An app without a version yet. False when there is one of this name now. Raises QuotaExceeded."""
        number = await self._connection.fetchval(f"SELECT count(*) FROM apps WHERE {OF_SCOPE}", *scope.values)
        if number >= MOST_APPS:
            raise QuotaExceeded(f"There are {number} apps already, which is the most; remove some first.")
        made = await self._connection.fetchval(
            """
            INSERT INTO apps (id, name, user_id, project_id, domain, created_by, version, created_at, changed_at)
            VALUES ($4, $5, $1, $2, $3, $6, 0, $7, $7) ON CONFLICT DO NOTHING RETURNING true
            """,
            *scope.values,
            app_id,
            name,
            self._viewer.user_id,
            self._now,
        )
        return made is not None

    async def add_version(
        self,
        app_id: UUID,
        scope: Scope,
        definition: AppDefinition,
        *,
        archive_bytes: int = 0,
        archive_sha256: str | None = None,
        chunks: Iterable[bytes] = (),
    ) -> App:
        """The app's next version; its row is locked. Raises QuotaExceeded."""
        await self._check_room(scope, archive_bytes)
        version = await self._connection.fetchval(
            "UPDATE apps SET version = version + 1, changed_at = $2 WHERE id = $1 RETURNING version", app_id, self._now
        )
        await self._connection.execute(
            """
            INSERT INTO app_versions (app_id, version, definition, archive_bytes, archive_sha256, by_access_key, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            app_id,
            version,
            definition.to_json(),
            archive_bytes,
            archive_sha256,
            str(self._viewer.access_key),
            self._now,
        )
        for number, content in enumerate(chunks):
            await self._connection.execute(
                "INSERT INTO app_chunks (app_id, version, number, content) VALUES ($1, $2, $3, $4)",
                app_id,
                version,
                number,
                content,
            )
        old = (app_id, version - MOST_VERSIONS)
        await self._connection.execute(  # see `employ`
            "SELECT FROM app_versions WHERE app_id = $1 AND version <= $2 FOR UPDATE", *old
        )
        await self._connection.execute(
            f"""
            DELETE FROM app_versions v WHERE app_id = $1 AND version <= $2 AND NOT EXISTS (
                SELECT FROM workers w JOIN sessions s ON s.id = w.session_id
                WHERE w.app_id = $1 AND w.app_version = v.version AND {_NOT_FINAL})
            """,
            *old,
        )
        return await self.get(f"{app_id}@{version}")

    async def remove(self, app: App, *, version: int | None = None) -> None:
        """All of it, or one version; the last one takes the app with it. Raises StillInUse while a live session is made
        of it."""
        await self._connection.execute("SELECT FROM apps WHERE id = $1 FOR UPDATE", app.id)
        await self._connection.execute("SELECT FROM app_versions WHERE app_id = $1 FOR UPDATE", app.id)  # see `employ`
        users = await self._connection.fetch(
            f"""
            SELECT s.name FROM workers w JOIN sessions s ON s.id = w.session_id
            WHERE w.app_id = $1 AND ($2::bigint IS NULL OR w.app_version = $2) AND {_NOT_FINAL} ORDER BY s.created_at LIMIT 3
            """,
            app.id,
            version,
        )
        if users:
            names = ", ".join(f"'{row['name']}'" for row in users)
            raise StillInUse(f"Sessions are made of this app that have not ended, such as {names}; end them first.")
        await self._connection.execute(
            "DELETE FROM app_versions WHERE app_id = $1 AND ($2::bigint IS NULL OR version = $2)", app.id, version
        )
        await self._connection.execute(
            "DELETE FROM apps WHERE id = $1 AND NOT EXISTS (SELECT FROM app_versions WHERE app_id = $1)", app.id
        )

    async def _check_room(self, scope: Scope, more_bytes: int) -> None:
        stored = await self._connection.fetchval(
            f"""
            SELECT coalesce(sum(archive_bytes), 0)::bigint FROM app_versions
            WHERE app_id IN (SELECT id FROM apps WHERE {OF_SCOPE})
            """,
            *scope.values,
        )
        if more_bytes and stored + more_bytes > MOST_STORED_BYTES:
            raise QuotaExceeded(
                f"The archives of your apps have {stored >> 20} MiB, and at most {MOST_STORED_BYTES >> 20} MiB are kept; "
                "remove versions with 'moorage app rm NAME@VERSION'."
            )


async def archive_chunk(connection: Connection, app_id: UUID, version: int, number: int) -> bytes | None:
    """One piece of an archive, from 0 on; None after the last."""
    found: bytes | None = await connection.fetchval(
        "SELECT content FROM app_chunks WHERE app_id = $1 AND version = $2 AND number = $3", app_id, version, number
    )
    return found


def _app(row: Mapping[str, Any]) -> App:
    return App(**{**dict(row), "definition": AppDefinition.from_json(row["definition"])})
