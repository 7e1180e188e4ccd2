"""Values of a trace's fields: times, spans, amounts. What cannot be read is said with the field's name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar

from domain.durations import LONGEST_SECONDS, parse_seconds
from domain.errors import InvalidResources
from domain.resources import ResourceSlot, parse_memory_mib

Record: TypeAlias = Mapping[str, Any]
T = TypeVar("T")
_CLOCK: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", re.ASCII)
_LATEST: Final = datetime(3000, 1, 1, tzinfo=UTC)
_MOST: Final = 1_000_000


class Hole(Exception):
    """A field without a usable value."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def needed(record: Record, field: str, read: Callable[[str, Any], T], *others: str) -> T:
    """The value of a field, under any of its names, that has to be there."""
    for name in (field, *others):
        if (value := said(record, name)) is not None:
            return read(name, value)
    raise Hole(field, "is missing")


def given(record: Record, field: str, read: Callable[[str, Any], T], default: T, *others: str) -> T:
    """The same, where it may be left out."""
    for name in (field, *others):
        if (value := said(record, name)) is not None:
            return read(name, value)
    return default


def said(record: Record, field: str) -> Any:
    """None where nothing stands."""
    value = record.get(field)
    if isinstance(value, str):
        value = value.strip()
    return None if value in ("", None) else value


def word(field: str, value: Any) -> str:
    text = str(value)
    if isinstance(value, bool | list | dict) or len(text) > 256 or not text.isprintable():
        raise Hole(field, "is no word")
    return text


def moment(field: str, value: Any) -> datetime:
    """ISO 8601, of UTC where no zone is said; or seconds since 1970. To the millisecond, as virtual time runs."""
    if isinstance(value, int | float) or (isinstance(value, str) and _is_number(value)):
        seconds = _number(field, value)
        if not 0 <= seconds < _LATEST.timestamp():
            raise Hole(field, f"{_shown(value)} is no time between 1970 and 3000")
        return _whole_ms(datetime.fromtimestamp(seconds, UTC))
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        raise Hole(field, f"{_shown(value)} is no time; write 2026-01-31T09:30:00Z or seconds since 1970") from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if at >= _LATEST:
        raise Hole(field, f"{_shown(value)} is too late")
    return _whole_ms(at)


def seconds(field: str, value: Any) -> float:
    """A number, or 90s, 1h30m; or as Slurm writes it: 1-02:03:04, 02:03:04, 03:04."""
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value)):
        days, hours, minutes, rest = (float(part or 0) for part in clock.groups())
        found: float | None = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif isinstance(value, str) and not _is_number(value):
        found = parse_seconds(value)
    else:
        found = _number(field, value)
    if found is None:
        raise Hole(field, f"{_shown(value)} is no span of time; write seconds, 90m or 1h30m")
    if found < 0:
        raise Hole(field, f"{_shown(value)} is negative")
    if found > LONGEST_SECONDS:
        raise Hole(field, f"{_shown(value)} is longer than a hundred years")
    return found


def positive_seconds(field: str, value: Any) -> float:
    found = seconds(field, value)
    if found <= 0:
        raise Hole(field, "has to be longer than nothing")
    return found


def whole(field: str, value: Any) -> int:
    number = _number(field, value)
    if number < 0:
        raise Hole(field, f"{_shown(value)} is negative")
    if number != int(number) or number > _MOST:
        raise Hole(field, f"{_shown(value)} is not a whole number of at most a million")
    return int(number)


def count(field: str, value: Any) -> int:
    number = whole(field, value)
    if not 1 <= number <= 10_000:
        raise Hole(field, f"{_shown(value)} is not from 1 to 10,000")
    return number


def signed(field: str, value: Any) -> int:
    number = _number(field, value)
    if number != int(number) or abs(number) > _MOST:
        raise Hole(field, f"{_shown(value)} is not a whole number")
    return int(number)


def cpus(field: str, value: Any) -> int:
    """Thousandths."""
    number = _number(field, value)
    if number < 0:
        raise Hole(field, f"{_shown(value)} is negative")
    try:
        return ResourceSlot(cpu=round(number, 3)).get("cpu", 0)
    except InvalidResources as error:
        raise Hole(field, _inner(error)) from None


def memory(field: str, value: Any) -> int:
    """MiB; bare numbers are MiB, too."""
    if isinstance(value, float | int) or _is_number(str(value)):
        number = _number(field, value)
        if number < 0:
            raise Hole(field, f"{_shown(value)} is negative")
        value = number
    try:
        return parse_memory_mib(value)
    except InvalidResources as error:
        raise Hole(field, _inner(error)) from None


def _whole_ms(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 64:
        raise Hole(field, f"{_shown(value)} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Hole(field, f"{_shown(value)} is not a number") from None
    if not math.isfinite(number):
        raise Hole(field, f"{_shown(value)} is not a finite number")
    return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _shown(value: Any) -> str:
    return f"'{str(value)[:40]}'"


def _inner(error: InvalidResources) -> str:
    return error.message.rstrip(".")
