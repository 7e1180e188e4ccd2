"""What the generated wire models have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from moorage._errors import UnexpectedAnswer

Convert = Callable[[Any], Any]


class Model:
    """A frozen record of an answer. Fields that this version does not know are ignored."""

    __slots__ = ()
    _convert: ClassVar[Mapping[str, Convert]] = {}
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        if not isinstance(data, dict):
            raise UnexpectedAnswer(f"The server sent no {cls.__name__}, but {type(data).__name__}.")
        convert = cls._convert
        values = {
            name: convert[name](value) if name in convert and value is not None else value
            for name, value in data.items()
            if name in cls.__dataclass_fields__
        }
        try:
            return cls(**values)
        except TypeError as problem:
            raise UnexpectedAnswer(f"The server's {cls.__name__} lacks a field: {problem}.") from None

    def to_json(self) -> dict[str, Any]:
        """As it came: plain values, timestamps in ISO 8601."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "_convert"}


def when(value: str | float) -> datetime:
    """An aware datetime from ISO 8601, or from unix seconds."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError, OverflowError):
        raise UnexpectedAnswer(f"The server sent '{value}' for a time.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def many(convert: Convert) -> Convert:
    return lambda values: [convert(value) for value in values]


def mapped(convert: Convert) -> Convert:
    return lambda values: {name: convert(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.to_json()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
