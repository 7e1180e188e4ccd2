"""Sessions as images, on a real engine and a real registry."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from agent import wire
from agent.containers import EngineError
from agent.host import Host as Door
from agent.images import HOME_LABEL, TASK_LABEL
from agent.runner_link import RunnerLink, Tail
from agent.snapshots import commit_error, pull_error, push_error
from domain.errors import (
    AgentUnavailable,
    CommitFailed,
    CommitInProgress,
    HostStorageFull,
    ImageNotFound,
    PushFailed,
    RegistryDenied,
    RegistryUnreachable,
    SessionEnded,
)
from tests.agent.conftest import Host
from tests.registry import PASSWORD, USERNAME, Registry


class Asked:
    """What is committed in a test; removed at its end."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.names: list[str] = []

    async def commit(
        self, kernel_id: str, *, name: str | None = None, job: str | None = None
    ) -> tuple[str, dict[str, Any]]:
        name = name or f"moorage/snapshot-test:{uuid4().hex}"
        self.names.append(name)
        told = await self.host.kernels.snapshots.commit(
            self.host.kernel(kernel_id), 1, job or uuid4().hex, name, {"moorage.image.session": "demo"}, lambda *_: None
        )
        return name, told


@pytest.fixture
async def asked(host: Host) -> AsyncIterator[Asked]:
    asked = Asked(host)
    yield asked
    for kernel_id in [fact.kernel_id for fact in host.kernels.inventory()]:
        await host.end(kernel_id, generation=100)
        await host.until(kernel_id, "GONE")
    for name in asked.names:
        await host.kernels.snapshots.images.remove(name)
    assert not await host.kernels.snapshots.images.all(**{"moorage.image.agent": host.uid})


async def to_its_end(link: RunnerLink, tail: Tail) -> None:
    async with asyncio.timeout(20.0):
        while not tail.done:
            tail = await link.wait_tail(tail.run, tail.seq, 20.0)


async def shell(host: Host, kernel_id: str, command: str) -> str:
    link = host.kernel(kernel_id).link
    assert link is not None
    run = uuid4().hex
    await to_its_end(link, await link.execute(run, mode="batch", code=command, wait_seconds=20.0))
    return host.kernel(kernel_id).rings.text(run, 10_000)


async def up(host: Host, **given: Any) -> str:
    kernel_id = str(uuid4())
    await host.run(kernel_id, **given)
    fact = await host.until(kernel_id, "RUNNING", "FAILED")
    assert fact.observed == "RUNNING", fact.exit
    return kernel_id


async def python(host: Host, kernel_id: str, code: str) -> str:
    link = host.kernel(kernel_id).link
    assert link is not None
    run = uuid4().hex
    await to_its_end(link, await link.execute(run, mode="query", code=code, wait_seconds=20.0))
    return host.kernel(kernel_id).rings.text(run, 10_000)


async def test_a_session_from_a_snapshot_sees_the_files(host: Host, asked: Asked) -> None:
    first = await up(host)
    await shell(
        host, first, "mkdir -p a/b; echo kept > a/b/c; ln -s c a/b/link; ln -s /etc gone; chmod 750 a; echo x > old"
    )
    name, told = await asked.commit(first)
    assert told["labels"]["moorage.image.session"] == "demo"
    assert not {"moorage.agent", "moorage.kernel", "moorage.session"} & told["labels"].keys()
    assert told["labels"]["moorage.image"] == "python"  # of the image below, and none of the container's
    assert "still" in host.kernel(first).rings.text("log", 10_000)

    second = await up(host, image=name)
    look = (
        "import os; print(open('a/b/link').read(), os.readlink('gone'), oct(os.stat('a').st_mode), os.stat('a').st_uid)"
    )
    assert (await python(host, second, look)).split() == ["kept", "/etc", "0o40750", "1000"]
    await shell(host, second, "rm old; echo two > new")

    again, told = await asked.commit(second)
    image = await host.kernels.snapshots.images.look(again)
    below = await host.kernels.snapshots.images.look(name)
    assert image is not None
    assert below is not None
    assert len(image.layers) == len(below.layers)  # in place of the first one's files, not on top of them
    third = await up(host, image=again)
    assert (await shell(host, third, "ls; cat new")).split() == ["a", "gone", "new", "two"]


async def test_asking_twice_commits_once(host: Host, asked: Asked) -> None:
    kernel_id = await up(host)
    await shell(host, kernel_id, "echo x > y")
    name, job = f"moorage/snapshot-test:{uuid4().hex}", uuid4().hex
    (_, one), (_, two) = await asyncio.gather(
        asked.commit(kernel_id, name=name, job=job), asked.commit(kernel_id, name=name, job=job)
    )
    assert one == two
    host.kernels.snapshots.jobs._jobs.clear()  # as after a restart of the agent
    assert (await asked.commit(kernel_id, name=name, job=job))[1]["image_id"] == one["image_id"]


