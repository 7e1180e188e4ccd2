"""The table of everything that may happen to a session, and what facts make of it."""

from __future__ import annotations

from itertools import product

import pytest

from domain.session import (
    ANSWERING,
    DEADLINES,
    FINAL,
    LIVE,
    TARGETS,
    TRANSITIONS,
    Event,
    KernelState,
    KernelView,
    Lease,
    Status,
    Transition,
    Want,
    _index,
    derive,
    sources,
)

S, E, K = Status, Event, KernelState
#: Meant to pass: a session is not to stay there.
PASSING = LIVE - ANSWERING - {S.PENDING}


# -- the table ---------------------------------------------------------------------------------------------------------
def test_there_is_one_target_for_each_source_and_event() -> None:
    assert len({(t.source, t.event) for t in TRANSITIONS}) == len(TRANSITIONS)
    with pytest.raises(ValueError, match="two targets"):
        _index((*TRANSITIONS, Transition(S.RUNNING, E.DESTROY, S.ERROR)))


def test_the_index_says_what_the_table_says() -> None:
    assert [(t.source, t.event, t.target) for t in TRANSITIONS if TARGETS[t.event][t.source] is not t.target] == []
    assert sum(len(targets) for targets in TARGETS.values()) == len(TRANSITIONS)


def reachable(start: Status, *, without: Event | None = None) -> set[Status]:
    found, edge = {start}, {start}
    while edge:
        edge = {t.target for t in TRANSITIONS if t.source in edge and t.event is not without} - found
        found |= edge
    return found


@pytest.mark.parametrize("status", list(S))
def test_every_status_is_reached_and_leads_to_an_end(status: Status) -> None:
    assert status in reachable(S.PENDING)
    assert reachable(status, without=E.RESTART) & FINAL


@pytest.mark.parametrize("status", sorted(LIVE))
def test_every_live_status_can_be_ended(status: Status) -> None:
    assert status in sources(E.FORCE)
    assert status in sources(E.DESTROY) or status is S.TERMINATING
    assert TARGETS[E.FORCE][status] in FINAL


@pytest.mark.parametrize("status", sorted(FINAL))
def test_an_end_is_left_by_a_restart_only(status: Status) -> None:
    assert [(t.event, t.target) for t in TRANSITIONS if t.source is status] == [(E.RESTART, S.PENDING)]


def test_a_restart_is_legal_where_it_answers_and_where_it_has_ended() -> None:
    assert sources(E.RESTART) == ANSWERING | FINAL


@pytest.mark.parametrize("status", sorted(PASSING))
def test_a_status_that_is_meant_to_pass_has_a_deadline(status: Status) -> None:
    """Whose compensation is legal there, and leads somewhere else."""
    deadline = DEADLINES[status]
    assert deadline.seconds > 0
    assert len(deadline.reason) > 10
    assert TARGETS[deadline.compensation][status] is not status
    # who waits for a host says so before the deadline comes, and who was to tell it is replaced
    assert deadline.lease in Lease
    # compensation after compensation, it ends, without anybody's help
    seen = [status]
    while seen[-1] not in FINAL:
        seen.append(TARGETS[DEADLINES[seen[-1]].compensation][seen[-1]])
        assert len(seen) <= len(DEADLINES)


def test_nothing_else_has_a_deadline() -> None:
    """PENDING lasts as long as its owner wants to wait, RUNNING as long as the work takes."""
    assert set(DEADLINES) == PASSING


def test_deadlines_alone_bring_every_passing_session_to_an_end() -> None:
    """Nothing stays stuck although no host ever answers."""
    for status in PASSING:
        seen = [status]
        while seen[-1] not in FINAL:
            seen.append(TARGETS[DEADLINES[seen[-1]].compensation][seen[-1]])
            assert len(seen) < 5
    assert set(DEADLINES) == PASSING


def test_every_event_happens_somewhere() -> None:
    assert [event for event in E if not sources(event)] == []


# -- what facts make of it ---------------------------------------------------------------------------------------------
def main(observed: KernelState | None, *, finished: bool = False, want: Want = Want.RUN) -> KernelView:
    return KernelView(want=want, is_main=True, observed=observed, finished=finished)


def worker(observed: KernelState | None, *, want: Want = Want.RUN) -> KernelView:
    return KernelView(want=want, is_main=False, observed=observed)


