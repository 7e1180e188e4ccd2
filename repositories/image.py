"""Images that sessions may be made of, and the other names they go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import ImageNameTaken, ImageNotFound, ImageNotReady, StillInUse
from domain.ids import AgentId, SessionId
from repositories.database import Connection
from repositories.limits import check_owned
from repositories.transit import Cause

#: Images of their own that users may have, where no quota named `images` says otherwise.
DEFAULT_IMAGES_PER_USER: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    name: str  #: as the engine knows it
    architecture: str
    labels: Mapping[str, str]
    aliases: tuple[str, ...]
    created_at: datetime
    kind: str = "registered"  #: registered; snapshot: on the host that it was made on; built: in a registry
    status: str = "ready"  #: making, ready
    title: str | None = None  #: what its owner calls it
    owner_id: UUID | None = None
    owner: str | None = None  #: e-mail address
    visibility: str = "public"  #: public, project, user
    project: str | None = None
    agent_id: AgentId | None = None  #: the only host that has it
    session_id: SessionId | None = None
    task_id: UUID | None = None
    size_bytes: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """An image that a task is to make."""

    name: str
    architecture: str
    kind: str
    title: str
    owner_id: UUID
    visibility: str
    project_id: UUID | None
    agent_id: AgentId | None
    session_id: SessionId
    task_id: UUID


_COLUMNS: Final = """
    i.name, i.architecture, i.labels, i.created_at, i.kind, i.status, i.title, i.owner_id, i.visibility, i.agent_id,
    i.session_id, i.task_id, i.size_bytes, i.digest, u.email AS owner, p.name AS project,
    ARRAY(SELECT alias FROM image_aliases a WHERE a.image = i.name ORDER BY alias) AS aliases
"""
_FROM: Final = "images i LEFT JOIN users u ON u.id = i.owner_id LEFT JOIN projects p ON p.id = i.project_id"
#: $1 is the user who looks, or NULL for somebody who sees everything. What nobody works on any more is not there.
_SEEN: Final = """
    ($1::uuid IS NULL OR i.visibility = 'public' OR i.owner_id = $1 OR i.visibility = 'project'
        AND i.project_id IN (SELECT project_id FROM project_members WHERE user_id = $1))
    AND (i.status = 'ready' OR EXISTS (SELECT FROM tasks t WHERE t.id = i.task_id AND t.status IN ('queued', 'running')))
"""
#: In use: a live session is made of it, one of its kernels is, or a snapshot that is being made stands on it.
_IN_USE: Final = """
    EXISTS (SELECT FROM sessions s WHERE s.image = i.name AND s.ended_at IS NULL)
    OR EXISTS (SELECT FROM kernels k WHERE k.spec ->> 'image' = i.name AND k.want <> 'GONE'
               AND EXISTS (SELECT FROM sessions s WHERE s.id = k.session_id AND s.ended_at IS NULL))
