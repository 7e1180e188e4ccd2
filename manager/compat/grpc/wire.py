"""The little of Protocol Buffers that routing needs: one text field of a message, and short messages of our own.

Nothing else of a message is looked at here; what it holds is the affair of the session that it is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

#: The field that routes comes first in what clients write; a message that hides it behind so many others is not theirs.
_MOST_FIELDS: Final = 1000
_MOST_TEXT_BYTES: Final = 4096
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Malformed(Exception):
    """These bytes are no message."""


def text_field(message: bytes, number: int) -> str | None:
    """The first value of a text field; None when it is not set. Raises Malformed."""
    for found, start, end in _fields(message):
        if found != number:
            continue
        if start < 0 or end - start > _MOST_TEXT_BYTES:
            raise Malformed
        try:
            return message[start:end].decode()
        except UnicodeDecodeError:
            raise Malformed from None
    return None


def text(number: int, value: str) -> bytes:
    """A text field, as it is written. Written after a message it is set in it, whatever stood there before."""
    data = value.encode()
    return _varint(number << 3 | _LENGTH) + _varint(len(data)) + data


def flag(number: int, value: bool) -> bytes:
    """A field that is true or false; false is not written."""
    return _varint(number << 3 | _VARINT) + b"\x01" if value else b""


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field; a begin of -1 when it is none of bytes."""
    at, size = 0, len(message)
    for _ in range(_MOST_FIELDS):
        if at >= size:
            return
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise Malformed
        start = -1
        if kind == _LENGTH:
            length, start = _read_varint(message, at)
            at = start + length
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise Malformed
        if at > size:
            raise Malformed
        yield number, start, at
    raise Malformed


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Malformed
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
