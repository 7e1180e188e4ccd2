"""What is done in the background for images: fetching them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.errors import AgentUnavailable
from domain.ids import AgentId
from manager.tasks import Job, Report, Tools
from repositories.task import Task


def jobs(tools: Tools) -> Mapping[str, Job]:
    images = _Images(tools)
    return {"pull_image": Job(images.pull)}


class _Images:
    def __init__(self, tools: Tools) -> None:
        self._agents = tools.agents

    async def pull(self, task: Task, report: Report) -> dict[str, Any]:
        image, named = str(task.arguments["image"]), task.arguments.get("agent")
        hosts = [AgentId(named)] if named else list(self._agents.connected())
        if not hosts:
            raise AgentUnavailable("No host is connected that could fetch the image.")
        for done, host in enumerate(hosts):
            async for progress in self._agents.pull_image(host, image):
                share = int(progress.get("current") or 0) / max(1, int(progress.get("total") or 0))
                total = len(hosts) * 100
                await report(int((done + min(1.0, share)) * 100), total, f"{host}: {progress.get('message', '')}")
        return {"image": image, "agents": [str(host) for host in hosts]}
