"""Images that sessions may be made of, and the other names they go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from domain.errors import ImageNotFound, StillInUse
from repositories.database import Connection
from repositories.transit import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    name: str  #: as the engine knows it
    architecture: str
    labels: Mapping[str, str]
    aliases: tuple[str, ...]
    created_at: datetime


class ImageRepository:
    def __init__(self, connection: Connection, *, now: datetime, cause: Cause) -> None:
        self._connection = connection
        self._now = now
        self._cause = cause

    async def resolve(self, name_or_alias: str) -> Image:
        """Raises ImageNotFound."""
        found = await self._images(
            "i.name = $1 OR i.name = (SELECT image FROM image_aliases WHERE alias = $1)", name_or_alias
        )
        if not found:
            raise ImageNotFound(
                f"No image '{name_or_alias[:200]}' is registered here; 'moorage admin image ls' lists what there is.",
                image=name_or_alias[:200],
            )
        return found[0]

    async def all(self) -> list[Image]:
        return await self._images("true ORDER BY i.name")

    async def _images(self, where: str, *arguments: str) -> list[Image]:
        rows = await self._connection.fetch(
            f"""
            SELECT i.name, i.architecture, i.labels, i.created_at,
                ARRAY(SELECT alias FROM image_aliases a WHERE a.image = i.name ORDER BY alias) AS aliases
            FROM images i WHERE {where}
            """,
            *arguments,
        )
        return [Image(**{**row, "aliases": tuple(row["aliases"])}) for row in map(dict, rows)]

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

    async def remove(self, name: str) -> None:
        """Raises StillInUse while a live session is made of it."""
        image = await self.resolve(name)
        if await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM sessions WHERE image = $1 AND ended_at IS NULL)", image.name
        ):
            raise StillInUse(f"Live sessions use the image '{image.name}'; end them first.")
        await self._connection.execute("DELETE FROM images WHERE name = $1", image.name)