DONE = main(K.EXITED, finished=True)
CASES = [
    # status, kernels, what follows
    (S.PENDING, [main(None, want=Want.NONE)], None),
    (S.SCHEDULED, [main(None)], None),
    (S.SCHEDULED, [main(K.PREPARING)], E.PREPARE),
    (S.SCHEDULED, [main(K.PULLING)], E.PULL),
    (S.SCHEDULED, [main(K.RUNNING)], E.START),
    (S.SCHEDULED, [main(K.FAILED)], E.FAIL),
    (S.PREPARING, [main(K.PREPARING)], None),
    (S.PREPARING, [main(K.PULLING)], E.PULL),
    (S.PREPARING, [main(K.RUNNING)], E.START),
    (S.PREPARING, [main(K.RUNNING), worker(K.PREPARING)], None),
    (S.PREPARING, [main(K.RUNNING), worker(K.RUNNING)], E.START),
    (S.PREPARING, [main(K.RUNNING), worker(K.FAILED)], E.FAIL),
    (S.PREPARING, [main(K.EXITED)], E.FAIL),
    (S.PREPARING, [main(K.GONE)], E.FAIL),
    (S.PULLING, [main(K.PREPARING)], E.PREPARE),
    (S.PULLING, [main(K.PULLING), worker(K.PREPARING)], None),
    (S.PULLING, [main(K.PREPARING), worker(K.PULLING)], None),
    # work that was over before RUNNING was reported still ran
    (S.SCHEDULED, [DONE], E.START),
    (S.PREPARING, [DONE], E.START),
    (S.PULLING, [DONE, worker(K.RUNNING)], E.START),
    (S.PREPARING, [DONE, worker(K.PREPARING)], E.FAIL),
    (S.RESTARTING, [DONE], E.START),
    (S.RUNNING, [DONE], E.FINISH),
    # a restart in place
    (S.RESTARTING, [main(None)], None),
    (S.RESTARTING, [main(K.PREPARING)], None),
    (S.RESTARTING, [main(K.PULLING)], None),
    (S.RESTARTING, [main(K.RUNNING)], E.START),
    (S.RESTARTING, [main(K.RUNNING), worker(None)], None),
    (S.RESTARTING, [main(K.FAILED)], E.FAIL),
    # while it runs
    (S.RUNNING, [main(K.RUNNING)], None),
    (S.RUNNING, [main(K.RUNNING), worker(K.RUNNING)], None),
    (S.RUNNING, [main(K.RUNNING), worker(K.EXITED)], E.DEGRADE),
    (S.RUNNING, [main(K.EXITED)], E.FAIL),
    (S.RUNNING, [main(K.GONE)], E.FAIL),
    (S.RUNNING, [main(K.EXITED), worker(K.RUNNING)], E.FAIL),
    (S.RUNNING_DEGRADED, [main(K.RUNNING), worker(K.EXITED)], None),
    (S.RUNNING_DEGRADED, [main(K.RUNNING), worker(K.RUNNING)], E.RECOVER),
    (S.RUNNING_DEGRADED, [main(K.EXITED), worker(K.RUNNING)], E.FAIL),
    (S.RUNNING_DEGRADED, [DONE, worker(K.EXITED)], E.FINISH),
    # on its way out
    (S.TERMINATING, [main(K.RUNNING, want=Want.GONE)], None),
    (S.TERMINATING, [main(K.EXITED, want=Want.GONE)], None),
    (S.TERMINATING, [main(None, want=Want.GONE)], None),
    (S.TERMINATING, [main(K.GONE, want=Want.GONE)], E.GONE),
    (S.TERMINATING, [main(K.GONE, want=Want.GONE), worker(K.RUNNING, want=Want.GONE)], None),
    (S.TERMINATING, [main(K.GONE, want=Want.GONE), worker(None, want=Want.NONE)], E.GONE),
    (S.TERMINATING, [], E.GONE),
    # the end
    (S.TERMINATED, [main(K.RUNNING, want=Want.GONE)], None),
    (S.CANCELLED, [main(None, want=Want.NONE)], None),
    (S.ERROR, [main(K.GONE, want=Want.GONE)], None),
]


@pytest.mark.parametrize(("status", "kernels", "event"), CASES)
def test_what_follows(status: Status, kernels: list[KernelView], event: Event | None) -> None:
    assert derive(status, False, kernels) is event


def test_after_a_failure_the_end_is_an_error() -> None:
    assert derive(S.TERMINATING, True, [main(K.GONE, want=Want.GONE)]) is E.BREAK
    assert derive(S.TERMINATING, True, [main(K.RUNNING, want=Want.GONE)]) is None


@pytest.mark.parametrize(("status", "failed"), list(product(S, [False, True])))
def test_whatever_is_reported_what_follows_is_legal_and_comes_to_rest(status: Status, failed: bool) -> None:
    """For every pair of kernels, in any state: no event that the table forbids, and no going round in circles."""
    states = [None, *K]
    for one, two, finished, want in product(states, states, [False, True], [Want.RUN, Want.GONE]):
        kernels = [main(one, finished=finished, want=want), worker(two, want=want)]
        now, steps = status, 0
        while (event := derive(now, failed, kernels)) is not None:
            assert now in TARGETS[event], f"{event} is not legal in {now}"
            now, steps = TARGETS[event][now], steps + 1
            assert steps < 5, f"{status} does not come to rest with {one}, {two}"
