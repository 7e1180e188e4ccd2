"""What travels between a process in the container and whoever streams it: small pieces, each with its kind and length."""

from __future__ import annotations

import struct

PIECE = struct.Struct("!BI")
MAX_PIECE_BYTES = 64 << 10
SIZE = struct.Struct("!HH")  #: of a terminal: rows, columns
#: To the process: bytes, their end, the terminal's size, a signal's name, and the end of it all.
STDIN, STDIN_END, RESIZE, SIGNAL, HANG_UP = 1, 2, 3, 4, 5
#: From the process: bytes, its end as JSON {exit_code, signal}, and why this connection has lost it.
STDOUT, STDERR, EXIT, TAKEN = 11, 12, 13, 14


class BadPiece(Exception):
    """The other side does not keep to the format."""


class PieceBuffer:
    """Takes bytes as they come and gives whole pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """The next whole piece; None when more bytes are needed. BadPiece is final."""
        buffer = self._buffer
        if len(buffer) < PIECE.size:
            return None
        kind, length = PIECE.unpack_from(buffer)
        if length > MAX_PIECE_BYTES:
            raise BadPiece(f"a piece of {length} bytes")
        end = PIECE.size + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[PIECE.size : end])
        del buffer[:end]
        return kind, payload


def pack_piece(kind: int, payload: bytes = b"") -> bytes:
    return PIECE.pack(kind, len(payload)) + payload
