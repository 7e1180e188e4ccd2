"""Files straight from and to this host: an HTTPS listener of the agent's own, for bulk transfers that pass no manager.

Off unless `direct` is set. A manager asks for an address on its owner's behalf; the ticket in it is signed with a key that
never leaves this process, so that it ends with the process, and says whose files it opens, for how long, and whether they
may be written. Everything else is as ever: the runner opens the files, as the session's user.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import os
import re
import secrets
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

from aiohttp import web, web_protocol

from agent import pki
from agent.client import FileStat
from agent.config import host_and_port
from agent.rings import RunnerError
from agent.streams import CHUNK_BYTES, STALL_SECONDS
from domain.errors import (
    Internal,
    InvalidPath,
    InvalidRequest,
    MethodNotAllowed,
    MoorageError,
    PermissionDenied,
    RangeNotSatisfiable,
    RouteNotFound,
    TooManyRequests,
    TransferFailed,
    Unauthenticated,
    from_code,
)

log = logging.getLogger("moorage.agent.direct")

#: Between the ticket and the beginning of a transfer; one that has begun goes on.
TICKET_SECONDS: Final = 300.0
_HEADER_SECONDS: Final = 15.0
_MOST_TRANSFERS: Final = 16
_MOST_OF_A_KERNEL: Final = 6
_MOST_CONNECTIONS: Final = 256
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_FILES: Final = "/files/"
_COMMON: Final = {"Server": "moorage", "Cache-Control": "no-store", "Connection": "close"}


class Link(Protocol):
    """What a transfer needs of a runner."""

    async def open_file(self, path: str) -> tuple[int, FileStat]: ...
    async def put_file(
        self, path: str, source: AsyncIterator[bytes], *, size: int | None, mode: int | None, overwrite: bool,
        sha256: str | None,
    ) -> FileStat: ...  # fmt: skip
    async def archive(self, paths: list[str]) -> Any: ...


class Sessions(Protocol):
    """The host's kernels, as far as files go. Both raise the domain's errors for one that does not run."""

    async def files_of(self, kernel_id: str, attempt: int) -> Link: ...
    def still_runs(self, kernel_id: str, attempt: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    kernel_id: str
    attempt: int
    write: bool
    by: str  #: for the log
    expires_at: float


class Tickets:
    """Signs tickets, and reads them again."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)

    def sign(self, ticket: Ticket) -> str:
        said = _text(json.dumps(asdict(ticket)).encode())
        return f"{said}.{_text(self._seal(said))}"

    def read(self, header: str | None) -> Ticket:
        """Raises Unauthenticated for what was not signed here, or is too old."""
        kind, _, token = (header or "").partition(" ")
        said, _, seal = token.strip().partition(".")
        try:
            genuine = kind.lower() == "bearer" and hmac.compare_digest(_bytes(seal), self._seal(said))
        except (ValueError, binascii.Error):
            genuine = False
        if not genuine:
            raise Unauthenticated("This is no ticket of this host's; ask for a new direct address.")
        ticket = Ticket(**json.loads(_bytes(said)))
        if ticket.expires_at <= self._now():
            raise Unauthenticated("The ticket is too old; ask for a new direct address.")
        return ticket

    def _seal(self, said: str) -> bytes:
        return hmac.digest(self._key, said.encode(), "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


class _Connection(web_protocol.RequestHandler):
    """One request, which has come before long."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._manager.connections if self._manager else ()) > _MOST_CONNECTIONS:
            self.force_close()
            return
        self._loop.call_later(_HEADER_SECONDS, self._look)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """For what was no request, or failed beyond our errors; an answer that has begun breaks off."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status == 400:
            response = _problem(InvalidRequest("This is not a valid HTTP request."))
        else:
            log.error("a request failed", exc_info=exc)
            response = _problem(Internal())
        response.headers.update(_COMMON)
        response.force_close()
        return response

    def _look(self) -> None:
        if not self._request_count:
            self.force_close()


class _Server(web.Server):
    def __call__(self) -> web_protocol.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class DirectFiles:
    """The listener. `grant` makes an address of it."""

    def __init__(self, sessions: Sessions, listen: str, address: str | None, folder: Path, now: Callable[[], float]):
        self._sessions = sessions
        self._host, self._port = host_and_port(listen)
        self._address = address if self._host in ("0.0.0.0", "::", "*") else self._host  # noqa: S104 - compared only
        self._folder = folder
        self._now = now
        self._tickets = Tickets(now)
        self._moving: Counter[str] = Counter()
        self._server: _Server | None = None
        self._listening: asyncio.Server | None = None
        self._certificate = ""
        self.url = ""

    async def start(self) -> None:
        """Raises OSError when it cannot listen."""
        if self._address is None:
            raise OSError("the host has no address to tell; set 'address' in agent.toml")
        self._certificate, file = await asyncio.to_thread(pki.make_direct, self._folder, self._address)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_cert_chain(file)
        self._server = _Server(
            self._answer, access_log=None, read_bufsize=CHUNK_BYTES, max_line_size=8190, max_field_size=8190,
            auto_decompress=False,
        )  # fmt: skip
        self._listening = await asyncio.get_running_loop().create_server(
            self._server, None if self._host == "*" else self._host, self._port, ssl=tls, ssl_handshake_timeout=10.0
        )
        port = self._listening.sockets[0].getsockname()[1]
        self.url = f"https://{f'[{self._address}]' if ':' in self._address else self._address}:{port}"

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        if self._server is not None:
            await self._server.shutdown(2.0)

    def grant(self, kernel_id: str, attempt: int, *, write: bool, by: str) -> dict[str, Any]:
        expires_at = self._now() + TICKET_SECONDS
        ticket = Ticket(kernel_id=kernel_id, attempt=attempt, write=write, by=by, expires_at=expires_at)
        return {
            "url": self.url,
            "token": self._tickets.sign(ticket),
            "certificate": self._certificate,
            "write": write,
            "expires_at": expires_at,
        }

    # -- requests ------------------------------------------------------------------------------------------------------
    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._serve(request)
        except RunnerError as error:
            response = _problem(from_code(error.code, error.message))
        except MoorageError as error:
            response = _problem(error)
        response.force_close()
        if not response.prepared:
            response.headers.update(_COMMON)
        return response

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        ticket = self._tickets.read(request.headers.get("Authorization"))
        path = request.rel_url.raw_path
        serve: Callable[[web.BaseRequest, Ticket, Link], Awaitable[web.StreamResponse]]
        match request.method:
            case "PUT" if path.startswith(_FILES):
                if not ticket.write:
                    raise PermissionDenied("This ticket is for reading only.")
                serve = self._upload
            case "GET" | "HEAD" if path.startswith(_FILES):
                serve = self._download
            case "GET" if path == "/archive":
                serve = self._archive
            case _ if path.startswith(_FILES) or path == "/archive":
                raise MethodNotAllowed("Files are read with GET and HEAD and written with PUT, an archive with GET.")
            case _:
                raise RouteNotFound("There are /files/PATH and /archive here, and nothing else.")
        with self._counted(ticket):
            return await serve(request, ticket, await self._sessions.files_of(ticket.kernel_id, ticket.attempt))

    @contextlib.contextmanager
    def _counted(self, ticket: Ticket) -> Iterator[None]:
        if self._moving.total() >= _MOST_TRANSFERS or self._moving[ticket.kernel_id] >= _MOST_OF_A_KERNEL:
            raise TooManyRequests("The host has as many direct transfers as it takes; come back shortly.")
        self._moving[ticket.kernel_id] += 1
        try:
            yield
        finally:
            self._moving[ticket.kernel_id] -= 1
            if not self._moving[ticket.kernel_id]:
                del self._moving[ticket.kernel_id]

    def _note(self, ticket: Ticket, what: str, path: str, count: int) -> None:
        log.info("%s of kernel %s for %s: %r, %d bytes", what, ticket.kernel_id, ticket.by, path, count)

    async def _upload(self, request: web.BaseRequest, ticket: Ticket, link: Link) -> web.StreamResponse:
        path, mode = _path(request), _query(request, "mode").get("mode")
        if "Content-Range" in request.headers or "Content-Encoding" in request.headers:
            raise InvalidRequest("A file is written whole and as it is: no Content-Range and no Content-Encoding.")
        if mode is not None and not re.fullmatch("[0-7]{3,4}", mode):
            raise InvalidRequest("'mode' is octal, such as 644.", field="mode")
        sha256, only_new = request.headers.get("X-Content-Sha256"), request.headers.get("If-None-Match")
        if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise InvalidRequest("X-Content-Sha256 has 64 hexadecimal digits.", field="X-Content-Sha256")
        if only_new not in (None, "*"):
            raise InvalidRequest("If-None-Match of an upload is '*': the file must not be there yet.")
        expect = request.headers.get("Expect")
        if expect is not None and expect.lower() != "100-continue":
            raise InvalidRequest(f"The expectation '{expect[:80]}' cannot be met.")
        if expect is not None:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        stat = await link.put_file(
            path,
            self._body(request, ticket),
            size=request.content_length if request.body_exists else 0,
            mode=int(mode, 8) if mode is not None else None,
            overwrite=only_new is None,
            sha256=None if sha256 is None else sha256.lower(),
        )
        self._note(ticket, "upload", path, stat.size)
        return web.json_response(asdict(stat), status=200 if only_new is None else 201)

    async def _body(self, request: web.BaseRequest, ticket: Ticket) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    piece = await request.content.readany()
            except (OSError, TimeoutError, web.RequestPayloadError):
                raise TransferFailed("The transfer broke off and nothing was kept; repeat it.") from None
            if not piece:
                return
            self._sessions.still_runs(ticket.kernel_id, ticket.attempt)
            yield piece

    async def _download(self, request: web.BaseRequest, ticket: Ticket, link: Link) -> web.StreamResponse:
        path = _path(request)
        _query(request)
        fd, stat = await link.open_file(path)
        try:
            etag = f'"{stat.size:x}-{int(stat.mtime * 1_000_000):x}"'
            first, count = 0, stat.size
            headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag, **_COMMON}
            wanted = request.headers.get("Range") if request.headers.get("If-Range", etag) == etag else None
            part = part_of(wanted, stat.size) if request.method == "GET" else None
            if part is not None:
                first, count = part
                headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{stat.size}"
            response = web.StreamResponse(status=206 if part is not None else 200, headers=headers)
            response.content_length = count
            await response.prepare(request)
            if request.method == "GET":
                with self._cutting(request):
                    await self._send(response, fd, first, count, ticket)
                self._note(ticket, "download", path, count)
            await response.write_eof()
            return response
        finally:
            os.close(fd)

    async def _send(self, response: web.StreamResponse, fd: int, at: int, count: int, ticket: Ticket) -> None:
        end = at + count
        while at < end:
            piece = await asyncio.shield(asyncio.to_thread(os.pread, fd, min(CHUNK_BYTES, end - at), at))
            if not piece:
                raise TransferFailed("The file became shorter while it was read.")
            self._sessions.still_runs(ticket.kernel_id, ticket.attempt)
            async with asyncio.timeout(STALL_SECONDS):
                await response.write(piece)
            at += len(piece)

    async def _archive(self, request: web.BaseRequest, ticket: Ticket, link: Link) -> web.StreamResponse:
        if unknown := request.query.keys() - {"path"}:
            raise InvalidRequest(f"There is no '{min(unknown)[:80]}' here.", field=min(unknown)[:80])
        paths = request.query.getall("path", [])
        if not 0 < len(paths) <= 1000:
            raise InvalidRequest("Name the files and folders: /archive?path=FOLDER, up to 1000 of them.", field="path")
        archive = await link.archive(paths)
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/x-tar", **_COMMON})
            await response.prepare(request)
            sent = 0
            with self._cutting(request):
                async for piece in archive:
                    self._sessions.still_runs(ticket.kernel_id, ticket.attempt)
                    async with asyncio.timeout(STALL_SECONDS):
                        await response.write(piece)
                    sent += len(piece)
            await response.write_eof()
            self._note(ticket, "archive", " ".join(paths)[:200], sent)
            return response
        finally:
            await archive.aclose()

    @contextlib.contextmanager
    def _cutting(self, request: web.BaseRequest) -> Iterator[None]:
        """What fails after an answer has begun is seen by the other side as a connection that breaks."""
        try:
            yield
        except (MoorageError, RunnerError, OSError, TimeoutError) as error:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(str(error)) from None


