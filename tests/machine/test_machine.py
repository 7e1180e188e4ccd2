"""Everything that may happen to sessions, in any order and some of it at the same moment; fsck's invariants after each step.

Longer: `MACHINE_STEPS=100000 pytest tests/machine`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from actions import CreateFromParamsAction, DestroySessionAction, RestartSessionAction
from domain.errors import IdempotencyMismatch, MoorageError, SessionNotFound
from domain.resources import ResourceSlot
from domain.session import SessionTypes
from tests.database import Reset
from tests.machine.world import World
from tests.scenario import ALICE, IMAGE, MALLORY, ROOT

STEPS = int(os.environ.get("MACHINE_STEPS", "400"))
STEPS_EACH = 40
#: Some of what has to take place in any run that is worth its time.
FOLLOWED = (
    ("PENDING", "schedule"), ("PENDING", "destroy"), ("SCHEDULED", "prepare"), ("SCHEDULED", "start"), ("PREPARING", "start"),
    ("RUNNING", "restart"), ("RUNNING", "destroy"), ("TERMINATING", "gone"), ("TERMINATED", "restart"),
)  # fmt: skip
OWNERS = {"alice": ALICE, "mallory": MALLORY}
owners = st.sampled_from(sorted(OWNERS))
lots = st.integers(0, 63)
keys = st.one_of(st.none(), st.none(), st.sampled_from([f"k{number}" for number in range(8)]))
strangers = st.sampled_from([False, False, False, True])


class Sessions(RuleBasedStateMachine):
    """`stage` is set by the test: it gives a world on an empty database.

    What is drawn depends on nothing that has happened, for of what happens at one moment the order is not hypothesis's to
    choose: sessions, kernels and reports are numbers, taken modulo how many there are.
    """

    stage: Any = None
    seen: ClassVar[Counter[str]] = Counter()  #: transitions that took place

    def __init__(self) -> None:
        super().__init__()
        self.world: World = type(self).stage()
        self.answers: dict[tuple[str, str], tuple[str, Any]] = {}  #: by owner and key: what was asked, the answer
        self.owner: dict[str, str] = {}  #: of every session that was made, oldest first

    def teardown(self) -> None:
        self.seen.update(self.world.run(self.world.moves()))
        self.world.close()

    @initialize()
    def two_run(self) -> None:
        for who, name in (("alice", "x"), ("mallory", "y")):
            self.create(who, name, 1, False, None)
        self.all_goes_as_it_should([0, 1])

    # -- people --------------------------------------------------------------------------------------------------------
    @rule(who=owners, name=st.sampled_from("xyz"), cpu=st.integers(1, 3), batch=st.booleans(), key=keys)
    def create(self, who: str, name: str, cpu: int, batch: bool, key: str | None) -> None:
        made = self._ask(who, key, self._creation(name, cpu, batch))
        if not isinstance(made, MoorageError):
            self.owner[str(made.session_data.id)] = who

    def _creation(self, name: str, cpu: int, batch: bool) -> CreateFromParamsAction:
        more: dict[str, Any] = {"max_wait": 600.0}
        if batch:
            more |= {
                "session_type": SessionTypes.BATCH,
                "startup_command": "work",
                "max_retries": 1,
                "batch_timeout": 100.0,
            }
        slots = ResourceSlot(cpu=cpu, mem=1024)
        return CreateFromParamsAction(image=IMAGE, name=f"session-{name}", resource_slots=slots, **more)

    @rule(number=lots, stranger=strangers, lot=lots, key=keys)
    def destroy(self, number: int, stranger: bool, lot: int, key: str | None) -> None:
        session, who = self._session(number, stranger)
        answer = self._ask(who, key, DestroySessionAction(session_name=session, forced=lot == 7))
        if stranger:
            assert isinstance(answer, SessionNotFound | IdempotencyMismatch), answer

    @rule(number=lots, stranger=strangers, key=keys)
    def restart(self, number: int, stranger: bool, key: str | None) -> None:
        session, who = self._session(number, stranger)
        answer = self._ask(who, key, RestartSessionAction(session_name=session))
        if stranger:
            assert isinstance(answer, SessionNotFound | IdempotencyMismatch), answer

    def _session(self, number: int, stranger: bool = False) -> tuple[str, str]:
        """One that was made, the latest for 0; and its owner, or somebody else."""
        session, owner = list(self.owner.items())[-1 - number % len(self.owner)]
        return session, next(one for one in OWNERS if one != owner) if stranger else owner

    def _ask(self, who: str, key: str | None, action: Any) -> Any:
        """I6: the same key and body give the same answer and one effect; another body is refused."""
        answer = self.world.run(self.world.act(action, OWNERS[who], key))
        if key is None:
            return answer
        asked, before = self.answers.get((who, key), (None, None))
        if before is not None:
            if asked != repr(action):
                assert isinstance(answer, IdempotencyMismatch | SessionNotFound), (asked, action, answer)
            else:
                assert answer == before, (before, answer)
        elif not isinstance(answer, MoorageError):
            self.answers[who, key] = repr(action), answer
        return answer

    @rule(number=lots, same=st.booleans(), lot=lots)
    def all_at_once(self, number: int, same: bool, lot: int) -> None:
        """Its owner destroys and restarts it, an administrator ends it, the planner plans, a host speaks: at one moment."""
        session, owner = self._session(number)
        world, who = self.world, OWNERS[owner]
        host = world.hosts[lot % 2]
        destroying = [
            world.act(DestroySessionAction(session_name=session), who, f"d{lot}" if same else None) for _ in range(2)
        ]
        work = [
            *destroying,
            world.act(RestartSessionAction(session_name=session), who, None),
            world.act(DestroySessionAction(session_name=session, forced=lot % 5 == 0), ROOT, None),
            world.plan(),
            world.tell(host, host.said[-8:]),
            world.dispatch(host, 1),
        ]

        async def together() -> list[Any]:
            return await asyncio.gather(*work)

        world.run(together())

    # -- managers ------------------------------------------------------------------------------------------------------
    @rule()
    def plan(self) -> None:
        self.world.run(self.world.plan())

    @rule(lot=lots)
    def dispatch(self, lot: int) -> None:
        self.world.run(self.world.dispatch(self.world.hosts[lot % 2], lot % 4 // 2))

    @rule(seconds=st.sampled_from([*[0.5, 3.0] * 6, 40.0, 200.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(self.world.pass_time(seconds))

    @rule(lots=st.lists(lots, min_size=2, max_size=6))
    def all_goes_as_it_should(self, lots: list[int]) -> None:
        """Planned, dispatched, brought up or taken down, and reported."""
        world = self.world
        world.run(world.plan())
        for host in world.hosts:
            world.run(world.dispatch(host, 0))
            for lot in lots:
                if going := host.on_their_way():
                    host.go_on(going[lot % len(going)], 0, finished=bool(lot % 2))
                world.run(world.tell(host, host.said[-3:]))

    # -- hosts ---------------------------------------------------------------------------------------------------------
    @rule(lot=lots, finished=st.booleans(), told=st.booleans())
    def something_happens_in_a_kernel(self, lot: int, finished: bool, told: bool) -> None:
        moving = [(host, key) for host in self.world.hosts for key in host.can_go_on()]
        if not moving:
            return
        host, key = moving[lot % len(moving)]
        host.go_on(key, lot, finished=finished)
        if told:
            self.world.run(self.world.tell(host, host.said[-1:]))

    @rule(picked=st.lists(lots, min_size=1, max_size=6), lot=lots)
    def reports_arrive(self, picked: list[int], lot: int) -> None:
        """Any of them, the latest or long gone, in any order, again and again."""
        if not (speaking := [host for host in self.world.hosts if host.said]):
            return
        host = speaking[lot % len(speaking)]
        facts = [host.said[-1 - (one % len(host.said))] for one in picked]
        self.world.run(self.world.tell(host, facts))

    @rule(lot=lots)
    def an_agent_starts_anew(self, lot: int) -> None:
        host = self.world.hosts[lot % 2]
        self.world.run(self.world.greet(host, host.restart()))

    @rule(lot=lots)
    def an_agent_lies(self, lot: int) -> None:
        """Of another's kernel, or of an intent to come: nothing follows."""
        liar, other = self.world.hosts[lot % 2], self.world.hosts[1 - lot % 2]
        if not other.said:
            return
        self.world.run(self.world.tell(liar, [other.lie(lot)]))

    # -- what must hold ------------------------------------------------------------------------------------------------
    @invariant()
    def nothing_is_broken(self) -> None:
        assert self.world.run(self.world.broken()) == []

    @invariant()
    def what_is_said_to_be_gone_is(self) -> None:
        assert self.world.run(self.world.untrue()) == []


@pytest.fixture
def stage(worker_database: tuple[str, Reset]) -> Iterator[None]:
    dsn, reset = worker_database

    def made() -> World:
        reset()
        return World(dsn)

    Sessions.stage = staticmethod(made)
    yield
    reset()


def test_whatever_happens_the_invariants_hold(stage: None) -> None:
    short = "MACHINE_STEPS" not in os.environ
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=max(1, STEPS // STEPS_EACH), stateful_step_count=STEPS_EACH, deadline=None, database=None,
            derandomize=short, suppress_health_check=list(HealthCheck), print_blob=True,
            phases=[Phase.generate] if short else [Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip
    rare = {f"{source} {event}" for source, event in FOLLOWED} - set(Sessions.seen)
    assert not rare, f"the rules do not reach {sorted(rare)}; they reached {Sessions.seen}"
