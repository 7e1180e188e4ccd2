"""Heads of HTTP/1 messages: read strictly, and rewritten for the other side. What is doubtful is refused, never guessed.

Heads repeat from request to request, so those that were read are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

#: The cookie that holds a pass. Neither services nor their pages get to see it.
COOKIE: Final = b"moorage_pass"
MAX_HEAD_BYTES: Final = 64 << 10
_MOST_FIELDS: Final = 200
_REQUEST: Final = re.compile(rb"([A-Z]{1,24}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\x00]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")
#: For this connection only, or said by whoever stands between.
_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"http2-settings",
        b"transfer-encoding", b"content-length",
    }
)  # fmt: skip
_STRIPPED: Final = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"forwarded",
        b"x-real-ip",
        b"via",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
#: What one service could do to the others of its origin.
_KEPT_BACK: Final = frozenset(
    {
        b"service-worker-allowed", b"clear-site-data", b"strict-transport-security", b"proxy-authenticate", b"alt-svc",
        b"set-cookie2",
    }
)  # fmt: skip


class BadHead(Exception):
    """Not a message that could be passed on; `status` is the answer to it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Framing:
    """How long the body is: `length` bytes, chunks, or (of a response) up to the end of the connection."""

    length: int = 0
    chunked: bool = False
    until_close: bool = False

    @property
    def line(self) -> bytes:
        return b"Transfer-Encoding: chunked\r\n" if self.chunked else b""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The fields of a request, without its first line."""

    forward: bytes  #: what is passed on, each line with its end
    framing: Framing
    tokens: tuple[str, ...]  #: passes that it shows
    host: bytes
    origin: bytes | None
    upgrade: bytes | None  #: to which protocol, if to any
    close: bool  #: the connection ends after this
    cross_site: bool  #: a page of another site sent it, and it is no navigation
    prefetch: bool
    wants_html: bool
    wants_json: bool


@dataclass(frozen=True, slots=True)
class ResponseHead:
    forward: bytes
    framing: Framing | None  #: None: by the status, there is no body
    close: bool
    upgrade: bytes | None


def request_line(line: bytes) -> tuple[bytes, bytes, bool]:
    """Method, target, and whether it is HTTP/1.1."""
    match = _REQUEST.fullmatch(line)
    if match is None:
        raise BadHead("This is no request of HTTP/1.")
    method, target, minor = match.groups()
    return method, target, minor == b"1"


@lru_cache(maxsize=2048)
def request_head(block: bytes, http11: bool) -> RequestHead:
    """The fields of a request. Raises BadHead for anything that two programs could read in two ways."""
    lines: list[bytes] = []
    seen: dict[bytes, list[bytes]] = {}
    for name, value, line in _fields(block):
        seen.setdefault(name, []).append(value)
        if name not in _HOP and name not in _STRIPPED and not name.startswith((b"x-forwarded-", b"x-moorage-")):
            lines.append(line)
    hosts = seen.get(b"host", [])
    if len(hosts) != 1 or not re.fullmatch(rb"[A-Za-z0-9.:\[\]_-]{1,255}", hosts[0]):
        raise BadHead("A request names its host, once.")
    named = _listed(seen.get(b"connection", []))
    lines = [line for line in lines if line.partition(b":")[0].lower() not in named]
    cookies, tokens = _cookies(seen.get(b"cookie", []))
    if cookies:
        lines.append(b"Cookie: " + b"; ".join(cookies) + b"\r\n")
    framing = _framing(seen, http11=http11)
    if framing.length or b"content-length" in seen:
        lines.append(b"Content-Length: %d\r\n" % framing.length)
    lines.append(framing.line)
    upgrade = seen.get(b"upgrade", [b""])[0].lower() if b"upgrade" in named else b""
    for value in seen.get(b"authorization", []):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer" and re.fullmatch(rb"[A-Za-z0-9_-]{20,64}", token.strip()):
            tokens.append(token.strip().decode())
    accept = b",".join(seen.get(b"accept", []))
    site, mode = seen.get(b"sec-fetch-site", [b""])[0], seen.get(b"sec-fetch-mode", [b""])[0]
    return RequestHead(
        forward=b"".join(lines),
        framing=framing,
        tokens=tuple(tokens[:8]),
        host=hosts[0],
        origin=seen.get(b"origin", [None])[0],
        upgrade=upgrade or None,
        close=b"close" in named or (not http11 and b"keep-alive" not in named),
        cross_site=site == b"cross-site" and mode != b"navigate",
        prefetch=b"prefetch" in b"".join(seen.get(b"sec-purpose", []) + seen.get(b"purpose", [])),
        wants_html=b"text/html" in accept,
        wants_json=b"application/json" in accept,
    )


def response_head(block: bytes, method: bytes, http11: bool, prefix: bytes, *, strip: bool) -> tuple[int, ResponseHead]:
    """Status and fields of a response, cookies and redirections kept below `prefix`."""
    line, _, fields = block.partition(b"\r\n")
    match = _STATUS.fullmatch(line)
    if match is None:
        raise BadHead("The service does not answer in HTTP/1.")
    status = int(match[2])
    lowered = fields.lower()
    if b"set-cookie" in lowered or b"\nlocation" in b"\n" + lowered:
        return status, _response(line, fields, status, method, http11, prefix, strip)
    return status, _plain_response(line, fields, status, method, http11)


@lru_cache(maxsize=2048)
def _plain_response(line: bytes, fields: bytes, status: int, method: bytes, http11: bool) -> ResponseHead:
    return _response(line, fields, status, method, http11, b"", False)


def _response(
    line: bytes, fields: bytes, status: int, method: bytes, http11: bool, prefix: bytes, strip: bool
) -> ResponseHead:
    lines = [b"HTTP/1.1 " + line.split(b" ", 1)[1] + b"\r\n"]
    seen: dict[bytes, list[bytes]] = {}
    for name, value, raw in _fields(fields):
        seen.setdefault(name, []).append(value)
        if name in _HOP or name in _KEPT_BACK or name.startswith(b"x-moorage-"):
            continue
        if name == b"set-cookie":
            if (cookie := _scoped(value, prefix)) is not None:
                lines.append(b"Set-Cookie: " + cookie + b"\r\n")
        elif name == b"location":
            lines.append(b"Location: " + (_located(value, prefix) if strip else value) + b"\r\n")
        else:
            lines.append(raw)
    named = _listed(seen.get(b"connection", []))
    lines = [lines[0], *(one for one in lines[1:] if one.partition(b":")[0].lower() not in named)]
    close = b"close" in named or (line.startswith(b"HTTP/1.0") and b"keep-alive" not in named)
    upgrade = seen.get(b"upgrade", [b""])[0] if status == 101 else b""
    bodiless = method == b"HEAD" or status < 200 or status in (204, 304)
    framing: Framing | None = None
    if bodiless:
        if method == b"HEAD" or status == 304:
            lines += [b"Content-Length: " + value + b"\r\n" for value in seen.get(b"content-length", [])[:1]]
    else:
        framing = _framing(seen, http11=True, response=True)
        if b"content-length" in seen and not framing.chunked:
            lines.append(b"Content-Length: %d\r\n" % framing.length)
        lines.append(framing.line)
    return ResponseHead(b"".join(lines), framing, close or bool(framing and framing.until_close), upgrade or None)


def _fields(block: bytes) -> list[tuple[bytes, bytes, bytes]]:
    found = []
    for line in block.split(b"\r\n"):
        if not line:
            continue
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadHead("A header field is malformed.")
        found.append((match[1].lower(), match[2].rstrip(b" \t"), line + b"\r\n"))
    if len(found) > _MOST_FIELDS:
        raise BadHead("There are too many header fields.", 431)
    return found


def _listed(values: list[bytes]) -> set[bytes]:
    return {word.strip().lower() for value in values for word in value.split(b",")} - {b""}


def _framing(seen: dict[bytes, list[bytes]], *, http11: bool, response: bool = False) -> Framing:
    codings, lengths = seen.get(b"transfer-encoding", []), seen.get(b"content-length", [])
    if codings:
        if lengths or len(codings) != 1 or codings[0].lower() != b"chunked" or not http11:
            raise BadHead("The length of the body is said in two ways, or in one that is not known.")
        return Framing(chunked=True)
    if lengths:
        if len(set(lengths)) != 1 or not _NUMBER.fullmatch(lengths[0]):
            raise BadHead("The length of the body is not a number.")
        return Framing(length=int(lengths[0]))
    return Framing(until_close=response)


def _cookies(values: list[bytes]) -> tuple[list[bytes], list[str]]:
    """The service's own cookies, and the passes among them."""
    others, tokens = [], []
    for cookie in (part.strip() for value in values for part in value.split(b";")):
        name, _, content = cookie.partition(b"=")
        if name.strip() == COOKIE:
            if re.fullmatch(rb"[A-Za-z0-9_-]{20,64}", content):
                tokens.append(content.decode())
        elif cookie:
            others.append(cookie)
    return others, tokens


def _scoped(cookie: bytes, prefix: bytes) -> bytes | None:
    """A service's cookie, for its own path and nothing else; None for one that bears our name."""
    pair, *attributes = cookie.split(b";")
    if pair.partition(b"=")[0].strip().lower() == COOKIE:
        return None
    path = prefix
    kept = []
    for attribute in attributes:
        name, _, value = attribute.strip().partition(b"=")
        if name.lower() == b"path":
            path = value if value.startswith(prefix) else prefix
        elif name and name.lower() != b"domain":
            kept.append(attribute.strip())
    return b"; ".join([pair.strip(), b"Path=" + path, *kept])


def _located(target: bytes, prefix: bytes) -> bytes:
    """A redirection within a service that does not know its path."""
    if target.startswith(b"/") and not target.startswith((b"//", prefix)):
        return prefix + target[1:]
    return target


forget: Final[Callable[[], None]] = request_head.cache_clear
