"""Eight made-up devices of two models in thousands of random operations, through the scheduler and the statement that
takes slots: whole devices, instances of MIG and shares.

MOORAGE_GPU_OPERATIONS says how many (10,000 when nothing is said), MOORAGE_GPU_SEED with which seed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any, Final

from agent.wire import DeviceFact
from domain.ids import AgentId, SessionId
from domain.placement import Placement
from domain.scheduler import plan
from repositories import devices
from repositories.database import Connection, Database
from repositories.kernels import release
from repositories.placement import place
from repositories.snapshot import snapshot
from tests.control.gpus import A40, MIG, a_device, add_gpu_host, tell_devices
from tests.control.rows import NOW, TEST, add_sessions, assert_slots_add_up, plan_and_place

OPERATIONS: Final = int(os.environ.get("MOORAGE_GPU_OPERATIONS", "5000"))
SEED: Final = int(os.environ.get("MOORAGE_GPU_SEED", "20300101"))
HOSTS: Final = {
    "a": [
        a_device("h0", index=0, numa=0, links={"gpu/h1": 90, "gpu/h2": 60}),
        a_device("h1", index=1, numa=0, links={"gpu/h0": 90, "gpu/h2": 60}),
        a_device("h2", index=2, numa=1, links={"gpu/h0": 60, "gpu/h1": 60}),
        a_device("m0", MIG, 9984, index=3, parent="gpu/h3", profile="1g.10gb", whole_only=True),
        a_device("m1", MIG, 9984, index=3, parent="gpu/h3", profile="1g.10gb", whole_only=True),
    ],
    "b": [a_device(f"a{n}", A40, 46068, index=n) for n in range(3)],
}
_MOST_SESSIONS: Final = 25
#: Many, since commits cost; not all of them, since rows that were written a thousand times are slow until then.
_PER_TRANSACTION: Final = 50
#: What breaks a promise, of all devices at once: nothing, always.
_BROKEN: Final = """
    SELECT r.agent_id, r.name, r.used, r.reported, r.capacity, count(a.kernel_id) AS hands, coalesce(sum(a.amount), 0) AS held
    FROM resources r JOIN devices d USING (agent_id, name)
    LEFT JOIN allocations a USING (agent_id, name) LEFT JOIN kernels k ON k.id = a.kernel_id
    GROUP BY r.agent_id, r.name, d.offered_mib, d.out_since, d.info
    HAVING r.used <> coalesce(sum(a.amount), 0) OR r.used > r.capacity OR r.used > d.offered_mib
        OR (count(a.kernel_id) > 1 AND (bool_or(k.slots ? 'gpu') OR d.info -> 'whole_only' = 'true'))
        OR bool_or(k.slots ? 'gpu' AND a.amount <> d.offered_mib)
        OR bool_or(k.slots ? 'gpu-mem' AND d.info -> 'whole_only' = 'true')
        OR (d.out_since IS NOT NULL AND r.reported <> 0) OR (d.out_since IS NULL AND r.reported <> d.offered_mib)
"""
#: Of every kernel: as many devices as it asked for, of the model it asked for, all on its host.
_WRONGLY_SERVED: Final = """
    SELECT k.id, k.slots, s.constraints, array_agg(d.model) AS models FROM kernels k JOIN sessions s ON s.id = k.session_id
    JOIN allocations a ON a.kernel_id = k.id AND a.name LIKE 'gpu/%' LEFT JOIN devices d ON d.agent_id = a.agent_id AND d.name = a.name
    GROUP BY k.id, s.id
    HAVING bool_or(a.agent_id <> k.agent_id) OR count(*) <> coalesce((k.slots ->> 'gpu')::int, 1)
        OR (k.slots ? 'gpu-mem' AND sum(a.amount) <> (k.slots ->> 'gpu-mem')::bigint)
        OR (s.constraints ? 'gpu_model' AND NOT bool_and(d.model ~* ('\\m' || (s.constraints ->> 'gpu_model') || '\\M')))
        OR count(DISTINCT a.name) <> count(*) OR (SELECT count(*) FROM jsonb_object_keys(k.spec -> 'devices')) <> count(*)
