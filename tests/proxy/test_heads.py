"""Heads and bodies of HTTP messages, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.proxy.body import Body
from manager.proxy.heads import BadHead, Framing, request_head, response_head

CHUNKED = b"5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"


@given(st.lists(st.integers(1, len(CHUNKED)), max_size=8))
def test_chunks_end_where_they_end_however_they_arrive(cuts: list[int]) -> None:
    body, data, taken = Body(Framing(chunked=True)), CHUNKED + b"next", 0
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        if not body.done:
            taken += body.take(data[start:end])
    assert body.done
    assert taken == len(CHUNKED)


@pytest.mark.parametrize(
    "data", [b"x\r\n", b"-1\r\n", b"5\nhello", b"5\r\nhelloXX\r\n", b"1" * 5000, b"fffffffffffffffff\r\n"]
)
def test_malformed_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(BadHead):
        Body(Framing(chunked=True)).take(data)


def test_a_counted_body_takes_no_more_than_its_count() -> None:
    body = Body(Framing(length=3))
    assert (body.take(b"ab"), body.done, body.take(b"cd"), body.done) == (2, False, 1, True)


def test_what_a_connection_names_goes_no_further() -> None:
    head = request_head(
        b"Host: a\r\nConnection: Upgrade, X-Secret\r\nUpgrade: websocket\r\nX-Secret: 1\r\nA: b\r\n", True
    )
    assert (head.forward, head.upgrade) == (b"Host: a\r\nA: b\r\n", b"websocket")


def test_our_cookie_is_taken_out_and_others_stay() -> None:
    token = "t" * 43
    head = request_head(f"Host: a\r\nCookie: x=1; moorage_pass={token}; y=2\r\n".encode(), True)
    assert head.tokens == (token,)
    assert b"Cookie: x=1; y=2\r\n" in head.forward
    assert token.encode() not in head.forward


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (b"a=1", b"a=1; Path=/p/"),
        (b"a=1; Path=/; Domain=example.org; Secure", b"a=1; Path=/p/; Secure"),
        (b"a=1; path=/p/deep", b"a=1; Path=/p/deep"),
        (b"moorage_pass=x; Path=/", None),
    ],
)
def test_cookies_stay_below_their_service(cookie: bytes, expected: bytes | None) -> None:
    block = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: " + cookie + b"\r\n"
    _, head = response_head(block, b"GET", True, b"/p/", strip=True)
    found = [line for line in head.forward.split(b"\r\n") if line.startswith(b"Set-Cookie: ")]
    assert found == ([b"Set-Cookie: " + expected] if expected else [])


def test_redirections_stay_below_a_service_that_does_not_know_its_path() -> None:
    def where(target: bytes, *, strip: bool = True) -> bytes:
        block = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + target + b"\r\n"
        return (
            response_head(block, b"GET", True, b"/p/", strip=strip)[1]
            .forward.partition(b"Location: ")[2]
            .split(b"\r\n")[0]
        )

    assert [where(t) for t in (b"/x", b"x", b"/p/x", b"//h/x", b"http://h/x")] == [
        b"/p/x", b"x", b"/p/x", b"//h/x", b"http://h/x",
    ]  # fmt: skip
    assert where(b"/x", strip=False) == b"/x"
