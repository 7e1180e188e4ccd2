"""What users do all day, each piece checked by what it answers: the drivers that lead processes to their crash points.

A driver goes on over a fault, as a client with patience does, and raises `Violation` when something that was
acknowledged does not hold. `DRIVERS` has them by name; `tests/faults/routes.py` says which one reaches which point.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import moorage
from moorage import aio
from moorage.errors import StreamBroken

from tests.faults.installation import Installation
from tests.faults.model import MARKS, Model

SMALL: Final[dict[str, Any]] = {"cpu": 0.2, "mem": "128m"}
#: No operation takes so long, whatever has been killed.
SECONDS: Final = 60.0


class Violation(AssertionError):
    """Something that was acknowledged does not hold."""


@dataclass
class Town:
    """Where the work is done: some sessions that live on over all faults, and the memory of what was done in them."""

    installation: Installation
    client: aio.Client
    rng: Random
    model: Model
    homes: list[aio.Session] = field(default_factory=list)
    spare: aio.Session | None = None  #: is restarted again and again
    count: int = 0
    written: set[str] = field(default_factory=set)  #: paths that somebody writes just now

    @classmethod
    @asynccontextmanager
    async def founded(cls, installation: Installation, seed: int, *, homes: int = 2) -> AsyncIterator[Town]:
        rng = Random(seed)
        async with installation.client() as client:
            town = cls(installation, client, rng, Model(rng))
            try:
                # the first one may write to its image's folders, so that a commit has something to ask the engine for
                await client.resource_groups.modify("default", profile="standard")
                town.homes.append(await client.sessions.create("home-0", **SMALL))
                await client.resource_groups.modify("default", profile="hardened")
                for number in range(1, homes):
                    town.homes.append(await client.sessions.create(f"home-{number}", **SMALL))
                town.spare = await client.sessions.create(
                    "spare", **SMALL, session_type="batch", startup_command="sleep 1000000"
                )
                yield town
            finally:
                async for session in client.sessions.iterate():
                    await session.destroy(wait=30)

    def name(self, what: str) -> str:
        """New, and the same for the same seed."""
        self.count += 1
        return f"{what}-{self.count:05d}"

    def key(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def home(self) -> aio.Session:
        return self.rng.choice(self.homes)

    @asynccontextmanager
    async def session(self, **settings: Any) -> AsyncIterator[aio.Session]:
        """For a while."""
        session = await self.client.sessions.create(self.name("guest"), **{**SMALL, **settings})
        try:
            yield session
        finally:
            self.model.forget(session)
            await session.destroy(wait=SECONDS)


Driver = Callable[[Town], Coroutine[Any, Any, None]]
DRIVERS: dict[str, Driver] = {}


def driver(function: Driver) -> Driver:
    @functools.wraps(function)
    async def within(town: Town) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await function(town)
        except TimeoutError:
            raise Violation(f"I11 {function.__name__} was not done within {SECONDS:g} s") from None
        except moorage.MoorageError as error:
            raise Violation(f"I9 {function.__name__} was refused: {error.code}: {error.message}") from error

    DRIVERS[function.__name__] = within
    return within


def expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise Violation(f"{what}: {got!r} instead of {wanted!r}")


# -- executions --------------------------------------------------------------------------------------------------------
async def mark(town: Town, session: aio.Session) -> None:
    """One execution that leaves a mark, asked for twice with one key."""
    name, key = town.name("mark"), town.key()
    code = f"with open('{MARKS}','a') as f: f.write('{name}\\n')\nfor i in range(3): print('{name}', i)"
    wanted = "".join(f"{name} {i}\n" for i in range(3))
    town.model.begins(session, name)
    ran = await session.run_code(code, idempotency_key=key)
    expect((ran.stdout, ran.error), (wanted, None), f"I3 the output of {name}")
    again = await session.run_code(code, idempotency_key=key)
    expect((again.run_id, again.stdout), (ran.run_id, wanted), f"I6 the second answer to {name}")
    town.model.printed(session, name, ran.run_id, wanted)


@driver
async def execute(town: Town) -> None:
    await mark(town, town.home())


@driver
async def feed(town: Town) -> None:
    """Input that a run waits for."""
    word = town.name("word")
    run = await town.home().executions.start("print('got', input())", idempotency_key=town.key())
    await run.send_stdin(word + "\n")
    expect((await run.wait(timeout=SECONDS)).stdout, f"got {word}\n", "I7 what was typed")


@driver
async def interrupt(town: Town) -> None:
    session = town.home()
    run = await session.executions.start(
        "import time\nprint('on', flush=True)\ntime.sleep(600)", idempotency_key=town.key()
    )
    async for record in run.output():
        if record.text:
            break
    await session.interrupt(run.run_id)
    expect((await run.wait(timeout=SECONDS)).reason, "interrupted", "the interrupted run ended as")


@driver
async def kill(town: Town) -> None:
    run = await town.home().executions.start("sleep 600", mode="batch", idempotency_key=town.key())
    await run.kill()
    expect((await run.wait(timeout=SECONDS)).reason, "killed", "the killed run ended as")


@driver
async def process(town: Town) -> None:
    """A terminal."""
    async with town.home().pty.open() as terminal:
        await terminal.send("exit 7\n")
        # its connection may go with the process that carried it: that is said openly
        with suppress(StreamBroken):
            expect((await terminal.wait()).exit_code, 7, "the terminal's exit code")


# -- files -------------------------------------------------------------------------------------------------------------
@driver
async def upload(town: Town) -> None:
    session, data = town.home(), town.rng.randbytes(100_000)
    # of two who write one file at once, either may be the last, whoever is answered last
    path = town.rng.choice([path for n in range(8) if (path := f"files/{n}") not in town.written])
    town.written.add(path)
    try:
        while True:
            try:
                await session.files.write(path, data)
                break
            except moorage.errors.TransferFailed:  # "nothing was kept; repeat it": the SDK leaves that to the caller
                await asyncio.sleep(0.1)
        town.model.wrote(session, path, data)
        expect(await session.files.read_bytes(path), data, f"I7 the file {path}")
    finally:
        town.written.discard(path)


@driver
async def manage(town: Town) -> None:
    files, folder = town.home().files, town.name("folder")
    await files.mkdir(folder)
    await files.write(f"{folder}/one", b"1")
    await files.move(f"{folder}/one", f"{folder}/two")
    expect(await files.read_bytes(f"{folder}/two"), b"1", "I7 the file that was moved")
    expect(await files.exists(f"{folder}/one"), False, "I6 the name that it had")
    await files.remove(folder, recursive=True)
    expect(await files.exists(folder), False, "I7 the folder that was removed")


def archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@driver
async def unpack(town: Town) -> None:
    files, name = town.home().files, f"unpacked/{town.rng.randrange(4)}"
    content = town.rng.randbytes(1000)
    await files.unpack(io.BytesIO(archive("member", content)), name)
    expect(await files.read_bytes(f"{name}/member"), content, "I7 what was unpacked")


# -- lives of sessions ---------------------------------------------------------------------------------------------------
@driver
async def life(town: Town) -> None:
    """Created twice with one key, used, destroyed twice."""
    name, key = town.name("guest"), town.key()
    session = await town.client.sessions.create(name, **SMALL, idempotency_key=key)
    again = await town.client.sessions.create(name, **SMALL, idempotency_key=key)
    expect(again.id, session.id, "I6 the session that was asked for again")
    await mark(town, session)
    expect(await town.model.marks(session.id), [], "marks")
    town.model.forget(session)
    await session.destroy(wait=SECONDS)
    await session.destroy(wait=SECONDS)
    expect(session.status, "TERMINATED", "the destroyed session")
    await kept_output(session)


async def kept_output(session: aio.Session) -> None:
    """What it has printed is read after its end as well, from the manager's copy when the host's has gone."""
    runs = await session.executions.list()
    text = "".join([record.text async for record in session.executions.get(runs[0].run_id).output(0, follow=False)])
    expect(text.count("\n"), 3, "I7 lines of output after the session's end")


@driver
async def restart(town: Town) -> None:
    assert town.spare is not None
    await town.spare.restart(wait=SECONDS)
    await mark(town, town.spare)


@driver
async def lifetime(town: Town) -> None:
    """It ends by itself when its time is over."""
    try:
        async with town.session(timeout=1.0) as session:
            await session.wait_until("TERMINATED", timeout=SECONDS)
    except moorage.errors.SessionEnded:  # it was over before anybody could wait for it
        pass


@driver
async def batch(town: Town) -> None:
    """A job, and one that waits for it; what they leave is fetched."""
    job: dict[str, Any] = {**SMALL, "session_type": "batch", "wait": False}
    first = await town.client.sessions.create(
        town.name("first"), **job, startup_command="mkdir -p out; echo once >> out/it", outputs=["out"]
    )
    second = await town.client.sessions.create(
        town.name("second"), **job, startup_command="echo done", depends_on=[first.id]
    )
    for session in (first, second):
        await session.wait_until("TERMINATED", timeout=SECONDS)
        expect((await session.refresh()).info.result, "SUCCESS", f"the result of {session.name}")
    folder = await asyncio.to_thread(lambda: Path(os.path.realpath(town.installation.folder)) / town.name("results"))
    await first.download_results(folder)
    expect((folder / "out" / "it").read_text(), "once\n", "I3 what the job has left")


@driver
async def cluster(town: Town) -> None:
    session = await town.client.sessions.create_cluster(town.name("cluster"), workers=1, **SMALL)
    try:
        ran = await session.run_on_all("hostname")
        expect(len(ran), 2, "kernels that ran")
    finally:
        await session.destroy(wait=SECONDS)


@driver
async def grow(town: Town) -> None:
    """A cluster gets one more worker; those that are there learn of it."""
    session = await town.client.sessions.create_cluster(town.name("cluster"), workers=1, **SMALL)
    try:
        await session.modify(cluster_size=3)
        await session.wait_for_kernels(timeout=SECONDS)
        expect(len(await session.run_on_all("hostname")), 3, "kernels that ran")
    finally:
        await session.destroy(wait=SECONDS)


@driver
async def template(town: Town) -> None:
    name = town.name("template")
    await town.client.templates.create(
        name, {"session": {"image": "python", "resource_slots": {"cpu": 0.2, "mem": "128m"}}}
    )
    session = await town.client.sessions.create_from_template(name, name=town.name("guest"))
    await session.destroy(wait=SECONDS)
    await town.client.templates.remove(name)


# -- what answers calls --------------------------------------------------------------------------------------------------
_COUNTER: Final = """
class Counter:
    async def setup(self):
        self.number = 0

    async def run(self, word):
        self.number += 1
        print(word)
        return [self.number, word]

    async def wait(self, seconds):
        import asyncio
        await asyncio.sleep(seconds)
