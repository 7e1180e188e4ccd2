"""Session templates: of a user, a project or a domain, every version of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import AlreadyExists, InvalidRequest, PreconditionFailed, TemplateNotFound
from domain.names import as_uuid
from domain.principal import Principal
from repositories.database import Connection
from repositories.scope import BY_NAME, NEAREST_FIRST, OF_SCOPE, OWNER_COLUMNS, OWNER_JOINS, VISIBLE, Scope, seen_by

#: Of one template; older ones are forgotten.
MOST_VERSIONS: Final = 100
#: Of one user, project or domain.
MOST_TEMPLATES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One version of a template; the newest, unless another was asked for."""

    id: UUID
    name: str
    scope: str  #: user, project, domain
    of: str  #: the user's e-mail address, the project's or the domain's name
    owner_domain: str
    created_by: UUID | None
    version: int
    latest: int
    document: Mapping[str, Any]
    source: str
    created_at: datetime
    changed_at: datetime


_SELECT: Final = f"""
    SELECT t.id, t.name, {OWNER_COLUMNS}, t.created_by, v.version, t.version AS latest, v.document, v.source, t.created_at,
        t.changed_at
    FROM session_templates t {OWNER_JOINS}
    JOIN session_template_versions v ON v.template_id = t.id AND v.version = coalesce($1, t.version)
"""


class TemplateRepository:
    """As far as `viewer` may see."""

    def __init__(self, connection: Connection, viewer: Principal, *, now: datetime) -> None:
        self._connection = connection
        self._viewer = viewer
        self._now = now

    async def get(self, name_or_id: str, *, version: int | None = None) -> Template:
        """By id; or by name: the viewer's own first, then those of projects, then the domain's. Raises TemplateNotFound."""
        template_id = as_uuid(name_or_id)
        condition = "t.id = $6" if template_id is not None else BY_NAME
        rows = await self._connection.fetch(
            f"{_SELECT} WHERE {condition} AND {VISIBLE} ORDER BY {NEAREST_FIRST} LIMIT 2",
            version,
            *seen_by(self._viewer),
            template_id or name_or_id,
        )
        if not rows:
            word = f"'{name_or_id[:80]}'" + (f" of version {version}" if version is not None else "")
            raise TemplateNotFound(
                f"There is no template {word}, or it is not visible to you; see 'moorage template ls'."
            )
        found = [Template(**dict(row)) for row in rows]
        if len(found) == 2 and found[0].scope == found[1].scope == "project":
            raise InvalidRequest(
                f"Several projects of yours have a template '{name_or_id[:80]}'; name it by its id.", field="template"
            )
        return found[0]

    async def all(self) -> list[Template]:
        rows = await self._connection.fetch(
            f"{_SELECT} WHERE {VISIBLE} ORDER BY t.name, t.created_at", None, *seen_by(self._viewer)
        )
        return [Template(**dict(row)) for row in rows]

    async def versions(self, template_id: UUID) -> list[dict[str, Any]]:
        """{version, by, at}, the newest first."""
        rows = await self._connection.fetch(
            """
            SELECT version, by_access_key AS by, created_at AS at FROM session_template_versions
            WHERE template_id = $1 ORDER BY version DESC
            """,
            template_id,
        )
        return [dict(row) for row in rows]

    async def create(
        self, template_id: UUID, name: str, scope: Scope, document: Mapping[str, Any], source: str
    ) -> Template:
        """Raises AlreadyExists when the scope has one of this name."""
        there = await self._connection.fetchval(
            f"SELECT count(*) FROM session_templates WHERE {OF_SCOPE}", *scope.values
        )
        if there >= MOST_TEMPLATES:
            raise InvalidRequest(f"There are {there} templates already, which is the most; remove some first.")
        made = await self._connection.fetchval(
            """
            INSERT INTO session_templates (id, name, user_id, project_id, domain, created_by, document, created_at, changed_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) ON CONFLICT DO NOTHING RETURNING true
            """,
            template_id,
            name,
            *scope.values,
            self._viewer.user_id,
            dict(document),
            self._now,
        )
        if made is None:
            raise AlreadyExists(f"There is a template '{name}' already; 'moorage template edit {name}' changes it.")
        await self._keep(template_id, 1, document, source)
        return await self.get(str(template_id))

    async def change(
        self,
        template: Template,
        *,
        name: str | None,
        document: tuple[Mapping[str, Any], str] | None,
        version: int | None,
    ) -> Template:
        """A new version when there is a new document; with `version` only while that is the latest one."""
        taken = name is not None and await self._connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM session_templates o JOIN session_templates t ON t.id = $1
                AND o.user_id IS NOT DISTINCT FROM t.user_id AND o.project_id IS NOT DISTINCT FROM t.project_id
                AND o.domain IS NOT DISTINCT FROM t.domain WHERE o.name = $2 AND o.id <> $1)
            """,
            template.id,
            name,
        )
        if taken:
            raise AlreadyExists(f"There is a template '{name}' already.")
        latest = await self._connection.fetchval(
            """
            UPDATE session_templates SET name = coalesce($2, name), document = coalesce($3, document),
                version = version + CASE WHEN $3::jsonb IS NULL THEN 0 ELSE 1 END, changed_at = $4
            WHERE id = $1 AND ($5::bigint IS NULL OR version = $5) RETURNING version
            """,
            template.id,
            name,
            None if document is None else dict(document[0]),
            self._now,
            version,
        )
        if latest is None:
            now = await self.get(str(template.id))
            raise PreconditionFailed(
                f"The template was changed meanwhile: its version is {now.latest}. Read it again.", version=now.latest
            )
        if document is not None:
            await self._keep(template.id, latest, *document)
        return await self.get(str(template.id))

    async def remove(self, template: Template) -> None:
        await self._connection.execute("DELETE FROM session_templates WHERE id = $1", template.id)

    async def _keep(self, template_id: UUID, version: int, document: Mapping[str, Any], source: str) -> None:
        await self._connection.execute(
            """
            INSERT INTO session_template_versions (template_id, version, document, source, by_access_key, created_at)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            template_id,
            version,
            dict(document),
            source,
            str(self._viewer.access_key),
            self._now,
        )
        await self._connection.execute(
            "DELETE FROM session_template_versions WHERE template_id = $1 AND version <= $2",
            template_id,
            version - MOST_VERSIONS,
        )
