"""The crash points themselves: that nobody pays for them, that each can be reached, and that they kill once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agent.volumes import Volumes
from domain import crash
from tests.faults import errands
from tests.faults.campaign import order
from tests.faults.points import all_points
from tests.faults.routes import driver_of
from tests.faults.workload import DRIVERS

assert errands  # it adds its drivers


def test_there_are_enough_of_them_and_a_driver_for_each() -> None:
    points = all_points()
    assert len(points) >= 80
    assert [point for point in points if driver_of(point) not in DRIVERS] == []


def test_a_campaign_comes_to_all_of_them_in_an_order_that_its_seed_says() -> None:
    planned = order(seed=7, kills=0)
    assert {one for one in planned if not one.startswith("random ")} == set(all_points())
    assert len(planned) >= 200
    assert planned == order(seed=7, kills=0) == order(seed=7, kills=1000)[: len(planned)]
    assert planned != order(seed=8, kills=0)
    assert any(one.startswith("random ") for one in planned)


def test_whoever_passes_for_the_nth_time_dies_once(tmp_path: Path) -> None:
    (tmp_path / "armed").write_text("a.b:2")
    ends = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            os.environ[crash.DIR] = str(tmp_path)
            crash.begin("here")
            for _ in range(3):
                crash.reach("a", "b")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
    assert ends == [-signal.SIGKILL, 0]
    assert [line.split()[:2] for line in (tmp_path / "fired").read_text().splitlines()] == [["a.b", "here"]]
    assert (tmp_path / "reached.here").read_text().count("a.b") == 5


def test_nothing_is_armed_without_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(crash.DIR, raising=False)
    crash.begin("here")
    assert crash.on_reach is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to others")
def test_a_volume_whose_making_was_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_name: str) -> None:
        raise KeyboardInterrupt

    volumes = Volumes(tmp_path)
    asked = {"id": "0191d7c6-0000-7000-8000-000000000001", "uid": 2345, "gid": 2345, "store": volumes.store}
    monkeypatch.setattr(crash, "on_reach", die)
    with pytest.raises(KeyboardInterrupt):
        volumes.open(asked)
    monkeypatch.undo()
    facts = volumes.open(asked).folder.stat()
    assert (facts.st_uid, facts.st_mode & 0o777) == (2345, 0o777)
