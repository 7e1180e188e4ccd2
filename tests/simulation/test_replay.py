"""What virtual time makes of workloads: by hand where that is possible, and as laws that hold for all."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from domain.scheduler import plan
from domain.simulation.fleet import described
from domain.simulation.generate import generate
from domain.simulation.ledger import Ledger
from domain.simulation.policy import KNOWN, Policy
from domain.simulation.replay import Replayed, replay, user_id
from domain.simulation.standing import Overcommitted
from domain.simulation.workload import Workload, working_seconds
from tests.simulation.cases import FAIR, FIFO, FIFO_BACKFILL, MIXED, NOW, hosts, job, played, starts

SMALL = described(MIXED, "small")


# -- by hand -----------------------------------------------------------------------------------------------------------
def test_who_came_later_and_held_nothing_comes_first_by_fair_share_and_last_by_fifo() -> None:
    jobs = [job(0, "greedy", 100) for _ in range(4)] + [job(1, "modest", 100)]
    assert starts(jobs, hosts(1), FIFO) == [0, 100, 200, 300, 400]
    assert starts(jobs, hosts(1), FAIR) == [0, 200, 300, 400, 100]


def test_twice_the_weight_is_twice_the_share() -> None:
    jobs = [job(0, user, 100) for user in ("one", "two") for _ in range(30)]
    policy = replace(FAIR, weights={"two": 2.0}, half_life_seconds=1e6)
    begun = starts(jobs, hosts(1), policy)
    first = [jobs[at].user for at in sorted(range(60), key=lambda at: begun[at] or 0.0)[:30]]
    assert first.count("two") == 20


def test_what_was_held_is_forgotten_by_half_lives() -> None:
    jobs = [
        job(0, "early", 1000),
        job(100_000, "late", 800),
        job(100_001, "early", 1),
        job(100_002, "late", 1),
    ]
    assert starts(jobs, hosts(1), replace(FAIR, half_life_seconds=1e8))[2:] == [100_801, 100_800]
    assert starts(jobs, hosts(1), replace(FAIR, half_life_seconds=3600.0))[2:] == [100_800, 100_801]


def test_backfill_lets_short_ones_pass_and_delays_nobody() -> None:
    jobs = [
        job(0, "a", 100, timeout_seconds=100.0),
        job(1, "b", 50, cpus=2),
        job(2, "c", 50, timeout_seconds=60.0),
        job(3, "d", 10, timeout_seconds=200.0),
    ]
    assert starts(jobs, hosts(2), FIFO) == [0, 100, 150, 150]
    assert starts(jobs, hosts(2), FIFO_BACKFILL) == [0, 100, 2, 150]
    assert [outcome.backfilled for outcome in played(jobs, hosts(2), FIFO_BACKFILL).outcomes] == [
        False, False, True, False,
    ]  # fmt: skip


def test_a_timeout_cuts_short_and_a_lifetime_stands_in_for_one() -> None:
    jobs = [job(0, "a", 500, timeout_seconds=100.0), job(0, "b", 500)]
    outcomes = played(jobs, hosts(2), replace(FIFO, lifetime_seconds=200.0)).outcomes
    assert [(o.ended_at, o.cut_short) for o in outcomes] == [
        (NOW + timedelta(seconds=100), True),
        (NOW + timedelta(seconds=200), True),
    ]


def test_priority_counts_unless_the_policy_says_otherwise() -> None:
    jobs = [job(0, "a", 100), job(1, "b", 100), job(2, "c", 100, priority=50)]
    assert starts(jobs, hosts(1), FIFO) == [0, 200, 100]
    assert starts(jobs, hosts(1), replace(FIFO, priorities=False)) == [0, 100, 200]


def test_a_time_to_start_is_waited_for_and_not_counted_as_waiting() -> None:
    jobs = [job(0, "a", 100, starts_at=NOW + timedelta(seconds=500))]
    [outcome] = played(jobs, hosts(1), FIFO).outcomes
    assert outcome.started_at == NOW + timedelta(seconds=500)
    assert outcome.waited_seconds == 0


def test_a_limit_per_user_lets_wait() -> None:
    jobs = [job(0, "a", 100), job(0, "a", 100), job(0, "b", 100)]
    assert starts(jobs, hosts(4), replace(FIFO, per_user={"sessions": 1})) == [0, 100, 0]
    assert starts(jobs, hosts(4), replace(FIFO, per_user={"cpu": 1000})) == [0, 100, 0]


def test_a_gang_starts_as_a_whole_on_several_hosts() -> None:
    jobs = [job(0, "a", 100), job(1, "b", 100, cpus=2, kernels=2)]
    assert starts(jobs, hosts(2, 2), FIFO) == [0, 100]
    gang = played(jobs, hosts(2, 2), FIFO).outcomes[1]
    assert sorted(gang.hosts) == ["host0", "host1"]


def test_what_no_host_has_never_starts_and_says_why() -> None:
    jobs = [
        job(0, "a", 1, cpus=64),
        job(0, "a", 1, gpu=1, gpu_model="h100"),
        job(0, "a", 1, resource_group="nowhere"),
        job(0, "b", 1),
        job(0, "a", 1, gpu_mem=1024),
    ]
    outcomes = played(jobs, hosts(4, gpus=1), replace(FIFO, gpu_sharing=False)).outcomes
    assert [outcome.started_at is None for outcome in outcomes] == [True, True, True, False, True]
    assert all(outcome.never and outcome.never.detail for outcome in outcomes if outcome.started_at is None)
    assert "no_hosts" in {outcome.never.code for outcome in outcomes if outcome.never}


def test_two_shares_lie_on_one_device() -> None:
    jobs = [
        job(0, "a", 100, gpu_mem=20 * 1024),
        job(1, "b", 100, gpu_mem=20 * 1024),
        job(2, "c", 100, gpu_mem=8 * 1024),
    ]
    assert starts(jobs, hosts(8, gpus=1), FIFO) == [0, 1, 100]
    assert max(moment.gpu for moment in played(jobs, hosts(8, gpus=1), FIFO).moments) == 1.0


def test_the_past_is_the_documented_mean() -> None:
    ledger = Ledger("default", 100.0, {})
    user = user_id("a")
    ledger.change(user, {"cpu": 8.0}, 1, 0)
    [share] = ledger.shares([user], 100_000)
    assert share.held["cpu"] == 8.0
    assert share.past["cpu"] == pytest.approx(4.0)
    ledger.change(user, {"cpu": 8.0}, -1, 100_000)
    [share] = ledger.shares([user], 200_000)
    assert share.held["cpu"] == 0.0
    assert share.past["cpu"] == pytest.approx(2.0)


# -- always ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["default", "fifo", "fifo-backfill", "no-backfill"])
def test_sparing_plans_changes_nothing(name: str, seed: int) -> None:
    workload = generate(SMALL, period="day", sessions=120, users=8, load=1.5, seed=seed)
    workload = _with_priorities(workload)
    spared, full = (replay(workload, SMALL, KNOWN[name], always=always) for always in (False, True))
    assert _course(spared) == _course(full)
    assert spared.plans < full.plans


def test_limits_and_two_groups_change_nothing_of_that_either() -> None:
    fleet = described({"hosts": [{**MIXED["hosts"][0], "group": "lab"}, *MIXED["hosts"][1:]]}, "two")
    workload = generate(fleet, period="day", sessions=150, users=5, load=1.5, seed=3)
    jobs = tuple(replace(one, resource_group="lab" if at % 3 else "default") for at, one in enumerate(workload.jobs))
    limits = {"gpu": 3, "sessions": 6}
    for policy in (
        Policy(),
        FIFO,
        FIFO_BACKFILL,
        Policy(per_user=limits),
        replace(FIFO, per_user=limits),
    ):
        spared, full = (replay(Workload(jobs=jobs), fleet, policy, always=always) for always in (False, True))
        assert _course(spared) == _course(full)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_nothing_is_given_out_twice_and_everybody_ends(name: str) -> None:
    workload = generate(SMALL, period="day", sessions=200, users=10, load=1.2, seed=5)
    replayed = replay(workload, SMALL, KNOWN[name])
    assert not replayed.moments[-1].queued
    assert replayed.moments[-1].cpu == 0
    assert abs(replayed.moments[-1].gpu) < 1e-9
    changes: list[tuple[datetime, int, str, str, int]] = []
    for outcome in replayed.outcomes:
        if outcome.never:
            continue
        assert outcome.started_at
        assert outcome.ended_at
        assert outcome.placement
        assert outcome.started_at >= outcome.job.ready_at
        held = (outcome.ended_at - outcome.started_at).total_seconds()
        assert held == pytest.approx(working_seconds(outcome.job), abs=0.01)
        assert len(outcome.hosts) == outcome.job.kernels
        for kernel in outcome.placement.kernels:
            for resource, amount in kernel.amounts.items():
                changes.append((outcome.started_at, 1, kernel.agent_id, resource, amount))
                changes.append((outcome.ended_at, 0, kernel.agent_id, resource, -amount))
    free = {(host.id, resource): amount for host in SMALL.hosts for resource, amount in host.capacity.items()}
    for _, _, host, resource, amount in sorted(changes):
        free[host, resource] -= amount  # type: ignore[index]
        assert free[host, resource] >= 0  # type: ignore[index]


def test_the_same_seed_gives_the_same_and_another_one_does_not() -> None:
    one, same, other = (generate(SMALL, period="day", sessions=60, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert _course(replay(one, SMALL, FAIR)) == _course(replay(same, SMALL, FAIR))


def test_a_plan_that_overcommits_is_not_hidden() -> None:
    jobs = [job(0, "a", 100), job(1, "b", 100)]
    empty = hosts(1).hosts

    with pytest.raises(Overcommitted):
        replay(
            Workload(jobs=tuple(jobs)), hosts(1), FIFO, planner=lambda seen, now: plan(replace(seen, hosts=empty), now),
            always=True,
        )  # fmt: skip


def _with_priorities(workload: Workload) -> Workload:
    jobs = (replace(one, priority=10 + (at % 7 == 0) * 10 - (at % 11 == 0) * 5) for at, one in enumerate(workload.jobs))
    return replace(workload, jobs=tuple(jobs))


def _course(replayed: Replayed) -> list[object]:
    return [(one.started_at, one.ended_at, one.hosts, one.never) for one in replayed.outcomes]
