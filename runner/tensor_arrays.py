"""Between tensors of a stream and those of torch and numpy, neither of which is imported before somebody uses it.

Shared by the server in the container and by `moorage.mesh`, whose copy is generated from this file.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

from runner.moorage_tensors import ITEM_BYTES, BadTensor, Tensor, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.moorage_tensors import Body

KINDS = ("torch", "numpy", "raw")
_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_OF_TORCH = {name: dtype for dtype, name in _TORCH.items()}
_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_OF_NUMPY = {name[1:]: dtype for dtype, name in _NUMPY.items()}
#: What numpy knows through the package ml_dtypes only.
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_OF_ML_DTYPES = {name: dtype for dtype, name in _ML_DTYPES.items()}


def kind_of(value: Any) -> str | None:
    """What a value is of: torch, numpy or raw; None for what is no tensor."""
    if isinstance(value, Mapping):
        return next((kind for kind in map(kind_of, value.values()) if kind is not None), None)
    if isinstance(value, (Tensor, bytes, bytearray, memoryview)):
        return "raw"
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        return "torch"
    if (numpy := sys.modules.get("numpy")) is not None and (
        isinstance(value, (numpy.ndarray, numpy.generic)) or hasattr(value, "__array__")
    ):
        return "numpy"
    return None


def loaded_kind() -> str:
    """What this program works with: torch when it was imported, else numpy when it was, else neither."""
    return next((kind for kind in KINDS if kind in sys.modules), "raw")


def pack(value: Any, most_bytes: int = 1 << 62) -> Body:
    """A tensor of torch or numpy, bytes, or a mapping of such by name. Raises BadTensor; TooLarge before it is copied."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        packed = {str(name): _packed(one, most_bytes) for name, one in value.items()}
        if sum(len(one.data) for one in packed.values()) > most_bytes:
            raise TooLarge(f"The tensors have more than {most_bytes} bytes together.")
        return packed
    return _packed(value, most_bytes)


def unpack(body: Body, kind: str) -> Any:
    """The same as tensors of `kind`, over the same bytes where that is possible. Raises BadTensor."""
    if isinstance(body, dict):
        return {name: unpack(one, kind) for name, one in body.items()}
    if body is None or kind == "raw":
        return body
    return _to_torch(body) if kind == "torch" else _to_numpy(body)


def _packed(value: Any, most_bytes: int) -> Tensor:
    kind = kind_of(value)
    if kind is None or isinstance(value, Mapping):
        raise BadTensor(f"A {type(value).__name__} is no tensor; there are those of torch and numpy, Tensor and bytes.")
    if kind == "torch":
        size = value.numel() * value.element_size()
    elif kind == "numpy":
        size = getattr(value, "nbytes", 0)
    else:
        size = memoryview(value.data if isinstance(value, Tensor) else value).nbytes
    if size > most_bytes:
        raise TooLarge(f"The tensor has {size} bytes; {most_bytes} are the most.")
    if isinstance(value, Tensor):
        return value
    if kind == "raw":
        return Tensor("U8", None, value)
    return _of_torch(value) if kind == "torch" else _of_numpy(value)


def _of_torch(value: Any) -> Tensor:
    dtype = _OF_TORCH.get(str(value.dtype).rpartition(".")[2])
    if dtype is None or value.is_sparse:
        raise BadTensor(f"Tensors of {value.dtype} and {value.layout} are not streamed; convert it first.")
    plain = value.detach().cpu().contiguous()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    size = plain.numel() * plain.element_size()
    return Tensor(dtype, list(plain.shape), ctypes.string_at(plain.data_ptr(), size) if size else b"")


def _to_torch(tensor: Tensor) -> Any:
    import torch

    dtype = getattr(torch, _TORCH[tensor.dtype], None)
    if dtype is None:
        raise BadTensor(f"The torch that is installed here has no {_TORCH[tensor.dtype]}.")
    if not len(tensor.data):
        return torch.empty(tensor.shape, dtype=dtype)
    data = _own(tensor)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(tensor.shape)


def _own(tensor: Tensor) -> Any:
    """Bytes that may be written to and begin where an element may; those of the tensor when they do."""
    data = tensor.data
    if not data.readonly:
        begin = ctypes.addressof(ctypes.c_char.from_buffer(data))
        if begin % ITEM_BYTES[tensor.dtype] == 0:
            return data
    return bytearray(data)


def _of_numpy(value: Any) -> Tensor:
    import numpy

    array = numpy.asarray(value)
    if array.dtype.name in _OF_ML_DTYPES:
        dtype = _OF_ML_DTYPES[array.dtype.name]
        array = array.view(f"u{array.dtype.itemsize}")
    elif (found := _OF_NUMPY.get(array.dtype.str[1:])) is not None:
        dtype = found
    else:
        raise BadTensor(f"Arrays of {array.dtype} are not streamed; convert it first.")
    plain = numpy.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return Tensor(dtype, list(array.shape), plain.view("u1").data)


def _to_numpy(tensor: Tensor) -> Any:
    import numpy

    dtype: Any = _NUMPY.get(tensor.dtype)
    if dtype is None:
        try:
            import ml_dtypes
        except ImportError:
            raise BadTensor(
                f"numpy has no {tensor.dtype} by itself: install ml_dtypes, or take such tensors as torch or raw."
            ) from None
        dtype = getattr(ml_dtypes, _ML_DTYPES[tensor.dtype])
    if not len(tensor.data):
        return numpy.empty(tensor.shape, dtype)
    return numpy.frombuffer(_own(tensor), dtype=numpy.uint8).view(dtype).reshape(tensor.shape)
