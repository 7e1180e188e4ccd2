"""Answers are held for as long as their manager stays."""

from __future__ import annotations

import asyncio

import pytest

from actions.patience import Patience


class Question:
    """Answered when `known` is set, or at once when nobody waits."""

    def __init__(self) -> None:
        self.known, self.asked = asyncio.Event(), list[float]()

    async def __call__(self, seconds: float) -> str:
        self.asked.append(seconds)
        if seconds > 0:
            await self.known.wait()
        return "known" if self.known.is_set() else "as it is"


async def test_an_answer_in_time_is_the_answer() -> None:
    patience, question = Patience(), Question()
    asking = asyncio.create_task(patience.ask(question, 20.0))
    await asyncio.sleep(0)
    question.known.set()
    assert await asking == "known"
    assert question.asked == [20.0]


async def test_who_waits_when_patience_ends_is_answered_with_what_is_so() -> None:
    patience, question, event = Patience(), Question(), asyncio.Event()
    asking = asyncio.create_task(patience.ask(question, 20.0))
    with patience.waking(event):
        await asyncio.sleep(0)
        patience.end()
        assert await asking == "as it is"
        assert event.is_set()
    assert question.asked == [20.0, 0.0]
    assert await patience.ask(question, 20.0) == "as it is"  # nobody waits any more
    assert question.asked == [20.0, 0.0, 0.0]


async def test_a_timeout_of_the_questions_own_stays_one() -> None:
    async def late(_seconds: float) -> str:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await Patience().ask(late, 1.0)


async def test_who_has_gone_is_not_told() -> None:
    patience, question = Patience(), Question()
    asking = asyncio.create_task(patience.ask(question, 20.0))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    patience.end()
    assert (asking.cancelled(), question.asked) == (True, [20.0])
