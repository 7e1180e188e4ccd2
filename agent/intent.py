"""What to do about an intent of the manager, given the highest one that was taken on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domain.session import KernelState, Want


class Step(StrEnum):
    STALE = "stale"  #: older than what was taken on: nothing is done, the answer is what is true now
    SAME = "same"  #: taken on already: the answer is what is true now
    KEEP = "keep"  #: newer, but what it asks for is so, or on its way, or cannot be any more
    START = "start"  #: bring the kernel up
    REPLACE = "replace"  #: remove the container of the earlier attempt, then bring the kernel up; its files stay
    REMOVE = "remove"  #: take everything down that there is
    TOMBSTONE = "tombstone"  #: nothing is there; remember it, so that a late create is refused


@dataclass(frozen=True, slots=True)
class Intent:
    attempt: int
    generation: int
    want: Want


@dataclass(frozen=True, slots=True)
class Stored:
    """The highest intent taken on, and what was last observed of its attempt."""

    intent: Intent
    observed: KernelState


def decide(stored: Stored | None, request: Intent) -> Step:
    """Pure. (attempt, generation) only ever rises; an attempt that was told to go never comes back."""
    if stored is None:
        return Step.START if request.want is Want.RUN else Step.TOMBSTONE
    seen, asked = (stored.intent.attempt, stored.intent.generation), (request.attempt, request.generation)
    if asked < seen:
        return Step.STALE
    if asked == seen:
        return Step.SAME
    nothing_left = stored.observed is KernelState.GONE
    if request.want is Want.GONE:
        return Step.TOMBSTONE if nothing_left else Step.KEEP if stored.intent.want is Want.GONE else Step.REMOVE
    if request.attempt > stored.intent.attempt:
        return Step.START if nothing_left else Step.REPLACE
    return Step.KEEP
