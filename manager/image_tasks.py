"""What is done in the background for images: make them of sessions, carry them to and from registries, clear them away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from agent.client import KernelAddress
from domain.errors import AgentUnavailable, ImageNotFound, MoorageError
from domain.ids import AgentId, KernelId, SessionId
from domain.images import registry_of
from manager.collect import OURS, Collector
from manager.registry import RegistryClient
from manager.tasks import Job, Report, Tools
from repositories import agents as agent_rows
from repositories.image import ImageRepository
from repositories.registry import RegistryRepository
from repositories.task import Task
from repositories.transit import Cause, emit

#: So long a host may be away in the middle of a job; an agent that was killed is back by then.
_PATIENCE_SECONDS: Final = 120.0
_CAUSE: Final = Cause(by="manager")
Progress = AsyncIterator[dict[str, Any]]


def jobs(tools: Tools) -> Mapping[str, Job]:
    images = ImageJobs(tools)
    collector = Collector(tools)
    return {
        "pull_image": Job(images.pull),
        "commit_session": Job(images.commit, images.unmake),
        "convert_session_to_image": Job(images.convert, images.unmake),
        "remove_image": Job(images.remove),
        "rescan_images": Job(images.rescan),
        "collect_images": Job(collector.run),
    }


class ImageJobs:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._agents = tools.agents

    # -- of sessions -----------------------------------------------------------------------------------------------
    async def commit(self, task: Task, report: Report) -> dict[str, Any]:
        made = await self._commit(task, report)
        return await self._made(task, made)

    async def convert(self, task: Task, report: Report) -> dict[str, Any]:
        made = await self._commit(task, report)
        name, agent_id = str(task.arguments["image"]), AgentId(task.arguments["agent"])
        auth = await self._auth(name, UUID(task.arguments["owner"]))
        pushed = await self._follow(lambda: self._agents.push_image(agent_id, task.id, name, auth), report)
        return await self._made(task, {**made, "digest": str(pushed["digest"])})

    async def _commit(self, task: Task, report: Report) -> dict[str, Any]:
        asked = task.arguments
        where = KernelAddress(
            agent_id=AgentId(asked["agent"]), kernel_id=KernelId(UUID(asked["kernel"])), attempt=int(asked["attempt"])
        )
        labels = {
            "moorage.image.session": str(asked["session"]),
            "moorage.image.base": str(asked["base"]),
            "org.opencontainers.image.title": str(asked["title"]),
        }
        return await self._follow(lambda: self._agents.commit(where, task.id, str(asked["image"]), labels), report)

    async def _made(self, task: Task, made: Mapping[str, Any]) -> dict[str, Any]:
        """The image is there: now it can be used."""
        name, digest = str(task.arguments["image"]), made.get("digest")
        async with self._tools.database.transaction("control.image_made") as connection:
            images = ImageRepository(connection, now=self._tools.clock(), cause=_CAUSE)
            wanted = await images.made(
                task.id,
                architecture=str(made["architecture"]),
                labels=made["labels"],
                size_bytes=int(made["size_bytes"]),
                digest=digest,
            )
            if not wanted:
                raise ImageNotFound(f"The image '{task.arguments['title']}' was removed while it was being made.")
            await emit(
                connection,
                "session.committed",
                now=self._tools.clock(),
                cause=_CAUSE,
                session_id=SessionId(task.session_id) if task.session_id else None,
                user_id=task.user_id,
                data={"image": task.arguments["title"], "task": str(task.id), "size_bytes": made["size_bytes"]},
            )
        self._tools.herald.announce("images")
        told = {"image": task.arguments["title"], "name": name, "size_bytes": made["size_bytes"]}
        return {**told, "frozen_seconds": made["frozen_seconds"], **({"digest": digest} if digest else {})}

    async def unmake(self, task: Task) -> None:
        """Nothing half-made is left: not on the host, not on the list."""
        agent_id = AgentId(task.arguments["agent"])
        async with self._tools.database.transaction() as connection:
            await ImageRepository(connection, now=self._tools.clock(), cause=_CAUSE).unmade(task.id)
        with suppress(AgentUnavailable):  # an agent that is away has forgotten its jobs, and sweeps when it starts
            await self._agents.cancel_job(agent_id, task.id)
            await self._agents.remove_image(agent_id, str(task.arguments["image"]), job=task.id)

    async def remove(self, task: Task, _report: Report) -> dict[str, Any]:
        asked = task.arguments
        removed = await patiently(
            lambda: self._agents.remove_image(AgentId(asked["agent"]), asked["image"], job=_job(asked.get("job")))
        )
        return {"image": asked["image"], "removed": removed}

    # -- registries ------------------------------------------------------------------------------------------------
    async def pull(self, task: Task, report: Report) -> dict[str, Any]:
        image, named = str(task.arguments["image"]), task.arguments.get("agent")
        hosts = [AgentId(named)] if named else list(self._agents.connected())
        if not hosts:
            raise AgentUnavailable("No host is connected that could fetch the image.")
        auth = await self._auth(image, task.user_id)
        for done, host in enumerate(hosts):
            async for progress in self._agents.pull_image(host, image, auth):
                share = int(progress.get("current") or 0) / max(1, int(progress.get("total") or 0))
                total = len(hosts) * 100
                await report(int((done + min(1.0, share)) * 100), total, f"{host}: {progress.get('message', '')}")
        return {"image": image, "agents": [str(host) for host in hosts]}

    async def _auth(self, image: str, owner_id: UUID) -> dict[str, str] | None:
        async with self._tools.database.reader() as connection:
            return await credentials(self._tools, connection, registry_of(image), owner_id)

    # -- what there is ---------------------------------------------------------------------------------------------
    async def rescan(self, task: Task, report: Report) -> dict[str, Any]:
        host = task.arguments.get("registry")
        if host is None:
            return await self._rescan_hosts(report, register=bool(task.arguments.get("register")))
        async with self._tools.database.reader() as connection:
            auth = await credentials(self._tools, connection, host, task.user_id)
        found: dict[str, str] = {}
        async with RegistryClient(host, auth) as client:
            async for name, architecture in client.images():
                found[name] = architecture
                await report(len(found), 0, name)
        return await self._compare(found, register=bool(task.arguments.get("register")))

    async def _rescan_hosts(self, report: Report, *, register: bool) -> dict[str, Any]:
        hosts = sorted(self._agents.connected())
        found: dict[str, str] = {}
        missing: list[str] = []
        for done, host in enumerate(hosts):
            await report(done, len(hosts), f"looking at {host}")
            there = await self._agents.list_images(host)
            sizes = {tag: int(image["size_bytes"]) for image in there for tag in image["tags"]}
            missing += await self._seen(host, sizes)
            async with self._tools.database.reader() as connection:
                architecture = str((await agent_rows.get_agent(connection, host))["architecture"])
            found |= {tag: architecture for tag in sizes if not tag.startswith(OURS)}
        self._tools.herald.announce("images")
        return {**await self._compare(found, register=register), "missing": missing, "agents": [str(h) for h in hosts]}

    async def _seen(self, host: AgentId, sizes: Mapping[str, int]) -> list[str]:
        """Keep what a host has; the snapshots that it should have, and has not, go off the list."""
        gone = []
        async with self._tools.database.transaction("control.images_seen") as connection:
            images = ImageRepository(connection, now=self._tools.clock(), cause=_CAUSE)
            await images.on_host(host, sorted(sizes))
            for image in await images.all():
                if image.name in sizes:
                    await images.measured(image.name, size_bytes=sizes[image.name])
                elif image.agent_id == host and image.status == "ready" and await images.discard(image.name):
                    gone.append(image.name)
        return gone

    async def _compare(self, found: Mapping[str, str], *, register: bool) -> dict[str, Any]:
        async with self._tools.database.transaction("control.images_compared") as connection:
            images = ImageRepository(connection, now=self._tools.clock(), cause=_CAUSE)
            known = {image.name for image in await images.all()}
            new = sorted(set(found) - known)
            for name in new if register else ():
                await images.register(name, architecture=found[name], labels={}, aliases=())
        return {"found": len(found), "new": new, "registered": new if register else []}

    # -- pieces ----------------------------------------------------------------------------------------------------
    async def _follow(self, ask: Callable[[], Progress], report: Report) -> dict[str, Any]:
        """A job of an agent to its end; an agent that goes away is asked again when it is back."""

        async def once() -> dict[str, Any]:
            async for said in ask():
                if "result" in said:
                    return dict(said["result"])
                await report(int(said["current"]), int(said["total"]), str(said["message"]))
            raise AgentUnavailable

        return dict(await patiently(once))


async def credentials(tools: Tools, connection: Any, host: str, owner_id: UUID | None) -> dict[str, str] | None:
    """With which a user's images come from and go to a registry."""
    row = await RegistryRepository(connection, now=tools.clock()).of(host, owner_id)
    if row is None or tools.vault is None:
        return None
    return {"username": row.username, "password": tools.vault.open(row.sealed, host)}


async def patiently(attempt: Callable[[], Any]) -> Any:
    """An agent that goes away is asked again when it is back."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        begun = time.monotonic()
        try:
            return await attempt()
        except AgentUnavailable as error:
            if time.monotonic() > max(until, begun + _PATIENCE_SECONDS):
                raise _lost(error) from None
        await asyncio.sleep(0.5)


def _lost(error: MoorageError) -> MoorageError:
    return AgentUnavailable(f"The session's host was away for too long: {error.message}")


def _job(text: object) -> UUID | None:
    return UUID(text) if isinstance(text, str) and text != "None" else None
