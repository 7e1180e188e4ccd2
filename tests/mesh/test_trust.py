"""Who may ask, whose chunks are believed, and nodes that send anything at all."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from moorage.mesh import (
    AuthorizationRefused,
    AuthorizerBase,
    Frame,
    NodeFailed,
    RateLimitAuthorizer,
    RateLimited,
    Refused,
    Session,
    SignatureAuthorizer,
    SignatureInvalid,
    Tensor,
)

from runner import moorage_authorizers as theirs
from tests.mesh.nodes import SECRET, Clock, TestNode, hostile, node, remote

TENSOR = np.zeros((2, 3), dtype=np.float32)


async def three(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
    for number in range(3):
        yield tensor + number


async def outputs(session: Session) -> list[Any]:
    return [output async for output in session.run_protocol_task("p", TENSOR, max_retries=1)]


async def test_signed_both_ways() -> None:
    async with node(three, authorizer=theirs.SignatureAuthorizer(SECRET)) as one, remote(one.address) as manager:
        assert len(await outputs(Session(manager, SignatureAuthorizer(SECRET)))) == 3


async def test_named_and_large_tensors_are_signed_too() -> None:
    async def echo(here: TestNode, prompt: str, tensor: Any, start_at: int) -> AsyncIterator[Any]:
        yield tensor

    named = {"a ü": np.arange(1 << 19, dtype=np.float64), "b": TENSOR}
    async with node(echo, authorizer=theirs.SignatureAuthorizer(SECRET)) as one, remote(one.address) as manager:
        session = Session(manager, SignatureAuthorizer(SECRET))
        [answer] = [output async for output in session.run_protocol_task("a prompt with ü", named)]
        assert all((answer[name] == value).all() for name, value in named.items())


async def test_signed_by_pairs_of_keys() -> None:
    ours, nodes = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = [key.public_key().public_bytes_raw().hex() for key in (ours, nodes)]
    authorizer = theirs.SignatureAuthorizer(nodes, public[:1])
    async with node(three, authorizer=authorizer) as one, remote(one.address) as manager:
        assert len(await outputs(Session(manager, SignatureAuthorizer(ours, public[1:])))) == 3
        with pytest.raises(AuthorizationRefused, match="trusted"):
            await outputs(Session(manager, SignatureAuthorizer(nodes, public)))
    with pytest.raises(ValueError, match="trusted"):
        SignatureAuthorizer(ours)


@pytest.mark.parametrize("authorizer", [None, SignatureAuthorizer("another secret, just as long")])
async def test_a_refused_authorisation_is_an_error_and_nobody_else_is_asked(authorizer: AuthorizerBase | None) -> None:
    ours = theirs.SignatureAuthorizer(SECRET)
    async with node(three, authorizer=ours) as one, node(three, authorizer=ours) as other:
        async with remote(one.address, other.address) as manager:
            with pytest.raises(AuthorizationRefused):
                await outputs(Session(manager, authorizer))
            assert (one.asked, other.asked) == ([], [])
            assert len(manager.make_sequence()) == 2
            assert sum(n.failures for n in manager.state.nodes.values()) == 0


async def test_a_node_that_is_not_trusted_gives_nothing_and_is_banned() -> None:
    class Lax(theirs.SignatureAuthorizer):
        """Answers whoever asks, with signatures of its own."""

        async def validate_request(self, request: Any) -> bool:
            return True

    async with node(three, authorizer=Lax("some other secret of theirs")) as false, node(three) as unsigned:
        for one in (false, unsigned):
            async with remote(one.address) as manager:
                got = []
                with pytest.raises(SignatureInvalid):
                    async for output in Session(manager, SignatureAuthorizer(SECRET)).run_protocol_task(
                        "p", TENSOR, max_retries=0
                    ):
                        got += [output]
                assert (got, manager.state.nodes[one.address].failures) == ([], 1)


async def test_chunks_cannot_be_changed_or_moved() -> None:
    ours = SignatureAuthorizer(SECRET)
    request, other = Frame("request", fields={"prompt": "p"}), Frame("request", fields={"prompt": "p"})
    for one in (request, other):
        await ours.sign_request(one)

    def chunk(seq: int, data: bytes, shape: list[int]) -> Frame:
        return Frame("tensor", seq, body=Tensor("U8", shape, data))

    signed = chunk(1, b"abcd", [4])
    await ours.sign_response(signed, request)
    assert await ours.validate_response(signed, request)
    assert not await ours.validate_response(signed, other)
    for changed in (chunk(2, b"abcd", [4]), chunk(1, b"abce", [4]), chunk(1, b"abcd", [2, 2]), Frame("end", 1)):
        changed.auth = signed.auth
        assert not await ours.validate_response(changed, request)


async def test_a_request_is_good_once_and_not_for_long() -> None:
    clock = Clock()
    ours, other = SignatureAuthorizer(SECRET, now=clock), SignatureAuthorizer(SECRET, now=clock)
    request = Frame("request", fields={"prompt": "p"})
    await ours.sign_request(request)
    assert await other.validate_request(request)
    with pytest.raises(Refused, match="before"):
        await other.validate_request(request)
    late = Frame("request", fields={"prompt": "p"})
    await ours.sign_request(late)
    clock.now += 61
    with pytest.raises(Refused, match="seconds ago"):
        await other.validate_request(late)
    moved = Frame("request", fields={"prompt": "q"}, auth=late.auth)
    with pytest.raises(Refused, match="trusted"):
        await other.validate_request(moved)


async def test_a_signed_request_is_for_one_node_only() -> None:
    ours = theirs.SignatureAuthorizer(SECRET)
    async with node(three, authorizer=ours, peer_id="a") as one, remote(one.address) as manager:
        await manager.update()
        manager.state.nodes[one.address].identity = "b"
        with pytest.raises(NodeFailed, match="for another node"):
            async for _ in Session(manager, SignatureAuthorizer(SECRET)).run_protocol_task("p", TENSOR, max_retries=0):
                pass


async def test_an_authorizer_that_fails_lets_nobody_in() -> None:
    class Broken(theirs.SignatureAuthorizer):
        async def validate_request(self, request: Any) -> bool:
            raise LookupError("the database is gone")

    async with node(three, authorizer=Broken(SECRET)) as one, remote(one.address) as manager:
        with pytest.raises(AuthorizationRefused, match="authorizer failed"):
            await outputs(Session(manager))
        assert "the database is gone" in one.said[0]


async def test_rates_are_kept_for_each_signer_and_say_when_there_is_room() -> None:
    clock = Clock()
    limited = theirs.RateLimitAuthorizer(theirs.SignatureAuthorizer(SECRET), requests=2, per_seconds=10, now=clock)
    async with node(three, authorizer=limited) as one, remote(one.address) as manager:
        session = Session(manager, RateLimitAuthorizer(SignatureAuthorizer(SECRET)))
        assert [len(await outputs(session)) for _ in range(2)] == [3, 3]
        with pytest.raises(RateLimited) as caught:
            await outputs(session)
        assert caught.value.retry_after == pytest.approx(5)
        clock.now += 5
        assert len(await outputs(session)) == 3
        assert len(manager.make_sequence()) == 1


async def test_a_rate_without_signatures_is_everybodys() -> None:
    limited = RateLimitAuthorizer(requests=1, per_seconds=60, now=Clock())
    assert await limited.validate_request(Frame("request", auth={"key": "one"}))
    with pytest.raises(Refused):
        await limited.validate_request(Frame("request", auth={"key": "another name, the same person"}))


# -- nodes that send anything --------------------------------------------------------------------------------------------
def frame(header: object, payload: bytes = b"", size: int | None = None) -> bytes:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!IQ", len(told), len(payload) if size is None else size) + told + payload


OPEN = frame({"kind": "open", "seq": 0})
RAW = {"kind": "tensor", "seq": 0, "format": "raw", "dtype": "F32", "shape": [2]}
LAYOUT = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
#: What is sent, and what is said about it.
SENT = {
    "nothing": (b"", "middle of a stream"),
    "no_end": (OPEN, "middle of a stream"),
    "half_a_frame": (OPEN[:-3], "ends within a frame"),
    "no_json": (frame(b"{]"), "not JSON"),
    "no_object": (frame([1]), "JSON object"),
    "a_deep_header": (frame(b"[" * 100_000), "not JSON"),
    "a_huge_header": (struct.pack("!IQ", 1 << 31, 0), "header has"),
    "a_huge_payload": (frame(RAW, size=1 << 60), "carries at most"),
    "more_bytes_than_its_shape": (OPEN + frame(RAW, b"x" * 9), "has 8 bytes, not 9"),
    "fewer_bytes_than_its_shape": (OPEN + frame(RAW, b"x" * 4), "has 8 bytes, not 4"),
    "a_shape_that_overflows": (OPEN + frame({**RAW, "shape": [1 << 62, 4]}, b"x" * 8), "bytes, not 8"),
    "a_shape_of_nothing_that_no_library_makes": (
        OPEN + frame({**RAW, "shape": [0, 1 << 62, 1 << 62]}),
        "No tensor has",
    ),
    "a_negative_shape": (OPEN + frame({**RAW, "shape": [-1, -2]}, b"x" * 8), "whole numbers"),
    "a_shape_of_words": (OPEN + frame({**RAW, "shape": ["2"]}, b"x" * 8), "whole numbers"),
    "too_many_dimensions": (OPEN + frame({**RAW, "shape": [1] * 17}, b"x" * 4), "dimensions"),
    "no_such_dtype": (OPEN + frame({**RAW, "dtype": "PICKLE"}, b"x" * 8), "no type of elements"),
    "no_such_format": (OPEN + frame({**RAW, "format": "pickle"}, b"x" * 8), "no format"),
    "a_payload_without_format": (OPEN + frame({"kind": "tensor", "seq": 0}, b"x"), "says its format"),
    "a_tensor_that_is_none": (OPEN + frame({"kind": "tensor", "seq": 0}), "none of a stream"),
    "an_output_left_out": (OPEN + frame({**RAW, "seq": 1}, b"x" * 8), "where 0 was due"),
    "an_output_twice": (OPEN + 2 * frame(RAW, b"x" * 8), "where 1 was due"),
    "an_end_too_early": (OPEN + frame({"kind": "end", "seq": 1}), "where 0 was due"),
    "no_beginning": (frame(RAW, b"x" * 8), "where 0 was due"),
    "two_beginnings": (OPEN + OPEN, "where 0 was due"),
    "another_kind": (OPEN + frame({"kind": "more", "seq": 0}), "none of a stream"),
    "safetensors_too_short": (OPEN + frame({**RAW, "format": "safetensors"}, b"x"), "too short"),
    "safetensors_with_a_huge_header": (
        OPEN + frame({**RAW, "format": "safetensors"}, struct.pack("<Q", 1 << 60) + b"x" * 8),
        "safetensors header",
    ),
    "safetensors_with_a_hole": (
        OPEN + frame({**RAW, "format": "safetensors"}, struct.pack("<Q", len(LAYOUT)) + LAYOUT + b"x" * 8),
        "take 4 bytes of a payload of 8",
    ),
    "safetensors_beyond_its_payload": (
        OPEN + frame({**RAW, "format": "safetensors"}, struct.pack("<Q", len(LAYOUT)) + LAYOUT),
        "outside",
    ),
}


@pytest.mark.parametrize("name", SENT)
async def test_what_is_no_stream_is_the_nodes_failure(name: str) -> None:
    sent, said = SENT[name]

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    async with hostile(answer) as address, remote(address) as manager:
        with pytest.raises(NodeFailed, match=said):
            async for _ in Session(manager).run_protocol_task("p", TENSOR, max_retries=0):
                pass
        assert manager.state.nodes[address].failures == 1


async def test_it_is_followed_by_a_good_node() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OPEN + frame({**RAW, "dtype": "PICKLE"}, b"x" * 8))

    async with hostile(answer) as address, node(three) as good, remote(address, good.address) as manager:
        await manager.update()
        manager.state.nodes[address].seconds = 0.0
        assert len(await outputs(Session(manager))) == 3
        assert manager.state.nodes[address].failures == 1
