"""Filters and orders of lists, as Backend.AI writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from manager.compat.backendai.minilang import BadExpression, condition, ordered

COLUMNS = ("name", "status", "size", "at", "tag", "tags", "live")
ROWS: list[dict[str, Any]] = [
    {
        "name": "train-1",
        "status": "RUNNING",
        "size": 3,
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "tag": None,
        "live": True,
    },
    {
        "name": "train-2",
        "status": "PENDING",
        "size": 1,
        "at": datetime(2026, 1, 3, tzinfo=UTC),
        "tag": "x",
        "live": True,
    },
    {
        "name": 'say "hi"',
        "status": "ERROR",
        "size": 2,
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "tag": "y",
        "live": False,
    },
]
for _row in ROWS:
    _row["tags"] = ["a", "b"] if _row["size"] == 1 else []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, [3, 1, 2]),
        ("  ", [3, 1, 2]),
        ('name == "train-1"', [3]),
        ('name != "train-1"', [1, 2]),
        ('name like "train%"', [3, 1]),
        ('name ilike "TRAIN-_"', [3, 1]),
        ('name like "train"', []),
        ('name like ".*"', []),
        (r'name == "say \"hi\""', [2]),
        ("size > 1", [3, 2]),
        ("size >= 2 & size <= 2", [2]),
        ("size < 2 | size == 3", [3, 1]),
        ('status in ["RUNNING", "ERROR"]', [3, 2]),
        ("size in []", []),
        ('tags contains "a"', [1]),
        ('name contains "hi"', [2]),
        ("tag is null", [3]),
        ("tag isnot null", [1, 2]),
        ("live == true", [3, 1]),
        ('!(name == "train-1") & live == true', [1]),
        ('at > "2026-01-01T12:00:00+00:00"', [1, 2]),
        ('(name == "train-1" | name == "train-2") & status == "PENDING"', [1]),
    ],
)
def test_filters(text: str | None, found: list[int]) -> None:
    fits = condition(text, COLUMNS)
    assert [row["size"] for row in ROWS if fits(row)] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, [3, 1, 2]),
        ("size", [1, 2, 3]),
        ("-size", [3, 2, 1]),
        ("+at", [3, 2, 1]),
        ("-live,+size", [1, 3, 2]),
        ("tag", [3, 1, 2]),  # nothing comes first
        ("-tag", [2, 1, 3]),
    ],
)
def test_orders(text: str | None, found: list[int]) -> None:
    assert [row["size"] for row in ordered(ROWS, text, COLUMNS)] == found


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "name ==",
        'name == "open',
        'name = "x"',
        "name == word",
        'password == "x"',
        '__class__ == "x"',
        'name == "a" name == "b"',
        "name in 3",
        'name == ["a"]',
        "name in " + "[" * 1900,
        '(name == "a"',
        "name == ]",
        'at > "yesterday"',
        'at > "2026-01-01T00:00:00"',
        "(" * 30 + 'name == "a"' + ")" * 30,
        "!" * 30 + 'name == "a"',
        'name == "' + "x" * 3000 + '"',
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        [row for row in ROWS if condition(text, COLUMNS)(row)]


@pytest.mark.parametrize("text", ["nothing", "--size", "-", "size;drop", "size," * 600, "size,at,tag,name,live,size"])
def test_what_is_no_column_orders_nothing(text: str) -> None:
    with pytest.raises(BadExpression):
        ordered(ROWS, text, COLUMNS)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("%a%b%c%d%e%f%", False),
        ("%a_%", True),
        ("a%a", True),
        ("%", True),
        ("a", False),
        ("_", False),
        ("a" * 50 + "%", True),
        ("%" + "a" * 50, True),
        ("%a%a%a%a%a%a%a%a%b", False),  # tried in every way there is, it would not come to an end
        ("%a%a%a%a%a%a%a%a%b%", False),
        ("%" + "_%" * 900, True),
    ],
)
@pytest.mark.parametrize("operator", ["like", "ilike"])
def test_patterns_are_matched_once(pattern: str, operator: str, fits: bool) -> None:
    assert condition(f'name {operator} "{pattern}"', ["name"])({"name": "a" * 3000}) is fits


def test_what_ends_a_text_is_looked_for_at_its_end() -> None:
    assert [
        name for name in ("abab", "aba", "ab", "b", "") if condition('name like "a%ab"', ["name"])({"name": name})
    ] == ["abab"]