"""


@driver
async def calls(town: Town) -> None:
    """An app is brought and loaded; each call is answered once, however often it is asked for, and one is cancelled."""
    name = town.name("app")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "counter.py").write_text(_COUNTER)
        await town.client.apps.deploy(folder, name=name, entry="counter:Counter", **SMALL)
    session = await town.client.sessions.create(town.name("worker"), app=name, idle_timeout=3600)
    early = await session.calls.start("run", "early")
    for number in range(2, 4):
        key, word = town.key(), town.name("word")
        for asked in ("first", "second"):
            answer = await session.call("run", word, idempotency_key=key)
            expect(answer, [number, word], f"I3 the {asked} answer to a call")
    expect(await early.output(SECONDS), [1, "early"], "I3 the answer to what was asked before the app was ready")
    waiting = await session.calls.start("wait", 600, idempotency_key=town.key())
    await session.keep_alive()
    await waiting.cancel()
    expect((await waiting.wait(SECONDS)).status, "cancelled", "a call that was cancelled is")
    expect((await session.refresh()).info.call_count, 3, "I10 the calls that were counted")
    partials = [value async for value in early.partials()]
    expect(partials, [], "what a call gave on its way")
    await session.destroy(wait=SECONDS)
    expect((await early.refresh()).output, [1, "early"], "I7 the answer to a call of a session that is gone")
    await town.client.apps.remove(name)


# -- what is changed of them -----------------------------------------------------------------------------------------------
@driver
async def rename(town: Town) -> None:
    session, name = town.home(), town.name("home")
    await session.rename(name)
    expect((await town.client.sessions.get(name)).id, session.id, "I7 the session of that name")


@driver
async def modify(town: Town) -> None:
    session = town.home()
    cpu = town.rng.choice([0.2, 0.3, 0.4])
    await session.modify(cpu=cpu)
    await session.refresh()
    expect(session.info.requested_slots["cpu"], cpu, "I7 the CPUs of a session")


@driver
async def state(town: Town) -> None:
    """Kept, read, forgotten; forgetting is answered alike however often it is asked."""
    kept, key = town.home().state, town.name("key")
    await kept.set(key, {"count": town.count})
    expect(await kept.get(key), {"count": town.count}, "I7 a value of the state")
    expect(await kept.delete(key), True, "I6 forgetting a value")
    expect(await kept.get(key), None, "I7 a value that was forgotten")


@driver
async def exempt(town: Town) -> None:
    session = town.home()
    await session.exempt(True, reason="a campaign")
    await session.exempt(False)


@driver
async def look(town: Town) -> None:
    await town.client.sessions.check_status([session.id for session in town.homes])
