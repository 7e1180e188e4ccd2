"""Tensors of numpy as bytes and back; those of torch are tested where torch is installed."""

from __future__ import annotations

import numpy as np
import pytest
from moorage.mesh import NoNodes, Tensor
from moorage.mesh._arrays import kind_of, pack, unpack
from moorage.mesh._tensors import BadTensor, TooLarge

from tests.mesh.nodes import Clock, remote


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(24, dtype=np.float16).reshape(2, 3, 4)[:, ::2, ::-1],
        np.array(3.5),
        np.array([True, False]),
        np.zeros((3, 0, 2), dtype=np.uint64),
        np.float32(2.5),
    ],
    ids=["big_endian", "strided", "of_no_dimension", "bool", "empty", "scalar"],
)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    body = pack(array)
    assert isinstance(body, Tensor)
    again = unpack(body, "numpy")
    assert (again.shape, again.dtype) == (array.shape, array.dtype.newbyteorder("="))
    assert (again == array).all()


def test_what_is_received_may_be_written_to_and_lies_where_it_should() -> None:
    whole = memoryview(bytearray(b"x" + np.arange(3, dtype=np.float64).tobytes()))
    array = unpack(Tensor("F64", [3], whole[1:]), "numpy")
    array += 1
    assert array.tolist() == [1, 2, 3]
    assert array.flags.aligned


def test_what_is_no_tensor_is_refused_before_it_is_copied() -> None:
    with pytest.raises(BadTensor, match="ml_dtypes"):
        unpack(Tensor("BF16", [1], b"\0\0"), "numpy")
    with pytest.raises(BadTensor, match="convert it first"):
        pack(np.array([1j]))
    with pytest.raises(TooLarge):
        pack(np.zeros(1 << 30, dtype=np.uint8)[::2], most_bytes=1 << 20)
    with pytest.raises(TooLarge, match="together"):
        pack({"a": b"x" * 600, "b": b"x" * 600}, most_bytes=1000)
    assert [kind_of(value) for value in (b"x", np.zeros(1), {"a": np.zeros(1)}, "x", None)] == [
        "raw", "numpy", "numpy", None, None,
    ]  # fmt: skip


async def test_nodes_that_do_not_come_are_an_error() -> None:
    with pytest.raises(NoNodes, match="0 of 1 nodes answer"):
        await remote("127.0.0.1:1").wait_for_nodes(timeout=0.0)


async def test_what_is_known_is_looked_up_again_when_it_is_old() -> None:
    clock = Clock()
    manager = remote("127.0.0.1:1", now=clock)
    await manager.ready()
    first = manager.state.updated_at
    await manager.ready()
    assert manager._updating is not None
    assert manager._updating.done()
    clock.now += 61
    await manager.ready()
    await manager.update()
    assert (first, manager.state.updated_at) == (1000.0, 1061.0)
