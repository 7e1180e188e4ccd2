"""Hundreds of hosts that are cut off, stopped and killed again and again, on a clock turned by hand, over a real PostgreSQL.

Real: the lease of the agent, `decide`, all SQL, the loops of the manager. Not real: the containers, which are intervals of
time, and the network, which loses, delays and repeats as the seed says. Whether two attempts of a session ever run at the
same moment is judged by these intervals, whatever anybody has written down.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from agent.intent import Intent, Step, Stored, decide
from agent.lease import Lease
from agent.wire import Fact, exit_record
from domain.ids import AgentId, SessionId
from domain.session import KernelState, Want
from manager.fencing import Replacements
from manager.herald import Herald
from manager.loop import Loop
from manager.reconciler import Deadlines, LostAgents
from repositories import kernels as kernel_rows
from repositories.agents import heartbeats, hello
from repositories.database import Database
from tests.control.rows import add_agent, add_sessions, plan_and_place, said_hello

LEASE = 20.0
STEP = 1.25
#: Of each host, for two sessions: so that nearly all of them have some, and what is lost finds room elsewhere.
ROOM = {"cpu": 2000, "mem": 2048}
_BEAT = 5.0
#: Of an agent, to see that a lease is over and to have ended the container: here always as late as may be.
_END_SECONDS = 5.0
KINDS = ("both ways", "to the host", "from the host", "20 % loss", "stopped", "killed")


class Silent:
    """A herald whom nobody hears: all loops are stepped."""

    def announce(self, topic: str, *ids: object) -> None: ...


@dataclass
class Container:
    """What runs, from when to when, whoever knows of it."""

    session_id: str
    attempt: int
    begun_at: float
    ended_at: float | None = None


@dataclass
class HostKernel:
    stored: Stored
    session_id: str = ""
    container: Container | None = None
    exit: dict[str, Any] | None = None
    seq: int = 0


@dataclass
class Cut:
    """From when to when something is wrong with a host."""

    kind: str
    begins: float
    ends: float


@dataclass
class Host:
    name: AgentId
    cuts: list[Cut]
    lease: Lease
    boot_no: int = 1
    seq: int = 0
    connected: bool = True
    alive: bool = True
    beats_at: float = 0.0
    answered_at: float = 0.0
    kernels: dict[UUID, HostKernel] = field(default_factory=dict)
    inbox: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)

    def cut(self, now: float) -> str:
        return next((cut.kind for cut in self.cuts if cut.begins <= now < cut.ends), "")


class World:
    """`run` until every host has had its cuts. `violations` says what must never be."""

    def __init__(self, database: Database, seed: int, *, hosts: int, cuts: int, clock_jumps: bool = True) -> None:
        self.random = random.Random(seed)
        self.database = database
        self.now = 0.0
        self.offset = 0.0  #: of everybody's wall clock
        self.cuts = hosts * cuts
        self.replaced = 0
        self.violations: list[str] = []
        self.containers: dict[str, list[Container]] = {}
        self.hosts = {AgentId(f"h{n}"): self._host(n, cuts) for n in range(hosts)}
        self.ends = max(cut.ends for host in self.hosts.values() for cut in host.cuts) + 60
        self._jumps = sorted(self.random.uniform(0, self.ends) for _ in range(8)) if clock_jumps else []
        self._late: list[tuple[float, int, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._number = itertools.count()
        herald, elapsed = cast(Herald, Silent()), lambda: self.now
        self.replacements = Replacements(database, herald, clock=self.wall, elapsed=elapsed)
        lost = LostAgents(database, herald, clock=self.wall, lease_seconds=30)
        lost.look_again(after_seconds=-1)
        self.loops: list[Loop] = [lost, self.replacements, Deadlines(database, herald, clock=self.wall)]

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now + self.offset)

    def _host(self, number: int, cuts: int) -> Host:
        at, made = self.random.uniform(5, 20), []
        for _ in range(cuts):
            lasts = self.random.choice((3, 12, LEASE - 1, LEASE + 1, 2 * LEASE)) * self.random.uniform(0.8, 1.2)
            made.append(Cut(self.random.choice(KINDS), at, at + lasts))
            at += lasts + self.random.uniform(1, 40)
        return Host(AgentId(f"h{number}"), made, Lease(clock=lambda: self.now, boot_id="one"))

    # -- time ----------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        async with self.database.transaction() as connection:
            for host in self.hosts:
                await add_agent(connection, host, now=self.wall(), lease_seconds=30, cpu=ROOM["cpu"], mem=ROOM["mem"])
                await connection.execute("UPDATE agents SET info = '{\"fences\": true}' WHERE id = $1", host)
            sessions = await add_sessions(connection, len(self.hosts) * 3 // 2, created_at=self.wall())
            await self._lease(connection, sessions)
        while self.now < self.ends:
            await self.step()

    @staticmethod
    async def _lease(connection: Any, sessions: list[SessionId]) -> None:
        await connection.execute(
            "UPDATE sessions SET on_agent_lost = 'replace', agent_lease_seconds = $2 WHERE id = ANY($1::uuid[])",
            sessions,
            LEASE,
        )

    async def step(self) -> None:
        self.now += STEP
        while self._jumps and self._jumps[0] <= self.now:
            self._jumps.pop(0)
            self.offset = self.random.choice((0.0, 300.0, -300.0, -7200.0))
        while self._late and self._late[0][0] <= self.now:
            await heapq.heappop(self._late)[2]()
        for host in self.hosts.values():
            await self._live(host)
        for loop in self.loops:
            await loop.step()
        async with self.database.transaction() as connection:
            if await connection.fetchval("SELECT true FROM sessions WHERE status = 'PENDING' LIMIT 1"):
                await plan_and_place(connection, self.wall())
        await self._dispatch()

    def later(self, seconds: float, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        heapq.heappush(self._late, (self.now + seconds, next(self._number), what))

    # -- the network -----------------------------------------------------------------------------------------------------
    def _passes(self, host: Host, way: str) -> bool:
        kind = host.cut(self.now)
        if kind == "20 % loss":
            return self.random.random() > 0.2
        return kind not in ("both ways", way)

    def _delay(self) -> float:
        return self.random.choice((0.0, 0.0, 0.0, 0.5, 3.0, 12.0))

    # -- a host ------------------------------------------------------------------------------------------------------------
    async def _live(self, host: Host) -> None:
        kind = host.cut(self.now)
        self._runners_end_what_is_over(host)
        if kind in ("stopped", "killed"):
            if kind == "killed":
                host.inbox.clear()
            host.alive = False
            return
        if not host.alive:
            await self._wake(host)
        if self.now - host.beats_at >= _BEAT:
            host.beats_at = self.now
            if host.connected:
                self._beat(host, greet=False)
        if host.connected and self.now - host.answered_at > 2 * _BEAT:
            host.connected = False
        if not host.connected:
            self._beat(host, greet=True)

    async def _wake(self, host: Host) -> None:
        """As a stopped process goes on: first with what has lain in its sockets; a killed one begins anew."""
        host.alive, host.connected = True, False
        for handle in host.inbox:
            await handle()
        host.inbox.clear()
        host.boot_no += 1
        for kernel in host.kernels.values():
            kernel.seq = self._seq(host)

    def _runners_end_what_is_over(self, host: Host) -> None:
        """By themselves, for the agent may be stopped or dead."""
        ends = host.lease.until(LEASE)
        for kernel in host.kernels.values():
            box = kernel.container
            if box is not None and box.ended_at is None and ends <= self.now:
                box.ended_at = min(self.now, ends) + self.random.uniform(0, _END_SECONDS)
                kernel.stored = Stored(kernel.stored.intent, KernelState.EXITED)
                kernel.exit = exit_record("fenced", "over")
                kernel.seq = self._seq(host)

    def _seq(self, host: Host) -> int:
        host.seq += 1
        return host.seq

    def _beat(self, host: Host, *, greet: bool) -> None:
        """A sign of life, or a hello on a new connection: written down late or not at all, answered late or not at all."""
        sent_at, facts = self.now, [self._fact(host, one) for one in host.kernels]

        async def arrives() -> None:
            async with self.database.transaction() as connection:
                if greet:
                    said = said_hello(
                        host.name,
                        uid="first",
                        boot_no=host.boot_no,
                        facts=facts,
                        resources=ROOM,
                    )
                    await hello(connection, said, now=self.wall(), lease_seconds=30)
                    await connection.execute("UPDATE agents SET info = '{\"fences\": true}' WHERE id = $1", host.name)
                else:
                    await heartbeats(connection, [host.name], now=self.wall(), lease_seconds=30)
                await kernel_rows.record_facts(connection, [(host.name, fact) for fact in facts], now=self.wall())
            if self._passes(host, "to the host"):
                self.later(self._delay(), answered)

        async def answered() -> None:
            if not host.alive or host.cut(self.now) in ("stopped", "killed"):
                return
            host.lease.renewed(sent_at)
            host.answered_at, host.connected = self.now, True

        if self._passes(host, "from the host"):
            self.later(self._delay(), arrives)

    def _fact(self, host: Host, kernel_id: UUID) -> Fact:
        kernel = host.kernels[kernel_id]
        intent = kernel.stored.intent
        return Fact(
            kernel_id=kernel_id.hex,
            attempt=intent.attempt,
            generation=intent.generation,
            observed=kernel.stored.observed,
            exit=kernel.exit,
            boot_no=host.boot_no,
            seq=kernel.seq,
        )

    # -- intents -----------------------------------------------------------------------------------------------------------
    async def _dispatch(self) -> None:
        async with self.database.reader() as connection:
            intents = await kernel_rows.claim(
                connection, list(self.hosts), by=uuid4(), now=self.wall(), limit=500, claim_seconds=2.0
            )
            again = self.wall() + timedelta(seconds=self.random.uniform(1, 5))
            for intent in intents:
                await kernel_rows.try_again(connection, intent, at=again)
        for intent in intents:
            host = self.hosts[intent.agent_id]
            for _ in range(self.random.choice((1, 1, 1, 2))):  # some arrive twice
                self._send(host, intent)

    def _send(self, host: Host, intent: kernel_rows.Intent) -> None:
        async def handle() -> None:
            await self._ensure(host, intent)

        async def arrives() -> None:
            if not host.alive:
                host.inbox.append(handle)  # it lies in the socket of a process that is stopped
            else:
                await handle()

        if self._passes(host, "to the host"):
            self.later(self._delay(), arrives)

    async def _ensure(self, host: Host, asked: kernel_rows.Intent) -> None:
        """As agent.host and agent.kernels do."""
        if asked.want is Want.RUN and host.lease.left(LEASE) <= 0:
            return
        known = host.kernels.get(asked.kernel_id)
        intent = Intent(asked.attempt, asked.generation, asked.want)
        step = decide(known.stored if known else None, intent)
        if step in (Step.STALE, Step.SAME):
            return
        kernel = known or HostKernel(Stored(intent, KernelState.GONE), str(asked.session_id))
        host.kernels[asked.kernel_id] = kernel
        observed = kernel.stored.observed
        if step in (Step.START, Step.REPLACE):
            self._begin(kernel, asked)
            observed, kernel.exit = KernelState.RUNNING, None
        elif step in (Step.REMOVE, Step.TOMBSTONE):
            if kernel.container is not None and kernel.container.ended_at is None:
                kernel.container.ended_at = self.now
            observed = KernelState.GONE
        kernel.stored = Stored(intent, observed)
        kernel.seq = self._seq(host)

    def _begin(self, kernel: HostKernel, asked: kernel_rows.Intent) -> None:
        session_id = str(asked.session_id)
        others = self.containers.setdefault(session_id, [])
        for other in others:
            if other.ended_at is None or other.ended_at > self.now:
                self.violations.append(
                    f"{self.now:.1f} s: attempt {asked.attempt} of {session_id} begins while attempt {other.attempt} runs"
                )
        if others:
            self.replaced += 1
        kernel.container = Container(session_id, asked.attempt, self.now)
        others.append(kernel.container)
