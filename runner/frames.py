"""One frame: two lengths, a JSON header, raw bytes. Both ends of the runner's socket import this file."""

from __future__ import annotations

import json
import struct
from typing import Any

PROTOCOL = 1
LENGTHS = struct.Struct("!II")
CHUNK = struct.Struct("!I")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 16 << 20
#: One piece of a file or an archive on a connection of its own; a piece of length 0 ends it.
MAX_CHUNK_BYTES = 8 << 20


class BadFrame(Exception):
    """The other side does not keep to the format."""


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    raw = json.dumps(header, separators=(",", ":")).encode()
    return LENGTHS.pack(len(raw), len(body)) + raw + body


class FrameBuffer:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self, max_header: int = MAX_HEADER_BYTES, max_body: int = MAX_BODY_BYTES) -> None:
        self._buffer = bytearray()
        self._max_header = max_header
        self._max_body = max_body

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[dict[str, Any], bytes] | None:
        """The next whole frame; None when more bytes are needed. BadFrame is final."""
        buffer = self._buffer
        if len(buffer) < 8:
            return None
        header_length, body_length = LENGTHS.unpack_from(buffer)
        if header_length > self._max_header or body_length > self._max_body:
            raise BadFrame(f"frame of {header_length} + {body_length} bytes")
        end = 8 + header_length + body_length
        if len(buffer) < end:
            return None
        try:
            header = json.loads(buffer[8 : 8 + header_length])
        except (ValueError, RecursionError):
            raise BadFrame("the header is not JSON") from None
        if not isinstance(header, dict):
            raise BadFrame("the header is not an object")
        body = bytes(buffer[8 + header_length : end])
        del buffer[:end]
        return header, body

    def rest(self) -> bytes:
        """Bytes beyond the frames taken so far; the buffer is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
