"""An agent takes on every intent at most once, and never an older one."""

from __future__ import annotations

import itertools

import pytest

from agent.intent import Intent, Step, Stored, decide
from domain.session import KernelState, Want

RUN, GONE = Want.RUN, Want.GONE
RUNNING, PREPARING, NOTHING = KernelState.RUNNING, KernelState.PREPARING, KernelState.GONE


# fmt: off
TABLE = [
    (None,                                (1, 1, RUN),  Step.START),
    (None,                                (1, 2, GONE), Step.TOMBSTONE),
    (((1, 2, GONE), NOTHING),             (1, 1, RUN),  Step.STALE),  # the create that came after its destroy
    (((1, 1, RUN), PREPARING),            (1, 1, RUN),  Step.SAME),
    (((1, 1, RUN), PREPARING),            (1, 2, GONE), Step.REMOVE),
    (((1, 2, GONE), RUNNING),             (1, 3, GONE), Step.KEEP),
    (((1, 2, GONE), NOTHING),             (1, 3, GONE), Step.TOMBSTONE),
    (((1, 1, RUN), RUNNING),              (1, 2, RUN),  Step.KEEP),
    (((1, 2, GONE), NOTHING),             (1, 3, RUN),  Step.KEEP),   # what was told to go does not come back
    (((1, 1, RUN), RUNNING),              (2, 2, RUN),  Step.REPLACE),
    (((1, 1, RUN), KernelState.EXITED),   (2, 2, RUN),  Step.REPLACE),
    (((1, 2, GONE), RUNNING),             (2, 3, RUN),  Step.REPLACE),
    (((1, 2, GONE), NOTHING),             (2, 3, RUN),  Step.START),
    (((2, 5, RUN), RUNNING),              (1, 9, GONE), Step.STALE),
]
# fmt: on


@pytest.mark.parametrize(("stored", "asked", "step"), TABLE)
def test_table(
    stored: tuple[tuple[int, int, Want], KernelState] | None, asked: tuple[int, int, Want], step: Step
) -> None:
    known = Stored(Intent(*stored[0]), stored[1]) if stored else None
    assert decide(known, Intent(*asked)) is step


def test_every_pair_has_an_answer_and_nothing_older_is_acted_on() -> None:
    numbers = [(attempt, generation) for attempt in (1, 2) for generation in (1, 2, 3)]
    for seen, asked, had, wanted, observed in itertools.product(numbers, numbers, Want, Want, KernelState):
        step = decide(Stored(Intent(*seen, had), observed), Intent(*asked, wanted))
        assert (step in {Step.STALE, Step.SAME}) == (asked <= seen)
        if wanted is Want.GONE and asked > seen:
            assert step in {Step.REMOVE, Step.TOMBSTONE, Step.KEEP}