"""


class ImageRepository:
    """Images as far as `viewer` may see them, or all. A name is looked for among the viewer's own first."""

    def __init__(
        self, connection: Connection, *, now: datetime, cause: Cause, viewer: UUID | None = None, sees_all: bool = True
    ) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause
        self._viewer = viewer
        self._scope = None if sees_all else viewer

    async def resolve(self, name_or_alias: str) -> Image:
        """Raises ImageNotFound, also for another's; ImageNotReady while it is being made."""
        found = await self._images(
            "i.name = $2 OR i.name = (SELECT image FROM image_aliases WHERE alias = $2) OR i.title = $2 AND i.owner_id = $3"
            " ORDER BY (i.owner_id = $3 AND i.title = $2) IS TRUE DESC, i.name = $2 DESC LIMIT 1",
            name_or_alias,
            self._viewer,
        )
        if not found:
            raise ImageNotFound(
                f"No image '{name_or_alias[:200]}' is registered here; 'moorage image ls' lists what there is.",
                image=name_or_alias[:200],
            )
        if found[0].status != "ready":
            raise ImageNotReady(
                f"The image '{name_or_alias}' is still being made; 'moorage task ls' shows how far it is."
            )
        return found[0]

    async def all(self) -> list[Image]:
        return await self._images("true ORDER BY i.name")

    async def get(self, name: str) -> Image | None:
        """Exactly this one, in whatever state."""
        rows = await self._connection.fetch(f"SELECT {_COLUMNS} FROM {_FROM} WHERE i.name = $1", name)
        return _image(rows[0]) if rows else None

    async def _images(self, where: str, *arguments: Any) -> list[Image]:
        rows = await self._connection.fetch(
            f"WITH seen AS (SELECT i.* FROM images i WHERE {_SEEN}) "
            f"SELECT {_COLUMNS} FROM {_FROM.replace('images i', 'seen i')} WHERE {where}",
            self._scope,
            *arguments,
        )
        return [_image(row) for row in rows]

    async def register(
        self, name: str, *, architecture: str, labels: Mapping[str, str], aliases: Sequence[str], replace: bool = False
    ) -> Image:
        """Raises AlreadyExists for a known name or alias, unless `replace`."""
        update = "ON CONFLICT (name) DO UPDATE SET architecture = excluded.architecture, labels = excluded.labels"
        await self._connection.execute(
            f"INSERT INTO images (name, architecture, labels, created_at) VALUES ($1, $2, $3, $4) {update if replace else ''}",
            name,
            architecture,
            dict(labels),
            self._now,
        )
        for alias in aliases:
            await self.alias(name, alias, replace=replace)
        return await self.resolve(name)

    async def alias(self, name: str, alias: str, *, replace: bool = False) -> None:
        update = "ON CONFLICT (alias) DO UPDATE SET image = excluded.image" if replace else ""
        await self._connection.execute(
            f"INSERT INTO image_aliases (alias, image) VALUES ($1, $2) {update}", alias, name
        )

    async def remove(self, name: str) -> Image:
        """Raises StillInUse while a live session is made of it. The image that was removed."""
        image = await self.resolve(name)
        gone = await self._connection.fetchval(
            f"DELETE FROM images i WHERE i.name = $1 AND NOT ({_IN_USE}) RETURNING true", image.name
        )
        if not gone:
            raise StillInUse(f"Live sessions use the image '{image.title or image.name}'; end them first.")
        return image

    # -- made here -------------------------------------------------------------------------------------------------
    async def begin(self, new: NewImage) -> None:
        """Take the name for an image that is to be made. Raises ImageNameTaken, or QuotaExceeded."""
        # One at a time for a user, so that the count below is right; nobody waits long, nothing slow happens in here.
        await self._connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", new.owner_id)
        await self.forget_unfinished(new.owner_id)
        there = await self._connection.fetchval(
            "SELECT count(*) FROM images WHERE owner_id = $1 AND kind <> 'registered'", new.owner_id
        )
        await check_owned(self._connection, "images", new.owner_id, there, otherwise=DEFAULT_IMAGES_PER_USER)
        taken = await self._connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM images WHERE name = $1 OR (owner_id = $2 AND title = $3))
                OR EXISTS (SELECT FROM image_aliases WHERE alias = $1 OR alias = $3)
            """,
            new.name,
            new.owner_id,
            new.title,
        )
        if taken:
            raise ImageNameTaken(
                f"There is an image '{new.title}' already; choose another name, or remove it with 'moorage image rm'.",
                image=new.title,
            )
        await self._connection.execute(
            """
            INSERT INTO images (name, architecture, created_at, kind, status, title, owner_id, visibility, project_id,
                agent_id, session_id, task_id)
            VALUES ($1, $2, $3, $4, 'making', $5, $6, $7, $8, $9, $10, $11)
            """,
            new.name,
            new.architecture,
            self._now,
            new.kind,
            new.title,
            new.owner_id,
            new.visibility,
            new.project_id,
            new.agent_id,
            new.session_id,
            new.task_id,
        )

    async def forget_unfinished(self, owner_id: UUID | None = None) -> int:
        """Rows whose making has ended without an image."""
        rows = await self._connection.fetch(
            """
            DELETE FROM images i WHERE i.status = 'making' AND ($1::uuid IS NULL OR i.owner_id = $1)
            AND NOT EXISTS (SELECT FROM tasks t WHERE t.id = i.task_id AND t.status IN ('queued', 'running')) RETURNING 1
            """,
            owner_id,
        )
        return len(rows)

    async def made(
        self, task_id: UUID, *, architecture: str, labels: Mapping[str, str], size_bytes: int, digest: str | None = None
    ) -> bool:
        """The image of this task is there. False when nobody wants it any more."""
        return bool(
            await self._connection.fetchval(
                """
                UPDATE images SET status = 'ready', architecture = $2, labels = $3, size_bytes = $4, digest = $5
                WHERE task_id = $1 RETURNING true
                """,
                task_id,
                architecture,
                dict(labels),
                size_bytes,
                digest,
            )
        )

    async def unmade(self, task_id: UUID) -> None:
        await self._connection.execute("DELETE FROM images WHERE task_id = $1 AND status = 'making'", task_id)

    async def share(self, name: str, visibility: str, project_id: UUID | None) -> None:
        await self._connection.execute(
            "UPDATE images SET visibility = $2, project_id = $3 WHERE name = $1", name, visibility, project_id
        )

    async def measured(self, name: str, *, size_bytes: int) -> None:
        await self._connection.execute(
            "UPDATE images SET size_bytes = $2 WHERE name = $1 AND size_bytes IS DISTINCT FROM $2", name, size_bytes
        )

    async def uid_of(self, agent_id: AgentId) -> str | None:
        """Of the agent's data dir, which images that it made are labelled with."""
        uid: str | None = await self._connection.fetchval("SELECT uid FROM agents WHERE id = $1", agent_id)
        return uid

    async def on_host(self, agent_id: AgentId, names: Sequence[str]) -> None:
        await self._connection.execute("UPDATE agents SET images = $2 WHERE id = $1", agent_id, list(names))

    async def unused(self, before: datetime) -> list[Image]:
        """Made here, not used since then, and in use by nobody."""
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM {_FROM} WHERE i.kind = 'snapshot' AND i.status = 'ready' AND i.created_at < $1
            AND NOT ({_IN_USE})
            AND NOT EXISTS (SELECT FROM sessions s WHERE s.image = i.name AND s.ended_at >= $1) ORDER BY i.created_at
            """,
            before,
        )
        return [_image(row) for row in rows]

    async def discard(self, name: str) -> bool:
        """False when it is in use by now."""
        return bool(
            await self._connection.fetchval(
                f"DELETE FROM images i WHERE i.name = $1 AND NOT ({_IN_USE}) RETURNING true", name
            )
        )


def _image(row: Any) -> Image:
    return Image(**{**dict(row), "aliases": tuple(row["aliases"])})
