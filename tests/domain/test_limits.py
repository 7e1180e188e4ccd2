"""Names, amounts and sentences of limits."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import InvalidLimit, InvalidResources
from domain.limits import Wanted, contradictions, in_words, is_ceiling, may_wait, parse, refusal, slot_of


@pytest.mark.parametrize(
    ("name", "value", "amount"),
    [
        ("cpu", 2.5, 2500),
        ("mem", "32g", 32768),
        ("gpu-mem", "20g", 20480),
        ("session.gpu-mem", 1024, 1024),
        ("fpga", 3, 3),
        ("sessions", "4", 4),
        ("pending_sessions", 0, 0),
        ("lifetime", "1h30m", 5400),
        ("idle", 90.7, 90),
        ("priority", 100, 100),
    ],
)
def test_amounts_are_what_is_counted(name: str, value: object, amount: int) -> None:
    assert parse(name, value) == Wanted(name=name, amount=amount)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu", -1),
        ("mem", "lots"),
        ("gpu", 2**60),
        ("gpu", 0.5),
        ("sessions", True),
        ("sessions", 1.5),
        ("sessions", -1),
        ("sessions", 2**41),
        ("sessions", "9" * 40),
        ("priority", 101),
        ("lifetime", 0),
        ("lifetime", True),
        ("lifetime", float("nan")),
        ("lifetime", float("inf")),
        ("idle", "soon"),
        ("session.sessions", 1),
        ("session.lifetime", 60),
        ("session.", 1),
        ("session.session.cpu", 1),
        ("Two words", 1),
        ("", 1),
    ],
)
def test_what_is_no_limit_is_refused(name: str, value: object) -> None:
    with pytest.raises((InvalidLimit, InvalidResources)):
        parse(name, value)


def test_only_limits_of_all_sessions_let_them_wait() -> None:
    waiting = {
        name
        for name in ("cpu", "gpu", "sessions", "pending_sessions", "lifetime", "session.cpu", "images")
        if may_wait(name)
    }
    assert waiting == {"cpu", "gpu", "sessions"}
    with pytest.raises(InvalidLimit, match="nothing can wait for it"):
        parse("session.cpu", 1, waits=True)


def test_kinds() -> None:
    assert [slot_of(name) for name in ("cpu", "session.cpu", "sessions", "idle")] == ["cpu", "cpu", None, None]
    assert [is_ceiling(name) for name in ("session.cpu", "priority", "cpu", "pending_sessions")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "amount", "words"),
    [
        ("cpu", 1000, "1 CPU"),
        ("session.cpu", 2500, "2.5 CPUs"),
        ("mem", 512, "512 MiB"),
        ("gpu-mem", 20480, "20 GiB"),
        ("gpu", 1, "1 GPU"),
        ("sessions", 4, "4 sessions"),
        ("lifetime", 43200, "12 h"),
        ("priority", 20, "20"),
        ("fpga", 2, "2"),
    ],
)
def test_words(name: str, amount: int, words: str) -> None:
    assert in_words(name, amount) == words


FULL: dict[str, Any] = {"name": "gpu", "scope": "project", "of": "vision", "max": 4, "asked": 2, "alone": False}


@pytest.mark.parametrize(
    ("full", "sentence"),
    [
        (
            {"used": 3, "queued": 1},
            "The limit gpu of project vision is 4 GPUs: 3 GPUs are running and 1 GPU is queued, so that",
        ),
        (
            {"used": 4, "queued": 0},
            "The limit gpu of project vision is 4 GPUs: 4 GPUs are running, so that 2 GPUs more would",
        ),
        (
            {"used": 0, "queued": 0, "asked": 8, "alone": True},
            "The limit gpu of project vision is 4 GPUs, and this session alone asks for 8 GPUs; ask for less",
        ),
    ],
)
def test_a_refusal_names_limit_owner_use_and_what_was_asked(full: dict[str, Any], sentence: str) -> None:
    assert refusal({**FULL, **full}).startswith(sentence)


def test_contradictions_are_all_told() -> None:
    limits = [
        parse("cpu", 2),
        parse("session.cpu", 4),
        parse("sessions", 1),
        parse("pending_sessions", 3),
        parse("lifetime", 60),
        parse("idle", 90),
    ]
    assert len(contradictions(limits)) == 3
    assert (
        contradictions(
            [parse("cpu", 4), parse("session.cpu", 4), parse("sessions", 1, waits=True), parse("pending_sessions", 3)]
        )
        == []
    )
