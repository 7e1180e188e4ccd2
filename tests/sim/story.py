"""One seed from beginning to end: a world full of faults, then calm, then the end of everything."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actions.administration import hash_secret
from repositories.agents import enrol, issue_token
from tests.scenario import ALICE, IMAGE, NOW, PROJECT, insert
from tests.sim.checks import Violation
from tests.sim.store import Backend, SerialDatabase
from tests.sim.users import Users
from tests.sim.virtual import Deadlock, Endless
from tests.sim.world import EPOCH, World

FAULT_SECONDS = 30.0
#: After faults have stopped, everything has come to rest within this (virtual) time. Less than the deadline of an end,
#: which would hide what has got stuck.
SETTLE_SECONDS = 120.0
#: And stays so, for longer than a lease.
REST_SECONDS = 40.0


@dataclass(frozen=True)
class Outcome:
    seed: int
    failure: str | None
    trace: tuple[str, ...]
    virtual_seconds: float

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def play(seed: int, backend: Backend, *, sessions: int = 8) -> Outcome:
    """The same seed gives the same trace, on any machine. The database is as the migrations left it."""
    folder = Path(tempfile.mkdtemp(prefix=f"moorage-sim-{seed}-", dir=_memory()))
    world = World(seed, backend, folder)
    failure = None
    mistakes = _Mistakes(world)
    logging.getLogger("moorage").addHandler(mistakes)
    try:
        asyncio.set_event_loop(world.loop)
        world.loop.run_until_complete(_story(world, sessions))
    except Violation as violation:
        failure = str(violation)
    except Deadlock:
        failure = "everybody waits for ever"
    except Endless:
        failure = f"somebody spins at {world.loop.now:.3f}"
    except AssertionError as error:
        failure = str(error)
    finally:
        asyncio.set_event_loop(None)
        now = world.loop.now
        logging.getLogger("moorage").removeHandler(mistakes)
        world.close()
        backend.call("execute", "ROLLBACK")
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(seed, failure, tuple(world.trace), now)


class _Mistakes(logging.Handler):
    """Whatever production logs with a traceback is a mistake of ours, not a fault that it was given."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._world.watcher.fail(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}")


async def _story(world: World, sessions: int) -> None:
    await _furnish(world)
    for one in world.daemons:
        one.boot()
    users = Users(world, ALICE)
    lives = [asyncio.ensure_future(users.live(number, FAULT_SECONDS)) for number in range(sessions)]
    mischief = asyncio.ensure_future(world.mischief(FAULT_SECONDS))
    outages = asyncio.ensure_future(world.outages(FAULT_SECONDS))
    await _unless_violated(world, asyncio.gather(mischief, outages, *lives))
    world.calm()
    await _until(world, world.watcher.unsettled, "has not come to rest")
    unheard = world.unheard()
    await _unless_violated(world, asyncio.ensure_future(asyncio.sleep(REST_SECONDS)))
    if still := unheard & world.unheard():
        raise Violation(f"I11 {'; '.join(sorted(still)[:6])}")
    await _until(world, world.watcher.unsettled, "does not stay at rest")
    if world.watcher.lost():
        raise Violation(f"I11 taken for lost, while they are heard of: {world.watcher.lost()}")
    await _unless_violated(world, asyncio.ensure_future(users.ask_again()))
    if wrong := users.missing() or world.watcher.too_early():
        raise Violation("; ".join(wrong))
    world.note("everything is destroyed")
    await _unless_violated(world, asyncio.ensure_future(users.destroy_all()))
    await _until(world, world.watcher.leftovers, "is left over")


async def _unless_violated(world: World, work: asyncio.Future[Any]) -> None:
    while not work.done():
        await asyncio.wait({work}, timeout=0.25)
        _check(world)
    work.result()


async def _until(world: World, what: Any, said: str) -> None:
    """I11: within its time."""
    end = world.loop.now + SETTLE_SECONDS
    while left := what():
        _check(world)
        if world.loop.now > end:
            raise Violation(f"I11 {said}: {'; '.join(left[:6])}")
        await asyncio.sleep(1.0)
    _check(world)


def _check(world: World) -> None:
    if world.watcher.failure is not None:
        raise world.watcher.failure


async def _furnish(world: World) -> None:
    """A user with a keypair, an image, and agents that have joined."""
    world.faulty = False
    async with SerialDatabase(world.store).transaction() as connection:
        user = {"id": ALICE.user_id, "email": "a@example.org", "username": "alice", "domain": "default"}
        await insert(connection, "users", {**user, "role": "user", "created_at": NOW})
        await insert(connection, "project_members", {"project_id": PROJECT, "user_id": ALICE.user_id})
        keypair = {"access_key": ALICE.access_key, "secret_hash": hash_secret("s"), "user_id": ALICE.user_id}
        await insert(connection, "keypairs", {**keypair, "created_at": NOW})
        await insert(connection, "images", {"name": IMAGE, "architecture": "x86_64", "created_at": NOW})
        quota = {"scope": "user", "scope_id": str(ALICE.user_id), "name": "sessions", "max_amount": 100}
        await insert(connection, "quotas", quota)
        for agent in world.agents:
            token = await issue_token(connection, expires_at=EPOCH.replace(year=2031), now=EPOCH)
            await enrol(connection, token, agent.name, f"of {agent.name}", now=EPOCH)  # type: ignore[arg-type]
    world.faulty = True


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