"""


class Fleet:
    """Somebody does something, again and again; what is out, and who has what, is known beside the database."""

    connection: Connection

    def __init__(self, random: Random) -> None:
        self.random = random
        self.out: set[tuple[str, str]] = set()
        self.bad: set[tuple[str, str]] = set()
        self.seq = Counter[str]()
        self.did = Counter[str]()
        self.handed = Counter[str]()
        self.now = NOW

    async def open(self) -> None:
        await self.connection.execute("UPDATE resource_groups SET gpu_sharing = true")
        for name, told in HOSTS.items():
            await add_gpu_host(self.connection, name, told)

    async def step(self) -> None:
        ways: dict[Callable[[], Awaitable[None]], int] = {
            self.ask: 30, self.place: 24, self.end: 30, self.place_late: 6, self.break_one: 3, self.mend: 3,
            self.take_out: 2, self.put_in: 2,
        }  # fmt: skip
        [way] = self.random.choices(list(ways), list(ways.values()))
        self.did[way.__name__] += 1
        self.now += timedelta(seconds=1)
        await way()

    async def ask(self) -> None:
        """For whole devices, an instance, or a share; sometimes for several kernels."""
        roll, constraints = self.random.random(), {}
        if roll < 0.4:
            slots: dict[str, Any] = {"gpu": self.random.choice((1, 1, 1, 2, 3))}
            if self.random.random() < 0.5:
                constraints = {"gpu_model": self.random.choice(("h100", "A40", "NVIDIA"))}
        elif roll < 0.6:
            slots, constraints = {"gpu": self.random.choice((1, 1, 2))}, {"gpu_model": "mig"}
        else:
            slots = {"gpu-mem": self.random.choice((512, 4096, 10_000, 20_480, 46_068, 81_920))}
            if self.random.random() < 0.3:
                constraints = {"gpu_model": self.random.choice(("h100", "a40"))}
        kernels = self.random.choice((1, 1, 1, 1, 2))
        [session] = await add_sessions(
            self.connection, kernels=kernels, created_at=self.now, priority=self.random.choice((10, 10, 50)),
            cluster_mode=self.random.choice(("single-node", "multi-node")), cpu=100, mem=64, **slots,
        )  # fmt: skip
        if constraints:
            await self.connection.execute("UPDATE sessions SET constraints = $2 WHERE id = $1", session, constraints)

    async def place(self) -> None:
        await self._placed(await self._decided())

    async def place_late(self) -> None:
        """Something has changed between the decision and the write: devices went bad, another scheduler was faster."""
        placements = await self._decided()
        await self.random.choice((self.break_one, self.take_out, self.end, self.place))()
        await self._placed(placements)

    async def end(self) -> None:
        """A session ends, in the queue or on its host; several, when there are so many that most of them wait."""
        known = await self.connection.fetch("SELECT id FROM sessions ORDER BY id")
        rows = self.random.sample(known, min(len(known), 1 if len(known) < _MOST_SESSIONS else 4))
        for row in rows:
            ids = await self.connection.fetch("SELECT id FROM kernels WHERE session_id = $1", row["id"])
            await release(self.connection, [one["id"] for one in ids], now=self.now)
            await self.connection.execute("DELETE FROM sessions WHERE id = $1", row["id"])

    async def break_one(self) -> None:
        self.bad.add(self._any())
        await self._tell()

    async def mend(self) -> None:
        if self.bad:
            self.bad.remove(self.random.choice(sorted(self.bad)))
            await self._tell()

    async def take_out(self) -> None:
        agent, name = self._any()
        self.out.add((agent, name))
        await devices.take_out(self.connection, AgentId(agent), name, "fan", cause=TEST, now=self.now)

    async def put_in(self) -> None:
        for agent, name in self.random.sample(sorted(self.out), min(2, len(self.out))):
            if (agent, name) not in self.bad:
                self.out.remove((agent, name))
                await devices.put_in(self.connection, AgentId(agent), name, cause=TEST, now=self.now)

    async def heal(self) -> None:
        """Everything is well again, and nobody has anything."""
        self.bad.clear()
        await self._tell()
        for agent, name in sorted(self.out):
            await devices.put_in(self.connection, AgentId(agent), name, cause=TEST, now=self.now)
        self.out.clear()
        while await self.connection.fetchval("SELECT count(*) FROM sessions"):
            await self.end()

    async def check(self) -> None:
        assert not await self.connection.fetch(_BROKEN)
        assert not await self.connection.fetch(_WRONGLY_SERVED)

    def _any(self) -> tuple[str, str]:
        agent = self.random.choice(sorted(HOSTS))
        return agent, self.random.choice(HOSTS[agent]).name

    async def _tell(self) -> None:
        for agent, told in HOSTS.items():
            self.seq[agent] += 1
            await tell_devices(
                self.connection, agent, [self._as_it_is(agent, one) for one in told], seq=self.seq[agent]
            )

    def _as_it_is(self, agent: str, device: DeviceFact) -> DeviceFact:
        bad = (agent, device.name) in self.bad
        return replace(device, healthy=False, reason="XID 79") if bad else device

    async def _decided(self) -> tuple[Placement, ...]:
        return plan(await snapshot(self.connection, now=self.now), self.now).placements

    async def _placed(self, placements: tuple[Placement, ...]) -> None:
        placed = set((await place(self.connection, placements, now=self.now)).sessions)
        taken = [
            (str(kernel.agent_id), name)
            for placement in placements
            if placement.session_id in placed
            for kernel in placement.kernels
            for name in kernel.devices
        ]
        assert not set(taken) & (self.out | self.bad), "a device that is out was handed out"
        self.handed.update(name for _, name in taken)


async def test_no_device_is_ever_in_two_exclusive_hands(database: Database) -> None:
    fleet = Fleet(Random(SEED))
    async with database.transaction() as fleet.connection:
        await fleet.open()
    for _ in range(0, OPERATIONS, _PER_TRANSACTION):
        async with database.transaction() as fleet.connection:
            for number in range(_PER_TRANSACTION):
                await fleet.step()
                if number % 10 == 0:
                    await fleet.check()
    async with database.transaction() as connection:
        fleet.connection = connection
        await fleet.check()
        assert set(fleet.handed) == {one.name for told in HOSTS.values() for one in told}, fleet.handed
        # what was taken out comes back: everything can be had at once
        await fleet.heal()
        wanted = [("h100", 3), ("mig", 1), ("mig", 1), ("a40", 2), ("a40", 1)]
        sessions = [await _whole(connection, model, number) for model, number in wanted]
        assert set((await plan_and_place(connection, fleet.now)).sessions) == set(sessions)
        await fleet.check()
        held = await connection.fetchval("SELECT count(DISTINCT name) FROM allocations WHERE name LIKE 'gpu/%'")
        assert held == 8
    await assert_slots_add_up(database)


async def _whole(connection: Connection, model: str, number: int) -> SessionId:
    [session] = await add_sessions(connection, cpu=100, mem=64, gpu=number)
    await connection.execute("UPDATE sessions SET constraints = $2 WHERE id = $1", session, {"gpu_model": model})
    return session
