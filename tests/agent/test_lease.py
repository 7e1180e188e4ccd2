"""How long kernels with a lease live: on a clock that nobody sets, over restarts, and never longer than they may."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.lease import Lease
from domain.elapsed import boottime
from runner import lease as runner_lease
from runner.loop import Loop


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_counts_from_when_the_question_was_sent(clock: Clock) -> None:
    lease = Lease(clock=clock)
    assert lease.left(60.0) < 0  # nobody has ever answered
    lease.renewed(990.0)
    assert (lease.left(60.0), lease.until(60.0)) == (50.0, 1050.0)
    lease.renewed(980.0)  # an answer that was overtaken
    assert lease.left(60.0) == 50.0
    clock.now = 1050.0
    assert lease.left(60.0) == 0.0


def test_the_next_agent_goes_on_counting(clock: Clock, tmp_path: Path) -> None:
    Lease(tmp_path / "lease", clock=clock, boot_id="one").renewed(990.0)
    assert Lease(tmp_path / "lease", clock=clock, boot_id="one").left(60.0) == 50.0
    # a machine that was started anew has another clock, and none of the containers
    assert Lease(tmp_path / "lease", clock=clock, boot_id="two").left(1e9) < 0
    (tmp_path / "lease").write_text("one soon\n")
    assert Lease(tmp_path / "lease", clock=clock, boot_id="one").left(1e9) < 0


def test_all_clocks_are_the_same() -> None:
    assert abs(boottime() - runner_lease.boottime()) < 1
    assert abs(boottime() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


def test_a_runner_ends_by_itself() -> None:
    loop, ended = Loop(lambda: None), []

    def end() -> None:
        ended.append(runner_lease.boottime())
        loop.stop()

    lease, now = runner_lease.Lease(loop, end), runner_lease.boottime()
    lease.renew(now + 1000.0, 1000.0)
    assert lease.renew(now + 0.2, 1000.0)["left"] <= 0.2
    loop.run()
    assert ended[0] - now >= 0.2


def test_a_runner_with_a_clock_of_its_own_counts_what_is_left() -> None:
    loop = Loop(lambda: None)
    lease = runner_lease.Lease(loop, loop.stop)
    assert lease.renew(runner_lease.boottime() + 1e9, 5.0)["left"] <= 5.0
    lease.renew(runner_lease.boottime() - 1.0, 5.0)  # by the host's clock it is over
    loop.run()
