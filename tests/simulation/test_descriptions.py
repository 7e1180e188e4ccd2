"""Fleets and policies as they are described, and what is wrong with descriptions."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from domain.errors import InvalidSimulation
from domain.simulation import fleet, policy
from domain.simulation.figures import figures
from domain.simulation.generate import generate
from domain.simulation.workload import demand
from tests.simulation.cases import FAIR, FIFO, FIFO_BACKFILL, MIXED, hosts, job, played


def test_a_fleet_is_its_hosts_with_their_devices() -> None:
    described = fleet.described(MIXED, "mixed")
    assert [host.id for host in described.hosts] == ["a-1", "a-2", "h", "c"]
    assert described.capacity() == {"cpu": 96_000, "mem": 320 * 1024, "gpu": 10}
    assert described.models == {"NVIDIA A100": 8, "NVIDIA H100": 2}
    assert described.hosts[2].capacity["gpu/h-1"] == 80 * 1024


def test_the_example_is_a_fleet() -> None:
    assert fleet.described(tomllib.loads(fleet.EXAMPLE), "x").capacity()["gpu"] == 80


HOST: dict[str, Any] = {"cpu": 8, "mem": "32g"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "has no hosts"),
        ({"hosts": []}, "has no hosts"),
        ({"hosts": {"cpu": 1}}, "has no hosts"),
        ({"hosts": [HOST], "colour": "red"}, "the word 'colour', which is not known"),
        ({"hosts": [HOST | {"gpu": 8}]}, "hosts entry 1 has the word 'gpu'"),
        ({"hosts": [HOST, {"cpu": 8}]}, "hosts entry 2 does not say how much mem"),
        ({"hosts": [HOST | {"cpu": -1}]}, "must not be negative"),
        ({"hosts": [HOST | {"cpu": 0}]}, "some CPU and some memory"),
        ({"hosts": [HOST | {"mem": "much"}]}, "is not an amount of memory"),
        ({"hosts": [HOST | {"count": 0}]}, "count is a whole number from 1"),
        ({"hosts": [HOST | {"count": 10**9}]}, "count is a whole number from 1"),
        ({"hosts": [HOST | {"count": True}]}, "count is a whole number from 1"),
        ({"hosts": [HOST | {"gpus": 8}]}, "gpus are a table"),
        ({"hosts": [HOST | {"gpus": {"model": "A100", "count": 100}}]}, "count of gpus is a whole number from 1"),
        ({"hosts": [HOST | {"gpus": {"model": "A100", "mem": 0}}]}, "a GPU has some memory"),
        ({"hosts": [HOST | {"labels": ["a"]}]}, "labels are a table"),
        ({"hosts": [HOST | {"name": "a"}, HOST | {"name": "a"}]}, "two hosts of one name"),
        ({"hosts": ["a"]}, "is no table"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(document: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSimulation) as refusal:
        fleet.described(document, "mine")
    assert words in refusal.value.message
    assert "Fleet mine" in refusal.value.message


def test_policies_are_known_by_name_or_said_in_words() -> None:
    assert policy.said("fifo") == policy.KNOWN["fifo"]
    said = policy.said("ordering=fifo,backfill=no,fit=spread,lifetime=2d")
    assert (said.fair_share, said.backfill, said.spread, said.lifetime_seconds) == (False, False, True, 172800)
    document = {"half_life": "1d", "weights": {"ann": 2}, "per_user": {"gpu": 4, "cpu": 16, "mem": "64g"}}
    described = policy.described(document, "mine")
    assert described.half_life_seconds == 86400
    assert described.per_user == {"gpu": 4, "cpu": 16000, "mem": 65536}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"colour": 1}, "no such setting"),
        ({"ordering": "random"}, "one of fifo, fair_share"),
        ({"fit": 1}, "one of pack, spread"),
        ({"backfill": "maybe"}, "one of yes, no"),
        ({"half_life": "never"}, "a span of time"),
        ({"half_life": "1s"}, "from one minute to ten years"),
        ({"lifetime": "0"}, "a span of time"),
        ({"weights": {"ann": 0}}, "from 0.001 to 1000"),
        ({"weights": "ann"}, "is a table"),
        ({"per_user": {"colour": 1}}, "colour is not limited here"),
        ({"per_user": {"gpu": -1}}, "must not be negative"),
        ({"ordering": "fifo", "weights": {"ann": 2}}, "contradicts itself"),
        ({"ordering": "fifo", "half_life": "1d"}, "contradicts itself"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(document: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSimulation) as refusal:
        policy.described(document, "mine")
    assert words in refusal.value.message


def test_an_unknown_policy_is_told_which_there_are() -> None:
    with pytest.raises(InvalidSimulation, match=r"no policy 'lottery'.*fifo-backfill"):
        policy.said("lottery")


@pytest.mark.parametrize("given", [{"sessions": 0}, {"users": 0}, {"load": 0.0}, {"period": "year"}])
def test_an_impossible_workload_is_not_generated(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSimulation):
        generate(hosts(8), **given)


def test_a_generated_week_is_as_busy_as_was_asked_for_by_day_and_by_few() -> None:
    mixed = fleet.described(MIXED, "mixed")
    workload = generate(mixed, sessions=3000, load=0.7, seed=4)
    asked, has = demand(workload.jobs), mixed.capacity()
    assert max(asked[kind] / has[kind] / 604800 for kind in has) == pytest.approx(0.7, rel=0.1)
    hours = [one.submitted_at.hour for one in workload.jobs]
    assert sum(9 <= hour < 18 for hour in hours) > 4 * sum(hour < 6 for hour in hours)
    counts = sorted((sum(one.user == user for one in workload.jobs) for user in workload.users), reverse=True)
    assert counts[0] > 5 * counts[len(counts) // 2]
    assert {one.size for one in workload.jobs} >= {"CPU only", "GPU share", "1 GPU", "2-7 GPUs", "gang with GPUs"}
    assert all(
        earlier.submitted_at <= later.submitted_at
        for earlier, later in zip(workload.jobs, workload.jobs[1:], strict=False)
    )


def test_figures_by_hand() -> None:
    jobs = [job(0, "greedy", 100) for _ in range(4)] + [job(1, "modest", 100)]
    fifo, fair = (figures(played(jobs, hosts(1), policy)) for policy in (FIFO, FAIR))
    assert (fifo.waiting.mean_seconds, fair.waiting.mean_seconds) == (199.8, 199.8)
    assert (fifo.waiting.p50_seconds, fifo.waiting.p99_seconds, fifo.waiting.longest_seconds) == (200, 399, 399)
    assert fifo.makespan_seconds == 500
    assert fifo.contended_seconds == 400
    waits = {one.user: one.waiting.mean_seconds for one in fair.by_user}
    assert waits == {"greedy": 225, "modest": 99}
    # somebody waited for 400 s: the greedy one alone for 1 s, both until 200 s, the greedy one alone again
    shares = {one.user: (one.held, one.entitled) for one in fair.by_user}
    assert shares["greedy"] == pytest.approx((300 / 400, (1 + 199 / 2 + 200) / 400))
    assert shares["modest"] == pytest.approx((100 / 400, (199 / 2) / 400))
    assert fair.fairness > fifo.fairness


def test_utilisation_is_a_mean_over_time_and_weighs_devices() -> None:
    jobs = [job(0, "a", 50, cpus=4, gpu=1), job(100, "a", 1, gpu_mem=20 * 1024)]
    told = figures(played(jobs, hosts(8, gpus=2), FIFO_BACKFILL))
    assert told.utilisation["cpu"] == pytest.approx(0.25)
    assert told.utilisation["gpu"] == pytest.approx(0.25)
