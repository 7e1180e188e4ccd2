"""Images that nobody needs any more: snapshots by their age, and what hosts have left of images that are not listed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from domain.errors import MoorageError
from domain.ids import AgentId
from manager.tasks import Report, Tools
from repositories.image import Image, ImageRepository
from repositories.task import Task
from repositories.transit import Cause

_CAUSE: Final = Cause(by="manager")
#: How names of snapshots, and of what is on its way to become one, begin.
OURS: Final = ("moorage/snapshot-", "moorage/scrap:")
#: The agent that made an image, and the one of the container that an unfinished one was committed from.
_MADE_BY: Final = "moorage.image.agent"
_COMMITTED_BY: Final = "moorage.agent"


class Collector:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def run(self, task: Task, report: Report) -> dict[str, Any]:
        """{dry_run, removed: [{image, name, agent, size_bytes, why}], freed_bytes, skipped}"""
        dry_run, before = bool(task.arguments["dry_run"]), self._tools.clock() - timedelta(days=task.arguments["days"])
        async with self._tools.database.reader() as connection:
            unused = await self._images(connection).unused(before)
        removed: list[dict[str, Any]] = []
        skipped: list[str] = []
        for done, image in enumerate(unused):
            await report(done, len(unused), image.title or image.name)
            try:
                if dry_run or await self._discard(image):
                    removed.append(_told(image))
            except MoorageError as error:
                skipped.append(f"{image.name}: {error.message}")
        for host in sorted(self._tools.agents.connected()):
            removed += await self._leftovers(host, skipped, dry_run=dry_run, known_to_go={i.name for i in unused})
        return {
            "dry_run": dry_run,
            "removed": removed,
            "freed_bytes": sum(each["size_bytes"] or 0 for each in removed),
            "skipped": skipped,
        }

    async def _discard(self, image: Image) -> bool:
        """First off the list, so that nobody begins to use it; then off its host, whose rest a later run finds."""
        async with self._tools.database.transaction("control.image_discarded") as connection:
            if not await self._images(connection).discard(image.name):
                return False
        self._tools.herald.announce("images")
        if image.agent_id is not None:
            await self._tools.agents.remove_image(image.agent_id, image.name)
        return True

    async def _leftovers(
        self, host: AgentId, skipped: list[str], *, dry_run: bool, known_to_go: set[str]
    ) -> list[dict[str, Any]]:
        there = await self._tools.agents.list_images(host)
        async with self._tools.database.transaction() as connection:
            images = self._images(connection)
            await images.forget_unfinished()
            listed = {image.name for image in await images.all()}
            uid = await images.uid_of(host)
        removed = []
        for image in there:
            made_by = image["labels"].get(_MADE_BY) or image["labels"].get(_COMMITTED_BY)
            if made_by is None or made_by != uid:  # somebody else's, who may share the engine with us
                continue
            tags = [tag for tag in image["tags"] if tag not in listed | known_to_go] if image["tags"] else [image["id"]]
            for tag in tags:
                try:
                    if not dry_run:
                        await self._tools.agents.remove_image(host, tag)
                    size, why = int(image["size_bytes"]), "not on the list"
                    removed.append({"image": tag, "name": tag, "agent": host, "size_bytes": size, "why": why})
                except MoorageError as error:
                    skipped.append(f"{tag}: {error.message}")
        return removed

    def _images(self, connection: Any) -> ImageRepository:
        return ImageRepository(connection, now=self._tools.clock(), cause=_CAUSE)


def _told(image: Image) -> dict[str, Any]:
    told = {"image": image.title, "name": image.name, "agent": image.agent_id, "size_bytes": image.size_bytes}
    return {**told, "owner": image.owner, "why": "not used"}
