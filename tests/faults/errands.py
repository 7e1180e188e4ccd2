"""More of what users do: services, volumes, images, and the processes of the installation that end and come back."""

from __future__ import annotations

import asyncio
import io
import time

import httpx
import moorage
from moorage import aio

from tests.faults.workload import SECONDS, Town, Violation, archive, driver, expect

_SERVER = (
    "import http.server as h, os\n"
    "h.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), h.SimpleHTTPRequestHandler).serve_forever()"
)


# -- services ------------------------------------------------------------------------------------------------------------
@driver
async def service(town: Town) -> None:
    """Started, used through the proxy, stopped."""
    session, name = town.home(), town.name("web")
    port = 20000 + town.count % 20000
    await session.services.start(name, port=port, command=["python3", "-c", _SERVER])
    await used(session, name)
    await session.services.stop(name)
    expect([one.name for one in await session.services.list() if one.name == name], [], "I7 services after the stop")


@driver
async def service_again(town: Town) -> None:
    """It is started again by itself in a session that was restarted."""
    name = town.name("web")
    async with town.session() as session:
        await session.services.start(name, port=8123, command=["python3", "-c", _SERVER])
        await session.restart(wait=SECONDS)
        await used(session, name)


async def used(session: aio.Session, name: str) -> None:
    """A ticket is exchanged for a pass once. One that was spent when the proxy died is spent: another one is asked for."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        opened = await session.services.open(name)
        try:
            async with httpx.AsyncClient(follow_redirects=True, timeout=10.0) as browser:
                answer = await browser.get(opened.url)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        if answer.status_code == 200:
            return
        if answer.status_code not in (401, 502, 503):
            raise Violation(f"I9 the proxy answered {answer.status_code}: {answer.text[:200]}")
        await asyncio.sleep(0.1)
    raise Violation(f"I11 the service was not reached within {SECONDS:g} s")


@driver
async def port(town: Town) -> None:
    await town.home().services.port_pass(8000)


# -- volumes -------------------------------------------------------------------------------------------------------------
@driver
async def volume(town: Town) -> None:
    """Made, written to, copied, removed."""
    made = await town.client.volumes.create(town.name("volume"))
    await made.files.write("a/b", b"kept")
    await made.files.move("a/b", "a/c")
    copy = town.name("copy")
    await (await made.clone(copy)).wait(timeout=SECONDS)
    copied = await town.client.volumes.get(copy)
    expect(await copied.files.read_bytes("a/c"), b"kept", "I7 the file of the copy")
    for one in (made, copied):
        await (await one.delete()).wait(timeout=SECONDS)
    left = [one.name for one in await town.client.volumes.list() if one.name in (made.name, copy)]
    expect(left, [], "I7 volumes after they were removed")


@driver
async def volume_archive(town: Town) -> None:
    made = await town.client.volumes.create(town.name("volume"))
    await made.files.unpack(io.BytesIO(archive("member", b"packed")), "x")
    expect(await made.files.read_bytes("x/member"), b"packed", "I7 what was unpacked")
    await (await made.delete()).wait(timeout=SECONDS)


@driver
async def mount(town: Town) -> None:
    """What a session writes to a volume is there after it."""
    made = await town.client.volumes.create(town.name("volume"))
    async with town.session(mounts=[{"volume": made.name, "path": "/home/work/data"}]) as session:
        await session.files.write("data/it", b"written inside")
    expect(await made.files.read_bytes("it"), b"written inside", "I7 what a session has written")
    await (await made.delete()).wait(timeout=SECONDS)


# -- images --------------------------------------------------------------------------------------------------------------
@driver
async def commit(town: Town) -> None:
    """A snapshot, a session of it with the same files, and its end."""
    session, name = town.homes[0], town.name("snapshot")
    content = town.rng.randbytes(1000)
    await session.files.write("kept", content)
    town.model.wrote(session, "kept", content)
    task = await session.commit(name)
    await task.wait(timeout=SECONDS)
    async with town.session(image=name) as made:
        expect(await made.files.read_bytes("kept"), content, "I7 the file in the snapshot")
    await town.client.images.remove(name)


@driver
async def to_image(town: Town) -> None:
    """To a registry that is not there: nothing stays of it."""
    task = await town.home().to_image(f"127.0.0.1:9/faults/{town.name('image')}:1")
    try:
        await task.wait(timeout=SECONDS)
    except moorage.MoorageError:
        return
    raise Violation("an image was pushed to a registry that does not exist")


@driver
async def pull(town: Town) -> None:
    task = await town.client.images.pull(f"127.0.0.1:9/faults/{town.name('image')}:1")
    try:
        await task.wait(timeout=SECONDS)
    except moorage.MoorageError:
        return
    raise Violation("an image was pulled from a registry that does not exist")


@driver
async def rescan(town: Town) -> None:
    await (await town.client.images.rescan()).wait(timeout=SECONDS)


@driver
async def collect(town: Town) -> None:
    """Snapshots that nobody uses go, with all that hosts have of them."""
    name = town.name("snapshot")
    await (await town.home().commit(name)).wait(timeout=SECONDS)
    await (await town.client.images.collect(older_than_days=0)).wait(timeout=SECONDS)
    left = [image.name for image in await town.client.images.list() if name in (image.name, image.title)]
    expect(left, [], "I8 snapshots after they were collected")


# -- processes that come and go --------------------------------------------------------------------------------------------
async def _killed(town: Town, process: str) -> None:
    while process not in town.installation.pids():  # it may be dead just now
        await asyncio.sleep(0.02)
    killed = town.installation.kill(process)
    await town.installation.recovered(killed)


@driver
async def agent_again(town: Town) -> None:
    await _killed(town, "agent")


@driver
async def api_again(town: Town) -> None:
    await _killed(town, "api")


@driver
async def control_again(town: Town) -> None:
    await _killed(town, "control")


@driver
async def proxy_again(town: Town) -> None:
    await _killed(town, "proxy")


@driver
async def wait(town: Town) -> None:
    """For what happens by itself."""
    await asyncio.sleep(1.0)
    await town.client.sessions.get(town.home().id)
