"""Where a body ends, while its bytes pass by unchanged."""

from __future__ import annotations

import re
from typing import Final

from manager.proxy.heads import BadHead, Framing

_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n\x00]*)?")
_MOST_LINE: Final = 4096


class Body:
    """`take` says how many of the bytes at hand belong to the body; `done` when there are no more."""

    __slots__ = ("_chunk", "_ended", "_left", "_line", "_trailers", "done")

    def __init__(self, framing: Framing) -> None:
        self._left = -1 if framing.until_close else framing.length
        self._chunk = framing.chunked  #: a line is awaited, or bytes of a chunk are
        self._line = bytearray()
        self._trailers = False
        self._ended = False
        self.done = not framing.chunked and not framing.until_close and framing.length == 0

    @property
    def left(self) -> int | None:
        """Bytes to come, where that is known and nothing need be read of them."""
        return None if self._chunk or self._left < 0 else self._left

    @property
    def until_close(self) -> bool:
        return not self._chunk and self._left < 0

    def passed(self, count: int) -> None:
        """So many bytes went by elsewhere."""
        self._left -= count
        self.done = self._left == 0

    def take(self, data: bytes | bytearray) -> int:
        if not self._chunk:
            if self._left < 0:
                return len(data)
            count = min(self._left, len(data))
            self.passed(count)
            return count
        return self._take_chunks(bytes(data))

    def _take_chunks(self, data: bytes) -> int:
        at = 0
        while at < len(data) and not self.done:
            if self._left > 0:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at)
            piece = data[at : len(data) if end < 0 else end + 1]
            self._line += piece
            at += len(piece)
            if len(self._line) > _MOST_LINE:
                raise BadHead("A chunk of the body is malformed.")
            if end >= 0:
                line = bytes(self._line)
                self._line.clear()
                self._read_line(line)
        return at

    def _read_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BadHead("A chunk of the body is malformed.")
        if self._ended:  # the line end of a chunk
            if line != b"\r\n":
                raise BadHead("A chunk of the body is malformed.")
            self._ended = False
            return
        if self._trailers:
            self.done = line == b"\r\n"
            return
        match = _SIZE.fullmatch(line[:-2])
        if match is None:
            raise BadHead("A chunk of the body is malformed.")
        size = int(match[1], 16)
        if size:
            self._left, self._ended = size, True
        else:
            self._trailers = True
