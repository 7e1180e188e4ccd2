"""Tensors and frames of tensor streams, as bytes; what arrives is checked before anything is allocated for it.

Shared by the server in the container (on the image's Python, 3.8 or later; `import moorage_tensors` in an app) and by
`moorage.mesh`, whose copy is generated from this file. Standard library only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TYPE_CHECKING = False  # annotations are not evaluated: they are written for newer versions
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    #: What one frame carries: nothing, one tensor, or several by name.
    Body: TypeAlias = "Tensor | dict[str, Tensor] | None"

#: Bytes of one element, by the names that safetensors uses.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
CONTENT_TYPE = "application/x-moorage-tensors"
#: Before each frame: bytes of its header (JSON), bytes of its payload.
_PREFIX = struct.Struct("!IQ")
_SAFETENSORS_PREFIX = struct.Struct("<Q")
_PIECE = 1 << 20
#: What no application may say in a header.
_OURS = ("kind", "seq", "format", "dtype", "shape", "auth")


class BadFrame(ValueError):
    """What was sent is no frame of a tensor stream."""

    code = "bad_frame"


class CutOff(BadFrame):
    """The connection ended in the middle of a frame."""

    code = "cut_off"


class BadTensor(BadFrame):
    """The bytes are not those of the tensor that was announced, or it is of a kind that nobody knows."""

    code = "bad_tensor"


class TooLarge(BadTensor):
    """More than the limits allow."""

    code = "tensor_too_large"


@dataclass(frozen=True)
class Limits:
    """What a receiver takes."""

    payload_bytes: int = 256 << 20
    header_bytes: int = 256 << 10
    dimensions: int = 16
    tensors: int = 1024  #: named ones in one frame


class Tensor:
    """A type, a shape, and the elements as little-endian bytes. Without a shape: as many elements as there are."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, dtype: str, shape: Sequence[int] | None, data: Any) -> None:
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        size = ITEM_BYTES.get(dtype, 0)
        self.dtype = dtype
        self.shape: tuple[int, ...] = tuple(shape) if shape is not None else (len(view) // (size or 1),)
        _check_size(dtype, self.shape, len(view), Limits(payload_bytes=len(view)))
        self.data = view

    def __repr__(self) -> str:
        return f"Tensor({self.dtype!r}, {list(self.shape)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)

    __hash__ = None  # type: ignore[assignment]  # its bytes may change


@dataclass
class Frame:
    """`kind` is request, open, tensor, end or error; `seq` the number of the output. `auth` is the authorizer's to fill."""

    kind: str
    seq: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    body: Body = None
    auth: dict[str, Any] | None = None
    _payload: list[Any] | None = None  #: as it was received, or as it will be sent
    _digest: str | None = None

    def header(self) -> dict[str, Any]:
        """All but `auth`."""
        told: dict[str, Any] = {"kind": self.kind, "seq": self.seq}
        if isinstance(self.body, Tensor):
            told.update(format="raw", dtype=self.body.dtype, shape=list(self.body.shape))
        elif self.body is not None:
            told["format"] = "safetensors"
        told.update((name, value) for name, value in self.fields.items() if name not in _OURS)
        return told

    def payload(self) -> list[Any]:
        """Buffers that follow each other."""
        if self._payload is None:
            if isinstance(self.body, Tensor):
                self._payload = [self.body.data]
            else:
                self._payload = [] if self.body is None else safetensors(self.body)
        return self._payload

    def parts(self) -> list[Any]:
        """Buffers to be sent, one after the other."""
        told = self.header()
        if self.auth is not None:
            told["auth"] = self.auth
        header = json.dumps(told, separators=(",", ":")).encode()
        payload = self.payload()
        return [_PREFIX.pack(len(header), sum(len(part) for part in payload)) + header, *payload]

    async def digest(self) -> str:
        """Of everything but `auth`; what an authorizer signs. Large payloads are read in a thread."""
        if self._digest is None:
            payload = self.payload()
            if sum(len(part) for part in payload) > _PIECE:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(None, _sha256, payload)
            else:
                found = _sha256(payload)
            header = json.dumps(self.header(), sort_keys=True, separators=(",", ":"))
            self._digest = hashlib.sha256(f"{header}\n{found}".encode()).hexdigest()
        return self._digest


def _sha256(parts: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------
async def read_frame(reader: asyncio.StreamReader, limits: Limits) -> Frame | None:
    """The next frame; None at a proper end. Its type, shape and size are compared before its bytes are read.

    Raises BadFrame and its kinds.
    """
    try:
        prefix = await reader.readexactly(_PREFIX.size)
    except asyncio.IncompleteReadError as short:
        if short.partial:
            raise CutOff("The stream ends within a frame.") from None
        return None
    header_bytes, size = _PREFIX.unpack(prefix)
    if not 2 <= header_bytes <= limits.header_bytes:
        raise BadFrame(f"A frame's header has 2 to {limits.header_bytes} bytes, not {header_bytes}.")
    if size > limits.payload_bytes:
        raise TooLarge(f"A frame carries at most {limits.payload_bytes} bytes, not {size}.")
    try:
        told = _object(await reader.readexactly(header_bytes), "A frame's header")
        frame = Frame(_text(told, "kind"), _count(told.get("seq", 0), "seq"))
        if not isinstance(told.get("auth"), (dict, type(None))):
            raise BadFrame("A frame's 'auth' is an object.")
        frame.auth = told.get("auth")
        frame.fields = {name: value for name, value in told.items() if name not in _OURS}
        await _read_body(reader, frame, told, size, limits)
    except asyncio.IncompleteReadError:
        raise CutOff("The stream ends within a frame.") from None
    return frame


async def _read_body(
    reader: asyncio.StreamReader, frame: Frame, told: Mapping[str, Any], size: int, limits: Limits
) -> None:
    kind = told.get("format")
    if kind is None:
        if size:
            raise BadFrame("A frame with a payload says its format: raw or safetensors.")
    elif kind == "raw":
        dtype, shape = told.get("dtype"), told.get("shape")
        if not isinstance(dtype, str) or not isinstance(shape, list):
            raise BadTensor("A raw frame says its dtype and its shape.")
        _check_size(dtype, shape, size, limits)
        data = memoryview(await _read(reader, size))
        frame.body, frame._payload = Tensor(dtype, shape, data), [data]
    elif kind == "safetensors":
        head, places = await _read_layout(reader, size, limits)
        data = memoryview(await _read(reader, size - len(head)))
        frame.body = {name: Tensor(dtype, shape, data[a:b]) for name, dtype, shape, a, b in places}
        frame._payload = [head, data]
    else:
        raise BadFrame(f"'{str(kind)[:40]}' is no format of frames; there are raw and safetensors.")


async def _read_layout(
    reader: asyncio.StreamReader, size: int, limits: Limits
) -> tuple[bytes, list[tuple[str, str, list[int], int, int]]]:
    if size < _SAFETENSORS_PREFIX.size:
        raise BadTensor("The payload is too short for safetensors.")
    prefix = await reader.readexactly(_SAFETENSORS_PREFIX.size)
    (length,) = _SAFETENSORS_PREFIX.unpack(prefix)
    if length > min(limits.header_bytes, size - len(prefix)):
        raise BadTensor(f"A safetensors header has at most {limits.header_bytes} bytes, within its payload.")
    raw = await reader.readexactly(length)
    return prefix + raw, layout(raw, size - len(prefix) - length, limits)


def layout(raw: bytes, size: int, limits: Limits) -> list[tuple[str, str, list[int], int, int]]:
    """Name, dtype, shape, begin and end of each tensor that a safetensors header describes, if they fill `size` bytes.

    Raises BadTensor.
    """
    told = _object(raw, "A safetensors header", BadTensor)
    told.pop("__metadata__", None)
    if len(told) > limits.tensors:
        raise TooLarge(f"A frame has at most {limits.tensors} tensors, not {len(told)}.")
    places = []
    for name, entry in told.items():
        if not isinstance(entry, dict):
            raise BadTensor("A safetensors header has an object for each name.")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
            raise BadTensor(f"The tensor '{name[:80]}' lacks its dtype, shape or data_offsets.")
        if len(offsets) != 2:
            raise BadTensor(f"The tensor '{name[:80]}' has a begin and an end.")
        begin, end = (_count(offset, "data_offsets", BadTensor) for offset in offsets)
        if not begin <= end <= size:
            raise BadTensor(f"The tensor '{name[:80]}' lies outside of its payload.")
        _check_size(dtype, shape, end - begin, limits)
        places.append((name, dtype, shape, begin, end))
    last = 0
    for _, _, _, begin, end in sorted(places, key=lambda place: place[3:]):
        if begin != last:
            raise BadTensor("The tensors of a safetensors payload follow each other without holes.")
        last = end
    if last != size:
        raise BadTensor(f"The tensors take {last} bytes of a payload of {size}.")
    return places


async def _read(reader: asyncio.StreamReader, size: int) -> bytearray:
    data = bytearray(size)
    view, there = memoryview(data), 0
    while there < size:
        piece = await reader.read(min(size - there, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size - there)
        view[there : there + len(piece)] = piece
        there += len(piece)
    return data


# -- writing -----------------------------------------------------------------------------------------------------------
def safetensors(tensors: Mapping[str, Tensor]) -> list[Any]:
    """Buffers of a payload in the format of safetensors."""
    told: dict[str, Any] = {}
    there = 0
    for name, tensor in tensors.items():
        end = there + len(tensor.data)
        told[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [there, end]}
        there = end
    header = json.dumps(told, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [_SAFETENSORS_PREFIX.pack(len(header)) + header, *(tensor.data for tensor in tensors.values())]


# -- checks ------------------------------------------------------------------------------------------------------------
def _check_size(dtype: str, shape: Sequence[Any], size: int, limits: Limits) -> None:
    if dtype not in ITEM_BYTES:
        raise BadTensor(f"'{dtype[:40]}' is no type of elements; there are {', '.join(ITEM_BYTES)}.")
    if len(shape) > limits.dimensions:
        raise TooLarge(f"A tensor has at most {limits.dimensions} dimensions, not {len(shape)}.")
    wanted = room = ITEM_BYTES[dtype]
    for extent in shape:
        wanted *= _count(extent, "shape", BadTensor)
        room *= max(extent, 1)
    if wanted != size:
        raise BadTensor(f"A tensor of {dtype} and shape {list(shape)} has {wanted} bytes, not {size}.")
    if room >= 1 << 63:  # libraries count so, also where an extent of 0 leaves nothing of it
        raise BadTensor(f"No tensor has the shape {list(shape)}.")
    if size > limits.payload_bytes:
        raise TooLarge(f"A tensor has at most {limits.payload_bytes} bytes, not {size}.")


def _count(value: Any, name: str, error: type = BadFrame) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise error(f"'{name}' holds whole numbers from 0.")
    return value


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    if not isinstance(value, str):
        raise BadFrame(f"A frame's header has a text '{name}'.")
    return value


def _object(raw: bytes, what: str, error: type = BadFrame) -> dict[str, Any]:
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        raise error(f"{what} is not JSON.") from None
    if not isinstance(told, dict):
        raise error(f"{what} is a JSON object.")
    return told