def part_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Where a range begins, and its length; None for none, and for what a server may overlook."""
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        first = size - count
    else:
        first, last = int(match[1]), int(match[2]) if match[2] else size - 1
        if match[2] and last < first:
            return None
        count = min(last + 1, size) - first
    if count <= 0:
        raise RangeNotSatisfiable(f"The file has {size} bytes; the range lies outside.", size=size)
    return first, count


def _path(request: web.BaseRequest) -> str:
    try:
        path = unquote(request.rel_url.raw_path.removeprefix(_FILES), errors="strict")
    except UnicodeDecodeError:
        raise InvalidPath("A path is UTF-8.") from None
    if not path or len(path) > 4096 or "\0" in path or ".." in path.split("/"):
        raise InvalidPath("A path has up to 4096 characters, no NUL, and no '..' in it.")
    return path


def _query(request: web.BaseRequest, *known: str) -> dict[str, str]:
    for name in request.query:
        if name not in known or len(request.query.getall(name)) > 1:
            raise InvalidRequest(f"There is no '{name[:80]}' here, or it is said twice.", field=name[:80])
    return dict(request.query)


def _problem(error: MoorageError) -> web.StreamResponse:
    headers = {"Retry-After": "1"} if isinstance(error, TooManyRequests) else {}
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.facts.get('size', '*')}"
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        "type": f"/docs#{error.code}",
        "title": HTTPStatus(error.http_status).phrase,
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
    }
    return web.json_response(body, status=error.http_status, headers=headers, content_type="application/problem+json")
