"""The agent killed and restarted over many containers, and over what a crash leaves behind."""

from __future__ import annotations

import asyncio
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import docker
from moorage import aio

from tests.faults.book import Book
from tests.faults.engine_containers import freeze
from tests.faults.installation import Installation

TINY: Final[dict[str, Any]] = {"cpu": 0.02, "mem": "64m"}
_COUNT: Final = "import time\nfor i in range(100000):\n    print(i, flush=True)\n    time.sleep(1)"
_FOUND: Final = re.compile(r"^(\S+ \S+) .*: found again", re.MULTILINE)
AT_ONCE: Final = 12


async def many(installation: Installation, client: aio.Client, number: int) -> list[aio.Session]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(n: int) -> aio.Session:
        async with slots:
            return await client.sessions.create(f"many-{n:04d}", wait=120, **TINY)

    return list(await asyncio.gather(*(one(n) for n in range(number))))


async def adopted(installation: Installation, book: Book, client: aio.Client, sessions: list[aio.Session]) -> list[str]:
    """From the death of the agent until all of its containers are found again, as its log says, and answer."""
    log, before = installation.log, installation.log.stat().st_size
    died, wall = time.monotonic(), time.time()
    killed = installation.kill("agent")
    found = 0
    while found <= len(sessions) and time.monotonic() - died < 60:
        await asyncio.sleep(0.05)
        with log.open() as file:
            file.seek(before)
            lines = _FOUND.findall(file.read())
        found = len(lines)
    last = max(datetime.strptime(line, "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines)  # noqa: DTZ007 - of this machine
    book.took(f"agent killed: {len(sessions)} containers found again", last - wall)
    await installation.recovered(killed)
    ran = await asyncio.gather(*(session.run_code("print(6 * 7)") for session in sessions))
    book.took(f"agent killed: {len(sessions)} sessions have run code", time.monotonic() - died)
    wrong = [session.name for session, one in zip(sessions, ran, strict=True) if one.stdout != "42\n"]
    return [f"{name} does not answer as it should" for name in wrong] + (
        [] if found == len(sessions) + 1 else [f"{found} of {len(sessions) + 1} were found again"]
    )


async def swept(installation: Installation, client: aio.Client, book: Book, engine: docker.DockerClient) -> list[str]:
    """What a crash leaves behind is gone after a start; what nothing is known of is left alone, and named."""
    uid, found = installation.outside.uid, []
    session = await client.sessions.create("left-over", **TINY)
    image = (await session.refresh()).info.image
    (container,) = engine.containers.list(filters={"label": f"moorage.session={session.id}"})
    stranger = engine.containers.run(
        str(container.attrs["Image"]),
        entrypoint=["/bin/sh", "-c", "sleep 1000"],
        labels={"moorage.agent": uid, "moorage.kernel": "01234567-0000-7000-8000-000000000000", "moorage.attempt": "1"},
        name=f"moorage-0123456700007000800000000000000-{os.getpid()}",
        detach=True,
        network_mode="none",
    )
    network = engine.networks.create(
        f"moorage-left-{os.getpid()}",
        labels={"moorage.agent": uid, "moorage.session": "01234567-0000-7000-8000-000000000001"},
    )
    try:
        freeze(container)
        await installation.recovered(installation.kill("agent"))
        ran = await session.run_code("print(1)", timeout=30)
        if ran.stdout != "1\n":
            found.append("the frozen one was not thawed")
        if network.id in {one.id for one in engine.networks.list()}:
            found.append("the network is still there")
        stranger.reload()
        if stranger.status != "running":
            found.append("the stranger was not left alone")
        (agent,) = await client.agents.list()
        if agent.info.get("quarantined") != [stranger.name]:
            found.append(f"quarantined: {agent.info.get('quarantined')}")
        shown = installation.run("admin", "agent", "show", agent.id).stdout
        if str(stranger.name) not in shown or "docker rm -f" not in shown:
            found.append(f"the stranger is not shown with what to do:\n{shown}")
        report = await client.fsck()
        if [one.check for one in report.findings] != ["stray_container"]:
            found.append(f"fsck: {[(one.check, one.subject) for one in report.findings]}")
    finally:
        stranger.remove(force=True)
        await session.destroy(wait=30)
    book.fault(f"what a crash leaves behind ({image})", found)
    return found


async def agent(folder: Path, book: Book, *, number: int = 200, rounds: int = 3) -> None:
    engine = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], timeout=60)
    with Installation.up(folder) as installation:
        async with installation.client() as client:
            await swept(installation, client, book, engine)
            sessions = await many(installation, client, number)
            witness = await client.sessions.create("witness", **TINY)
            counting = await witness.executions.start(_COUNT)
            for _ in range(rounds):
                found = await adopted(installation, book, client, sessions)
                found += await installation.check(client)
                book.fault(f"agent killed over {number} containers", found)
            said = "".join([record.text or "" async for record in counting.output(follow=False)]).split("\n")[:-1]
            wrong = [] if said == [str(n) for n in range(len(said))] else [f"I3 it counted {said[:5]}...{said[-5:]}"]
            await asyncio.gather(*(session.destroy(wait=120) for session in (witness, *sessions)))
            book.fault("all of them destroyed at once", wrong + await installation.check(client))
    engine.close()
