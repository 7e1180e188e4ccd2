"""The JSON loader: every odd body is a clean refusal, every good one comes through unchanged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidJson, InvalidRequest, MoorageError, RequestTooLarge
from manager.rest.json import MAX_BODY_BYTES, dumps, loads


def refusal(body: bytes) -> str:
    with pytest.raises(MoorageError) as caught:
        loads(body)
    assert 400 <= caught.value.http_status < 500
    return caught.value.code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"  \n", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{}x", "invalid_json"),
        (b"{'a': 1}", "invalid_json"),
        (b'{"a": 1,}', "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": Infinity}', "invalid_json"),
        (b'{"a": -Infinity}', "invalid_json"),
        (b'{"a": 1, "a": 2}', "invalid_json"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'{"a": "\xed\xa0\x80"}', "invalid_json"),
        (b'{"a": "\n"}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        ('{"a": 1}'.encode("utf-16"), "invalid_json"),
        (b"[]", "invalid_request"),
        (b"7", "invalid_request"),
        (b"null", "invalid_request"),
        (b'"text"', "invalid_request"),
        (b'{"a": 9223372036854775808}', "invalid_request"),
        (b'{"a": -9223372036854775809}', "invalid_request"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_request"),
        (b'{"a": 1e999}', "invalid_request"),
        (b'{"a": "\\u0000"}', "invalid_request"),
        (b'{"\\u0000": 1}', "invalid_request"),
        (b'{"a": ["\\ud800"]}', "invalid_request"),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "invalid_request"),
        (b'{"a": ' + b"[" * 200_000, "invalid_request"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_request"),
        (b'{"a": "' + b"x" * MAX_BODY_BYTES + b'"}', "request_too_large"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_odd_bodies_are_refused(body: bytes, code: str) -> None:
    assert refusal(body) == code


def test_what_is_just_allowed() -> None:
    assert loads(b'{"a": 9223372036854775807, "b": -9223372036854775808}') == {"a": 2**63 - 1, "b": -(2**63)}
    assert loads(b'{"a": ' * 64 + b"1" + b"}" * 64)
    assert loads(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert loads(b' {"a": 1.5e3} ') == {"a": 1500.0}


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values = st.recursive(scalars, lambda below: st.lists(below) | st.dictionaries(text, below), max_leaves=20)


@given(st.dictionaries(text, values), st.booleans())
def test_every_good_object_comes_through(value: dict[str, Any], ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value
    assert loads(dumps(value)) == value


@given(st.binary(max_size=200) | st.from_regex(rb'\{"[a-z\\u0d8]*": ?[\[\]{}0-9eE.+"a-zN\\-]*\}?', fullmatch=True))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    try:
        value = loads(body)
    except (InvalidJson, InvalidRequest, RequestTooLarge):
        return
    assert isinstance(value, dict)
    dumps(value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda below: st.lists(below) | st.dictionaries(st.text(st.characters()), below),
    max_leaves=10,
)


@given(anything)
def test_any_value_can_be_answered(value: Any) -> None:
    """What containers write passes through answers, so nothing in it may break them."""
    back = json.loads(dumps({"value": value}))["value"]
    if isinstance(value, float) and not math.isfinite(value):
        assert back is None


@dataclass
class Told:
    said: Any


def test_what_a_container_says_is_answered_whatever_it_holds() -> None:
    deep: Any = "deep"
    for _ in range(900):
        deep = [deep]
    assert json.loads(dumps(Told("\udcff"))) == {"said": "?"}
    assert json.loads(dumps({"data": Told({"\ud800": 2**70})})) == {"data": {"said": {"?": float(2**70)}}}
    assert json.loads(dumps(Told(deep)))["said"][0][0]
