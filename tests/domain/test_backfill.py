"""Who may pass a session that waits for room, and that it starts in time whoever comes after it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest

from domain.ids import AgentId
from domain.placement import Group, Holding, PendingSession, Reservation, Snapshot
from domain.scheduler import plan
from tests.domain.snapshots import NOW
from tests.domain.test_plan import codes, holding, host, planned, session, where

HOUR = 3600.0


def test_room_is_kept_where_and_when_a_session_starts_first() -> None:
    fleet = [host("a", cpu=8, free={"cpu": 2}), host("b", cpu=8, free={"cpu": 3})]
    held = (holding(91, "a", cpu=6, ends_in=HOUR), holding(92, "b", cpu=5, ends_in=2 * HOUR))
    made = planned([session(1, {"cpu": 8})], fleet, holdings=held)
    at = NOW + timedelta(seconds=HOUR)
    assert made.reservations == (Reservation(session_id=session(1).id, hosts=(AgentId("a"),), at=at),)


def test_others_pass_if_they_end_before_or_leave_enough_or_go_elsewhere() -> None:
    fleet = [host("a", cpu=8, mem=8, free={"cpu": 2}), host("b", cpu=1, mem=1)]
    held = (holding(91, "a", cpu=6, ends_in=HOUR),)
    pending = [
        session(1, {"cpu": 8, "mem": 4}, age=9),
        session(2, {"cpu": 1}, age=8),  # b
        session(3, {"cpu": 1}, age=7, lifetime_seconds=HOUR),  # on a, and over in time
        session(4, {"cpu": 1}, age=6, lifetime_seconds=HOUR + 1),
        session(5, {"cpu": 1}, age=5),
        session(6, {"mem": 4}, age=4),  # on a, where it leaves enough
        session(7, {"mem": 4}, age=3),
    ]
    made = planned(pending, fleet, holdings=held)
    assert where(made) == {2: ["b"], 3: ["a"], 6: ["a"]}
    assert codes(made) == {1: "insufficient", 4: "reserved", 5: "reserved", 7: "reserved"}
    assert {why.behind for why in made.blocked.values()} == {None, pending[0].id}
    assert {placement.passed for placement in made.placements} == {pending[0].id}
    assert made.blocked[pending[4].id].detail == (
        f"room that is free is kept for session {pending[0].id}, which starts at 2030-01-01 01:00:00 at the latest,"
        " and this one would delay it"
    )


def test_without_backfill_nobody_passes() -> None:
    pending = [session(1, {"cpu": 8}, age=9), session(2), session(3, {"cpu": 99}), session(4, architecture="aarch64")]
    fleet = [host("a", cpu=8, free={"cpu": 2}), host("b", cpu=1, architecture="aarch64")]
    made = planned(pending, fleet, Group(backfill=False), holdings=(holding(91, "a", cpu=6),))
    assert where(made) == {4: ["b"]}
    assert codes(made) == {1: "insufficient", 2: "behind", 3: "impossible"}
    assert made.blocked[pending[1].id].behind == pending[0].id


def test_what_can_never_start_keeps_no_room() -> None:
    made = planned(
        [session(1, {"cpu": 9}, age=9), session(2, *[{"cpu": 5}] * 3, age=8), session(3)], [host("a", cpu=8)]
    )
    assert where(made) == {3: ["a"]}
    assert codes(made) == {1: "impossible", 2: "impossible"}
    assert made.blocked[session(2).id].detail == (
        "its 3 kernels do not fit on all hosts together, not even when they are empty"
    )


def test_room_of_which_nobody_knows_the_time_is_kept_where_the_least_is_missing() -> None:
    """It stays the same host the next time: what comes free there is for nobody else."""
    fleet = [host("a", cpu=8, free={"cpu": 1}), host("b", cpu=8, free={"cpu": 6}), host("c", cpu=4, free={"cpu": 1})]
    pending = [
        session(1, {"cpu": 8}, age=9),
        session(2, {"cpu": 2}, age=8),
        session(3, {"cpu": 1}, age=7),
        session(4, {"cpu": 1}, age=6, lifetime_seconds=HOUR),
        session(5, {"cpu": 1}, age=5, lifetime_seconds=2 * HOUR),
        session(6, {"cpu": 1}, age=4),
    ]
    made = planned(pending, fleet)
    assert made.reservations == (Reservation(session_id=pending[0].id, hosts=(AgentId("b"),), at=None),)
    assert where(made) == {3: ["a"], 4: ["c"]}
    assert codes(made) == {1: "insufficient", 2: "reserved", 5: "reserved", 6: "reserved"}


def test_a_gang_keeps_as_many_hosts_as_it_needs() -> None:
    fleet = [host(name, cpu=4, free={"cpu": 1}) for name in "abcd"]
    held = [holding(90 + at, name, cpu=3, ends_in=60.0 * (4 - at)) for at, name in enumerate("abcd")]
    pending = [session(1, {"cpu": 4}, {"cpu": 4}, age=9), session(2), session(3), session(4)]
    made = planned(pending, fleet, holdings=tuple(held))
    [kept] = made.reservations
    assert (kept.hosts, kept.at) == (("c", "d"), NOW + timedelta(seconds=120))
    assert where(made) == {2: ["a"], 3: ["b"]}
    assert codes(made) == {1: "insufficient", 4: "reserved"}


# -- no starvation -------------------------------------------------------------------------------------------------------
@dataclass
class Fleet:
    """Hosts on which time goes by: sessions end when they have to, or earlier."""

    holdings: list[tuple[Holding, datetime]]  #: and when it really ends
    now: datetime = NOW
    hosts: int = 4
    cpu: int = 8

    def step(self, pending: list[PendingSession], chance: random.Random, group: Group) -> tuple[set[int], Snapshot]:
        self.holdings = [(held, over) for held, over in self.holdings if over > self.now]
        free = {f"h{number}": self.cpu for number in range(self.hosts)}
        for held, _ in self.holdings:
            free[held.agent_id] -= held.amounts["cpu"]
        fleet = tuple(host(name, cpu=self.cpu, free={"cpu": left}) for name, left in free.items())
        held_now = tuple(held for held, _ in self.holdings)
        seen = Snapshot(pending=tuple(pending), hosts=fleet, holdings=held_now, groups=(group,))
        made = plan(seen, self.now)
        sessions = {one.id: one for one in pending}
        for placement in made.placements:
            seconds = sessions[placement.session_id].lifetime_seconds
            ends_at = None if seconds is None else self.now + timedelta(seconds=seconds)
            over = datetime.max.replace(tzinfo=NOW.tzinfo)
            if seconds is not None:
                over = self.now + timedelta(seconds=seconds * chance.choice([0.3, 0.7, 1.0]))
            for kernel in placement.kernels:
                new = holding(placement.session_id.int, kernel.agent_id, cpu=kernel.amounts["cpu"])
                self.holdings.append((replace(new, ends_at=ends_at), over))
        return {placement.session_id.int for placement in made.placements}, seen


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_large_gang_starts_in_time_though_small_ones_keep_coming(seed: int, spread: bool) -> None:
    """The bound: no later than when its first reservation says. Beside it the fleet does not idle."""
    chance = random.Random(seed)
    fleet, group = Fleet([]), Group(fair_share=False, spread=spread)
    gang = session(1, *[{"cpu": 8}] * 3, age=1000)
    waiting: list[PendingSession] = []
    bound: datetime | None = None
    passed = 0
    for minute in range(400):
        fleet.now = NOW + timedelta(minutes=minute)
        waiting += [_small(2 + minute * 10 + more, fleet.now, chance) for more in range(4)]
        queue = waiting if minute < 10 else [gang, *waiting]
        started, seen = fleet.step(queue, chance, group)
        waiting = [one for one in waiting if one.id.int not in started]
        if 1 in started:
            break
        if minute >= 10:
            [kept] = plan(seen, fleet.now).reservations
            assert kept.session_id == gang.id
            assert kept.at is not None
            assert bound is None or kept.at <= bound  # it only ever comes nearer
            bound = kept.at
            passed += len(started)
    else:
        pytest.fail("it starved")
    assert bound is not None
    assert fleet.now <= bound + timedelta(minutes=1)
    assert passed > 0


def _small(number: int, now: datetime, chance: random.Random) -> PendingSession:
    seconds = 60.0 * chance.choice([2, 5, 10, 60])
    return replace(session(number, {"cpu": chance.choice([1, 2, 4])}, lifetime_seconds=seconds), created_at=now)


def test_where_nobody_knows_the_time_it_starts_an_hour_after_the_room_is_known_at_the_latest() -> None:
    """Somebody without a lifetime holds a host; when he goes, those that passed go within the hour."""
    chance = random.Random(1)
    fleet, group = Fleet([], hosts=2), Group(fair_share=False)
    leaves = NOW + timedelta(minutes=90)
    fleet.holdings = [(holding(9001, "h0", cpu=1), leaves), (holding(9002, "h1", cpu=1), leaves)]
    gang = session(1, {"cpu": 8}, {"cpu": 8}, age=1000)
    waiting: list[PendingSession] = []
    passed = 0
    for minute in range(400):
        fleet.now = NOW + timedelta(minutes=minute)
        for more, seconds in enumerate((None, 600.0, HOUR)):
            small = session(2 + minute * 10 + more, {"cpu": 1}, lifetime_seconds=seconds)
            waiting.append(replace(small, created_at=fleet.now))
        started, _ = fleet.step([gang, *waiting], chance, group)
        assert not any(number % 10 == 2 and number > 1 for number in started)  # nothing without an end
        waiting = [one for one in waiting if one.id.int not in started]
        if 1 in started:
            break
        passed += len(started)
    assert leaves <= fleet.now <= leaves + timedelta(seconds=HOUR)
    assert passed > 50
