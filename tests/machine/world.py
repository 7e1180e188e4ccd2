"""What the state machine acts on: a real PostgreSQL, the real processor, planner and deadlines, and a clock turned by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from actions import Action
from agent.wire import Fact
from domain.errors import MoorageError
from domain.ids import AgentId
from domain.principal import Principal
from manager.processor import Processor
from manager.reconciler import Deadlines
from manager.world import Identities, SessionService, validated
from repositories.agents import hello
from repositories.database import Database
from repositories.fsck import CHECKS
from repositories.kernels import claim, record_facts
from tests.agent.fake import FakeAgent
from tests.control.fakes import Clock
from tests.control.rows import add_agent, plan_and_place, said_hello
from tests.machine.hosts import Host
from tests.scenario import ALICE, MALLORY, Outbox, insert, people_and_a_host

T = TypeVar("T")
CPU, MEM = 4000, 8192
#: Of fsck's invariants those that hold at every moment.
INVARIANTS: Final = ("I1", "I3", "I4", "I5", "I6", "I8")


class World:
    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.database = self.run(Database.connect(dsn, max_size=6))
        self.hosts = [Host(AgentId("a")), Host(AgentId("b"))]
        self.run(self._furnish())
        outbox: Any = Outbox()
        service = SessionService(self.database, outbox, FakeAgent(), clock=self.clock)
        ids = (UUID(int=0xABC0000 + number) for number in itertools.count())
        self.processor = service.processor = Processor(
            self.database, Identities(self.database, outbox), outbox, service,
            observe=lambda *_: None, now=self.clock, new_id=lambda: next(ids),
        )  # fmt: skip
        self._deadlines = Deadlines(self.database, outbox, clock=self.clock)
        wanted = [check for check in CHECKS if check.invariant in INVARIANTS]
        self._broken = " UNION ALL ".join(
            f"SELECT '{one.invariant} {one.name}' AS name, subject, detail FROM ({one.query}) q" for one in wanted
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self.database.close())
        self.loop.close()

    async def _furnish(self) -> None:
        """Alice may have three sessions at a time, Mallory four CPUs."""
        async with self.database.transaction() as connection:
            await people_and_a_host(connection)
            await connection.execute("DELETE FROM resources; DELETE FROM agents")
            for host in self.hosts:
                await add_agent(connection, host.name, now=self.clock(), cpu=CPU, mem=MEM)
            for who, name, most in ((ALICE, "sessions", 3), (MALLORY, "cpu", 4000)):
                quota = {"scope": "user", "scope_id": str(who.user_id), "name": name, "max_amount": most}
                await insert(connection, "quotas", quota)

    # -- what happens ------------------------------------------------------------------------------------------------
    async def act(self, action: Action[Any, Any], by: Principal, key: str | None) -> Any:
        """The answer, or the error that was the answer."""
        try:
            return await self.processor.run(validated(action), by=by, key=key)
        except MoorageError as error:
            return error

    async def plan(self) -> None:
        async with self.database.transaction() as connection:
            await plan_and_place(connection, self.clock())

    async def dispatch(self, host: Host, manager: int) -> None:
        """One of two managers asks the host what is due; whether its answer arrives is another question."""
        async with self.database.reader() as connection:
            intents = await claim(
                connection, [host.name], by=UUID(int=manager), now=self.clock(), limit=8, claim_seconds=2.0
            )
        for intent in intents:
            host.take_on(intent)

    async def tell(self, host: Host, facts: Sequence[Fact]) -> None:
        async with self.database.transaction() as connection:
            await record_facts(connection, [(host.name, fact) for fact in facts], now=self.clock())

    async def greet(self, host: Host, facts: Sequence[Fact]) -> None:
        said = said_hello(host.name, resources={"cpu": CPU, "mem": MEM}, boot_no=host.boot_no, facts=facts)
        async with self.database.transaction() as connection:
            await hello(connection, said, now=self.clock(), lease_seconds=1e6)
        await self.tell(host, facts)

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += timedelta(seconds=seconds)
        await self._deadlines.step()

    # -- what must hold ----------------------------------------------------------------------------------------------
    async def broken(self) -> list[str]:
        async with self.database.reader() as connection:
            rows = await connection.fetch(self._broken.replace("$1", f"'{self.clock().isoformat()}'"))
        return [f"{row['name']}: {row['subject']} {row['detail']}" for row in rows]

    async def moves(self) -> list[str]:
        """All transitions that took place: source and event."""
        async with self.database.reader() as connection:
            rows = await connection.fetch("SELECT source, event FROM status_history WHERE source IS NOT NULL")
        return [f"{row['source']} {row['event']}" for row in rows]

    async def untrue(self) -> list[str]:
        """What the database holds against what the hosts know: slots are free only where nothing is left."""
        async with self.database.reader() as connection:
            rows = await connection.fetch("SELECT id::text, agent_id, attempt FROM kernels WHERE observed = 'GONE'")
        gone = {(row["agent_id"], row["id"]): row["attempt"] for row in rows}
        return [
            f"{key} is on {host.name}, which is said to have nothing of it"
            for host in self.hosts for key, kernel in host.kernels.items()
            if kernel.observed != "GONE" and gone.get((host.name, key), 0) >= kernel.intent.attempt
        ]  # fmt: skip
