"""JSON in and out: what comes in is checked for everything that would hurt later, deep in the database or a log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final
from uuid import UUID

import orjson

from domain.errors import InvalidJson, InvalidRequest, RequestTooLarge

MAX_BODY_BYTES: Final = 1024 * 1024
#: `execute` takes code of 4 MiB; escaped in JSON it may be longer.
MAX_CODE_BODY_BYTES: Final = 6 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_INTEGER: Final = 2**63 - 1
#: Of an answer: the encoder takes 254 levels.
_DEEPEST: Final = 250


def loads(body: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The object in `body`.

    Raises InvalidJson for what is no JSON (NaN, bad UTF-8 and duplicate keys included), InvalidRequest for what is, but
    cannot be stored or answered: integers beyond 64 bits, NUL, lone surrogates, more than 64 levels.
    """
    if len(body) > max_bytes:
        raise RequestTooLarge(f"The body is larger than {max_bytes} bytes; send files through the file routes.")
    if not body or body.isspace():
        raise InvalidJson("The body is empty; send a JSON object.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    # A string can hold what no file or database takes only by an escape: control characters are refused by the decoder.
    _check(value, strings=b"\\u" in body)
    return value


def _check(value: dict[str, Any], *, strings: bool) -> None:
    """Walks without recursion, so that depth costs no stack."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if strings:
                    for name in item:
                        check_text(name)
                members = item.values()
            else:
                members = item
            for member in members:
                if isinstance(member, dict | list):
                    below.append(member)
                elif strings and isinstance(member, str):
                    check_text(member)
        level = below


def check_text(text: str) -> None:
    """Raises InvalidRequest for text that PostgreSQL, a path or a log cannot hold."""
    if "\0" in text:
        raise InvalidRequest("Text must not contain NUL characters.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("Text must not contain lone surrogates.") from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJson(f"The name {json.dumps(twice[:80])} occurs twice in one object.")
    return made


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -MAX_INTEGER - 1 <= (number := int(digits)) <= MAX_INTEGER:
        raise InvalidRequest("An integer in the body does not fit 64 bits.")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise InvalidRequest("A number in the body is too large.")
    return number


def _constant(name: str) -> Any:
    raise InvalidJson(f"The body is not valid JSON: {name} is no JSON value.")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def dumps(value: Any) -> bytes:
    """Times in ISO 8601 with Z, dataclasses as objects; what a container wrote may hold any text at all."""
    try:
        return orjson.dumps(value, default=_default, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:
        return orjson.dumps(
            _printable(value, _DEEPEST), default=_default, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
        )


def _default(value: object) -> object:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, UUID):  # asyncpg's are a subclass
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _printable(value: Any, depth: int) -> Any:
    """Lone surrogates, integers beyond 64 bits and endless nesting, as some JSON of others holds them, made harmless."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else float(value) if abs(value) < 2**1000 else str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth <= 0:
        return None
    if isinstance(value, Mapping):
        return {_printable(name, 0): _printable(item, depth - 1) for name, item in value.items()}
    return [_printable(item, depth - 1) for item in value]
