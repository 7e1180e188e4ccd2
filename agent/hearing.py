"""What the other side says, brought into shape or refused: nothing of a wrong type, range or size goes on from here.

One agent in wrong hands must harm nobody else, so this stands before everything that a manager does with what agents say.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from agent.wire import AgentHello, DeviceList

T = TypeVar("T")
MOST_INTEGER: Final = 2**62
MOST_TEXT: Final = 64 * 1024
#: Of what an agent tells of itself beside numbers and lists: versions, warnings.
_MOST_INFO: Final = 1000
_MOST_IMAGES: Final = 20_000
_MOST_NAME: Final = 512
_MOST_DEPTH: Final = 12


class Malformed(ValueError):
    """What the other side said makes no sense; one of the two may be of another version."""


def shaped(kind: type[T], said: object) -> T:
    """A dataclass of the wire, of what msgpack made of a message. Unknown fields are left out. Raises Malformed."""
    if not isinstance(said, dict):
        raise Malformed(f"{kind.__name__} is no map.")
    checks = _checks(cast(Any, kind))  # mypy does not take every type for hashable
    values = {name: value for name, value in said.items() if isinstance(name, str) and name in checks}
    for name, value in values.items():
        if not checks[name](value):
            raise Malformed(f"{kind.__name__} has a wrong '{name}'.")
    try:
        return kind(**values)
    except TypeError:
        raise Malformed(f"{kind.__name__} lacks a field.") from None


def all_shaped(kind: type[T], said: object, *, most: int) -> tuple[list[T], int]:
    """Those of a list that make sense, and how many do not. Raises Malformed for what is no list, or too long."""
    if not isinstance(said, list) or len(said) > most:
        raise Malformed(f"This is no list of {kind.__name__}, or it is too long.")
    good = []
    for one in said:
        with contextlib.suppress(Malformed):
            good.append(shaped(kind, one))
    return good, len(said) - len(good)


def is_plain(value: object, *, most: int = MOST_INTEGER, depth: int = 0) -> bool:
    """Whether it is what JSON can say, not deep, with numbers that exist, and of no more parts than `most`."""
    if depth > _MOST_DEPTH:
        return False
    if isinstance(value, dict):
        inner = (is_plain(one, most=most, depth=depth + 1) for one in value.values())
        return len(value) <= most and all(isinstance(key, str) and _is_text(key) for key in value) and all(inner)
    if isinstance(value, list):
        return len(value) <= most and all(is_plain(one, most=most, depth=depth + 1) for one in value)
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < MOST_INTEGER)


def is_modest(said: AgentHello | DeviceList) -> bool:
    """Whether what a host says of itself is no more than there can be: it is kept, and shown to administrators."""
    texts = [*said.resources]
    if isinstance(said, AgentHello):
        texts += [said.uid, said.version, said.hostname, said.architecture, *said.images]
        if not is_info(said.info) or len(said.images) > _MOST_IMAGES:
            return False
    devices = len(said.devices) <= _MOST_INFO and all(map(is_info, said.devices))
    return devices and len(said.resources) <= _MOST_INFO and all(len(text) <= _MOST_NAME for text in texts)


def is_info(value: object) -> bool:
    return isinstance(value, dict) and is_plain(value, most=_MOST_INFO)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT


@cache
def _checks(kind: type[Any]) -> Mapping[str, Callable[[object], bool]]:
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    return {field.name: _check(hints[field.name]) for field in fields(kind)}


def _check(hint: Any) -> Callable[[object], bool]:
    """Of the few kinds of types that messages are made of."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_check(part) for part in get_args(hint)]
        return lambda value: any(part(value) for part in parts)
    if origin in (list, Sequence):
        (inner,) = (_check(part) for part in get_args(hint))
        return lambda value: isinstance(value, list | tuple) and all(map(inner, value))
    if origin is tuple:
        several = [_check(part) for part in get_args(hint)]
        return lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(several)
            and all(check(one) for check, one in zip(several, value, strict=True))
        )
    if origin is dict:
        held = _check(get_args(hint)[1])
        return lambda value: isinstance(value, dict) and all(_is_text(k) and held(v) for k, v in value.items())
    simple: Mapping[Any, Callable[[object], bool]] = {
        str: _is_text,
        bytes: lambda value: isinstance(value, bytes),
        bool: lambda value: isinstance(value, bool),
        # up to it: who wants to know how a run stands reads from 2**62 on
        int: lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER,
        float: lambda value: isinstance(value, int | float) and math.isfinite(value) and abs(value) < MOST_INTEGER,
        type(None): lambda value: value is None,
        Any: is_plain,
    }
    return simple[hint]
