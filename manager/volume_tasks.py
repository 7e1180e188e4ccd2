"""What is done in the background for volumes: copying them, and removing what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from agent.client import VolumeAddress
from domain.errors import AgentUnavailable, NoVolumeStore, VolumeNotFound
from manager.image_tasks import patiently
from manager.tasks import Job, Report, Tools
from repositories import volumes as rows
from repositories.task import Task

#: Between two looks for a host that has the store, when none is there.
_LOOK_SECONDS: Final = 2.0


def jobs(tools: Tools) -> Mapping[str, Job]:
    volumes = _Volumes(tools)
    return {
        "clone_volume": Job(volumes.clone, volumes.unmake),
        "delete_volume": Job(volumes.remove, volumes.keep),
    }


class _Volumes:
    """Each may be begun again, by another manager: the host knows a job by the task's id, and a copy begins anew."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def clone(self, task: Task, report: Report) -> dict[str, Any]:
        if await self._is_ready(task):  # by a manager that died before it could say so; it may be in use by now
            return {"volume": str(task.arguments["volume"]), "name": task.arguments["name"]}
        where = await self._wait_for_host(task, report)
        found = await patiently(lambda: self._clone(where, task, report))
        async with self._tools.database.transaction("control.volume_made") as connection:
            if not await rows.made(connection, where.volume_id):
                raise VolumeNotFound("The copy was removed while it was being made.")
        return {"volume": str(where.volume_id), "name": task.arguments["name"], **found}

    async def _clone(self, where: VolumeAddress, task: Task, report: Report) -> dict[str, Any]:
        async for said in self._tools.agents.clone_volume(where, task.id, UUID(task.arguments["source"])):
            if "result" in said:
                return dict(said["result"])
            await report(int(said["current"]), int(said["total"]), str(said["message"]))
        raise AgentUnavailable

    async def unmake(self, task: Task) -> None:
        """Of a copy that failed or was cancelled: nothing stays, unless it was whole before."""
        if await self._is_ready(task):
            return
        with suppress(VolumeNotFound):
            await self._remove_files(await self._host(task), task)

    async def remove(self, task: Task, report: Report) -> dict[str, Any]:
        with suppress(VolumeNotFound):  # gone already: by a manager that died before it could say so
            where = await self._wait_for_host(task, report)
            await patiently(lambda: self._remove_files(where, task))
        return {"volume": str(task.arguments["volume"]), "name": task.arguments["name"]}

    async def keep(self, task: Task) -> None:
        """A removal that was cancelled or failed: finished when a host is there, taken back when none has begun it."""
        try:
            with suppress(VolumeNotFound):
                await self._remove_files(await self._host(task), task)
        except (NoVolumeStore, AgentUnavailable):
            async with self._tools.database.transaction() as connection:
                await rows.keep(connection, UUID(task.arguments["volume"]))

    async def _remove_files(self, where: VolumeAddress, task: Task) -> None:
        await self._tools.agents.cancel_job(where.agent_id, task.id)
        async for _ in self._tools.agents.remove_volume(where, task.id):
            pass
        async with self._tools.database.transaction("control.volume_forgotten") as connection:
            await rows.forget(connection, where.volume_id)

    async def _is_ready(self, task: Task) -> bool:
        async with self._tools.database.reader() as connection:
            row = await rows.by_task(connection, UUID(task.arguments["volume"]))
        return row is not None and row["status"] == "ready"

    async def _wait_for_host(self, task: Task, report: Report) -> VolumeAddress:
        while True:
            try:
                return await self._host(task)
            except NoVolumeStore:
                await report(0, 0, "waiting for a host that has the volume's store")
                await asyncio.sleep(_LOOK_SECONDS)

    async def _host(self, task: Task) -> VolumeAddress:
        async with self._tools.database.reader() as connection:
            row = await rows.by_task(connection, UUID(task.arguments["volume"]))
            if row is None:
                raise VolumeNotFound("The volume is gone.")
            hosts = await rows.hosts_with(connection, row["store"])
        for host in hosts:
            if self._tools.agents.is_connected(host):
                return VolumeAddress(
                    agent_id=host,
                    volume_id=row["id"],
                    store=row["store"],
                    uid=row["uid"],
                    gid=row["gid"],
                    quota_bytes=row["quota_bytes"],
                    quota_files=row["quota_files"],
                )
        raise NoVolumeStore