async def test_what_runs_stands_still_and_goes_on(host: Host, asked: Asked) -> None:
    kernel_id = await up(host)
    kernel = host.kernel(kernel_id)
    assert kernel.link is not None
    count = "import time\nfor n in range(200):\n  open('n', 'w').write(str(n)); time.sleep(0.01)"
    await kernel.link.execute("long", mode="query", code=count, wait_seconds=0.1)
    _, told = await asked.commit(kernel_id)
    assert 0 < told["frozen_seconds"] < 5
    await kernel.link.wait_tail("long", 10_000, 20.0)
    done = kernel.rings.done("long")
    assert done is not None
    assert (done["reason"], done["exit_code"]) == ("finished", 0)


async def held(host: Host, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Packing takes for ever from now on; set when it has begun."""
    begun = asyncio.Event()

    async def pack(*_: object) -> dict[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(host.kernels.snapshots, "_pack", pack)
    return begun


async def nothing_left(host: Host, kernel_id: str) -> None:
    container = await host.engine.inspect(host.kernel(kernel_id).name)
    assert container is None or container.status == "running"
    assert not list((host.data_dir / "commits").iterdir())
    assert not await host.kernels.snapshots.images.all(**{"moorage.image.agent": host.uid})


async def test_a_commit_that_is_cancelled_leaves_nothing(
    host: Host, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_id, job = await up(host), uuid4().hex
    begun = await held(host, monkeypatch)
    committing = asyncio.create_task(asked.commit(kernel_id, job=job))
    await begun.wait()
    state = await host.engine.inspect(host.kernel(kernel_id).name)
    assert state is not None
    assert state.status == "paused"
    assert await host.kernels.snapshots.cancel(job)
    with pytest.raises(SessionEnded):
        await committing
    await nothing_left(host, kernel_id)
    assert await shell(host, kernel_id, "echo alive") == "alive\n"


async def test_what_is_asked_meanwhile_waits_and_is_refused_in_time(
    host: Host, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_id, job, run = await up(host), uuid4().hex, str(uuid4())
    door = Door("h", host.kernels, ssl.create_default_context(), resources={}, info={}, version="0")
    execute = {"kernel_id": kernel_id, "attempt": 1, "run_id": run, "mode": "batch", "code": "echo once >> runs"}
    execute |= {"opts": {}, "timeout_seconds": None, "wait_seconds": 10.0, "max_bytes": 1000}
    begun = await held(host, monkeypatch)
    committing = asyncio.create_task(asked.commit(kernel_id, job=job))
    await begun.wait()
    monkeypatch.setattr("agent.host._STILL_SECONDS", 0.1)
    with pytest.raises(CommitInProgress):
        await door.handlers[wire.EXECUTE](dict(execute))
    monkeypatch.setattr("agent.host._STILL_SECONDS", 10.0)
    waiting: asyncio.Future[Any] = asyncio.ensure_future(door.handlers[wire.EXECUTE](dict(execute)))
    read = await door.handlers[wire.READ]({**execute, "run_id": "log", "from_seq": 1, "wait_seconds": 0})
    assert read["records"]  # what it has printed can be read meanwhile
    await host.kernels.snapshots.cancel(job)
    with pytest.raises(SessionEnded):
        await committing
    assert (await waiting)["status"] in ("running", "done")
    assert await shell(host, kernel_id, "cat runs") == "once\n"
    await door.close()


async def test_a_destroy_during_a_commit_wins(host: Host, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_id = await up(host)
    begun = await held(host, monkeypatch)
    committing = asyncio.create_task(asked.commit(kernel_id))
    await begun.wait()
    await host.end(kernel_id)
    await host.until(kernel_id, "GONE")
    with pytest.raises(SessionEnded):
        await committing
    await nothing_left(host, kernel_id)


async def test_a_container_that_nobody_commits_is_thawed(host: Host, kernel_id: str) -> None:
    """As an engine leaves it that was killed, or that took a request up late."""
    await host.run(kernel_id)
    await host.until(kernel_id, "RUNNING")
    await host.engine.freeze(host.kernel(kernel_id).name)
    await host.kernels.snapshots.thaw_forgotten(lambda _: False)
    assert await shell(host, kernel_id, "echo alive") == "alive\n"


async def test_a_commit_without_space_keeps_nothing(host: Host, asked: Asked) -> None:
    kernel_id = await up(host)
    await shell(host, kernel_id, "head -c 3000000 /dev/zero > big")
    spool = host.data_dir / "commits"
    spool.mkdir()
    mounted = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(spool))
    if await mounted.wait() != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(HostStorageFull):
            await asked.commit(kernel_id)
        await nothing_left(host, kernel_id)
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(spool))).wait()
    assert await shell(host, kernel_id, "echo alive") == "alive\n"


async def test_a_file_of_holes_is_refused_with_its_name(host: Host, asked: Asked) -> None:
    kernel_id = await up(host)
    await shell(host, kernel_id, "truncate -s 100G holes || python3 -c \"open('holes','w').truncate(100 << 30)\"")
    with pytest.raises(CommitFailed, match="holes"):
        await asked.commit(kernel_id)


async def test_hostile_files_stay_what_they_are(host: Host, asked: Asked) -> None:
    """Names and links that would lead out, or mean something else in a layer."""
    kernel_id = await up(host)
    await shell(
        host,
        kernel_id,
        "ln -s / root; ln -s ../../../.. up; mkfifo pipe; mkdir .wh..wh..opq; touch .wh.etc; touch -- -rf",
    )
    await python(host, kernel_id, r"import os; os.mkdir(b'\xff\xfe'); os.mkdir('new\nline'); os.link('-rf', 'hard')")
    name, _ = await asked.commit(kernel_id)
    second = await up(host, image=name)
    listing = "import os; print(sorted(os.listdir(b'.')), os.readlink('root'), os.stat('hard').st_nlink)"
    seen = await python(host, second, listing)
    assert seen.strip() == r"[b'-rf', b'hard', b'new\nline', b'root', b'up', b'\xff\xfe'] / 2"


# -- registries ----------------------------------------------------------------------------------------------------------
AUTH = {"username": USERNAME, "password": PASSWORD}


async def test_an_image_is_pushed_and_pulled_with_a_password(
    host: Host, asked: Asked, registry: Registry, tiny_image: str
) -> None:
    kernel_id, job = await up(host, image=tiny_image), uuid4().hex
    (host.kernel(kernel_id).folders.scratch / "far").write_text("travelled")
    name, _ = await asked.commit(kernel_id, name=f"{registry.host}/team/other:1", job=job)
    snapshots = host.kernels.snapshots
    for wrong in (None, {**AUTH, "password": "wrong"}):
        with pytest.raises(RegistryDenied):
            await snapshots.push(job, name, wrong, lambda *_: None)
    pushed = await snapshots.push(job, name, AUTH, lambda *_: None)
    assert pushed["digest"].startswith("sha256:")
    assert b'"tags":["1"]' in registry.ask("team/other/tags/list")

    await snapshots.images.remove(name)
    with pytest.raises(EngineError) as refused:
        await host.kernels.pull(name, {})
    assert isinstance(pull_error(name, refused.value), RegistryDenied)
    wanted: list[str] = []

    async def credentials(_kernel_id: str, image: str) -> dict[str, str]:
        wanted.append(image)
        return AUTH

    host.kernels.credentials = credentials
    second = await up(host, image=name)
    assert wanted == [name]
    assert (host.kernel(second).folders.scratch / "far").read_text() == "travelled"
    image = await snapshots.images.look(name)
    assert image is not None
    assert {TASK_LABEL, HOME_LABEL} <= image.labels.keys()


async def test_a_registry_that_is_not_there_is_named(host: Host, asked: Asked) -> None:
    kernel_id = await up(host)
    name, _ = await asked.commit(kernel_id, name="127.0.0.1:1/team/tool:1")
    with pytest.raises(RegistryUnreachable, match=r"127\.0\.0\.1:1"):
        await host.kernels.snapshots.push(uuid4().hex, name, None, lambda *_: None)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("write /var/lib/docker/tmp/x: no space left on device", HostStorageFull),
        ("something else broke", CommitFailed),
    ],
)
def test_what_engines_say_of_a_commit(told: str, kind: type[Exception]) -> None:
    assert type(commit_error(EngineError(told))) is kind
    assert type(commit_error(EngineError("gone", unknown=True))) is AgentUnavailable
    assert type(commit_error(EngineError("no such container", missing="container"))) is SessionEnded


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("denied: requested access to the resource is denied", RegistryDenied),
        ("unauthorized: authentication required", RegistryDenied),
        ("no basic auth credentials", RegistryDenied),
        ("dial tcp: lookup registry.example on 10.0.0.1:53: no such host", RegistryUnreachable),
        ("Get http://h:1/v2/: dial tcp 127.0.0.1:1: connect: connection refused", RegistryUnreachable),
        ("http: server gave HTTP response to HTTPS client", RegistryUnreachable),
        ("received unexpected HTTP status: 507: no space left on device", PushFailed),
        ("manifest invalid", PushFailed),
    ],
)
def test_what_engines_say_of_a_push(told: str, kind: type[Exception]) -> None:
    assert type(push_error("h:1/r:1", EngineError(told))) is kind
    assert type(push_error("h:1/r:1", EngineError("No such image", missing="image"))) is ImageNotFound
