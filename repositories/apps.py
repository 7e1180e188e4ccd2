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
from domain.principal import Principal, Role
from repositories import tables
from repositories.database import Connection
from repositories.template import Scope

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


_SELECT: Final = """
    SELECT t.id, t.name, CASE WHEN t.user_id IS NOT NULL THEN 'user' WHEN t.project_id IS NOT NULL THEN 'project'
            ELSE 'domain' END AS scope, coalesce(u.email, p.name, t.domain) AS of,
        coalesce(u.domain, p.domain, t.domain) AS owner_domain, t.created_by, v.version, t.version AS latest, v.definition,
        v.archive_bytes, v.archive_sha256, t.created_at, v.created_at AS changed_at
    FROM apps t
    LEFT JOIN users u ON u.id = t.user_id LEFT JOIN projects p ON p.id = t.project_id
    JOIN app_versions v ON v.app_id = t.id AND v.version = coalesce($1,
        (SELECT max(n.version) FROM app_versions n WHERE n.app_id = t.id))
"""
#: $2 who looks, $3 of which domain, $4 whether at all of it, $5 whether at everything
_VISIBLE: Final = """
    ($5 OR t.user_id = $2 OR t.domain = $3
        OR t.project_id IN (SELECT m.project_id FROM project_members m WHERE m.user_id = $2)
        OR $4 AND coalesce(u.domain, p.domain) = $3)
"""
_OF_SCOPE: Final = """
    user_id IS NOT DISTINCT FROM $1 AND project_id IS NOT DISTINCT FROM $2 AND domain IS NOT DISTINCT FROM $3
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
        by_name = "t.name = $6 AND (t.user_id IS NULL OR t.user_id = $2)"  # another's is named by its id
        rows = await self._connection.fetch(
            f"""{_SELECT} WHERE {"t.id = $6" if app_id is not None else by_name} AND {_VISIBLE}
            ORDER BY t.user_id IS NOT DISTINCT FROM $2 DESC, t.project_id IS NULL, t.domain IS NULL, t.created_at LIMIT 2
            """,
            *self._seen_by(version),
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
            f"{_SELECT} WHERE {_VISIBLE} ORDER BY t.name, t.created_at", *self._seen_by(None)
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
            f"SELECT id FROM apps WHERE {_OF_SCOPE} AND name = $4 FOR NO KEY UPDATE", *_of(scope), name
        )
        return found

    async def create(self, app_id: UUID, name: str, scope: Scope) -> UUID:
        """An app without a version yet; the one that is there when somebody else was faster. Raises QuotaExceeded."""
        number = await self._connection.fetchval(f"SELECT count(*) FROM apps WHERE {_OF_SCOPE}", *_of(scope))
        if number >= MOST_APPS:
            raise QuotaExceeded(f"There are {number} apps already, which is the most; remove some first.")
        await self._connection.execute(
            """
            INSERT INTO apps (id, name, user_id, project_id, domain, created_by, version, created_at, changed_at)
            VALUES ($4, $5, $1, $2, $3, $6, 0, $7, $7) ON CONFLICT DO NOTHING
            """,
            *_of(scope),
            app_id,
            name,
            self._viewer.user_id,
            self._now,
        )
        there = await self.of_scope(name, scope)
        assert there is not None
        return there

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
        await self._connection.execute(
            f"""
            DELETE FROM app_versions v WHERE app_id = $1 AND version <= $2 AND NOT EXISTS (
                SELECT FROM workers w JOIN sessions s ON s.id = w.session_id
                WHERE w.app_id = $1 AND w.app_version = v.version AND {_NOT_FINAL})
            """,
            app_id,
            version - MOST_VERSIONS,
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
            WHERE app_id IN (SELECT id FROM apps WHERE {_OF_SCOPE})
            """,
            *_of(scope),
        )
        if more_bytes and stored + more_bytes > MOST_STORED_BYTES:
            raise QuotaExceeded(
                f"The archives of your apps have {stored >> 20} MiB, and at most {MOST_STORED_BYTES >> 20} MiB are kept; "
                "remove versions with 'moorage app rm NAME@VERSION'."
            )

    def _seen_by(self, version: int | None) -> tuple[object, ...]:
        viewer = self._viewer
        return version, viewer.user_id, viewer.domain, viewer.role is Role.DOMAIN_ADMIN, viewer.sees_all


async def archive_chunk(connection: Connection, app_id: UUID, version: int, number: int) -> bytes | None:
    """One piece of an archive, from 0 on; None after the last."""
    found: bytes | None = await connection.fetchval(
        "SELECT content FROM app_chunks WHERE app_id = $1 AND version = $2 AND number = $3", app_id, version, number
    )
    return found


def _of(scope: Scope) -> tuple[object, ...]:
    return scope.user_id, scope.project_id, scope.domain


def _app(row: Mapping[str, Any]) -> App:
    return App(**{**dict(row), "definition": AppDefinition.from_json(row["definition"])})
