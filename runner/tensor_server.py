"""Serves a user's generator as tensor streams over HTTP, in the container: `GET /health`, `GET /info`, `POST /stream`.

A request is one frame, its answer frames until the end: open, tensor..., end or error. Runs on the image's Python (3.8
or later), standard library only apart from what the application imports.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence

if __name__ == "__main__":  # `runner` is found, and none of its modules by a bare name that the application may use
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from runner.moorage_authorizers import AuthorizerBase, RateLimitAuthorizer, Refused, SignatureAuthorizer
from runner.moorage_tensors import CONTENT_TYPE, BadFrame, BadTensor, CutOff, Frame, Limits, TooLarge, read_frame
from runner.tensor_app import App, AppFailed, BadOutput, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.moorage_tensors import Body

HEAD_BYTES = 32 << 10
#: What is read ahead of a connection, twice this at most.
_READ_BYTES = 512 << 10
_HEAD_SECONDS = 15.0
_BODY_SECONDS = 300.0
#: Who takes nothing for so long is let go.
_STALL_SECONDS = 300.0
_LINGER_SECONDS = 2.0
_CLOSE_SECONDS = 15.0
_LINGER_BYTES = 64 << 20


class Refusal(Exception):
    """An answer instead of a stream."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        told: dict[str, Any] = {"code": self.code, "message": str(self)}
        if self.retry_after is not None:
            told["retry_after"] = round(self.retry_after, 3)
        return told


class Vanished(Exception):
    """Nobody reads the answer any more."""


class Server:
    """Any number of connections, one request each; at most `concurrency` streams at a time."""

    def __init__(
        self,
        app: App,
        *,
        peer_id: str,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        concurrency: int = 16,
        authorizer: AuthorizerBase | None = None,
        say: Callable[[str], object] = lambda text: print(text, file=sys.stderr, flush=True),
    ) -> None:
        self._app = app
        self._peer_id = peer_id
        self._limits = limits
        self._concurrency = concurrency
        self._authorizer = authorizer
        self._say = say
        self._active = 0
        self._served = 0
        self._server: asyncio.AbstractServer | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str, port: int) -> int:
        """The port that it listens on."""
        self._server = await asyncio.start_server(self._client, host, port, limit=_READ_BYTES, backlog=128)
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Nothing is taken any more, and what is open breaks off: its clients go on elsewhere."""
        if self._server is not None:
            self._server.close()
        for writer in self._open.values():
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        if self._open:
            await asyncio.wait(set(self._open), timeout=_CLOSE_SECONDS)

    def info(self) -> dict[str, Any]:
        return {
            "peer": self._peer_id,
            "load": {"active": self._active, "limit": self._concurrency, "served": self._served},
            "resume": self._app.resume,
            "most_bytes": self._limits.payload_bytes,
        }

    # -- one connection --------------------------------------------------------------------------------------------------
    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            await self._answer(reader, writer)
        except Refusal as refusal:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                writer.write(_plain(refusal.status, refusal.body()))
                await _linger(reader, writer)
        except (asyncio.TimeoutError, OSError, asyncio.IncompleteReadError, CutOff, Vanished):  # noqa: UP041 - until 3.11
            pass  # it has gone
        except Exception as error:
            self._say(f"a connection failed: {type(error).__name__}: {error}")
        finally:
            del self._open[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, headers = await _head(reader)
        if path in ("/health", "/info") and method in ("GET", "HEAD"):
            writer.write(_plain(200, self.info(), bodyless=method == "HEAD"))
            await writer.drain()
        elif path != "/stream":
            raise Refusal(404, "not_found", "There are /stream, /info and /health here.")
        elif method != "POST":
            raise Refusal(405, "method_not_allowed", "Streams are asked for by POST.")
        elif self._active >= self._concurrency:
            raise Refusal(503, "busy", f"All {self._concurrency} streams are in use; ask again shortly.", 1.0)
        else:
            self._active += 1
            try:
                request = await self._request(reader, writer, headers)
                await self._stream(request, reader, writer)
                self._served += 1
            finally:
                self._active -= 1

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> Frame:
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise Refusal(411, "length_required", "A request says its Content-Length.")
        if len(length) > 18 or int(length) > self._limits.payload_bytes + self._limits.header_bytes + 12:
            raise Refusal(413, TooLarge.code, f"At most {self._limits.payload_bytes} bytes are taken.")
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            frame = await asyncio.wait_for(read_frame(_Body(reader, int(length)), self._limits), _BODY_SECONDS)
        except CutOff as error:
            if reader.at_eof():
                raise
            raise Refusal(400, BadFrame.code, str(error)) from None
        except BadFrame as error:
            raise Refusal(413 if isinstance(error, TooLarge) else 400, error.code, str(error)) from None
        if frame is None or frame.kind != "request":
            raise Refusal(400, BadFrame.code, "The body of a request is one frame of kind 'request'.")
        return frame

    async def _checked(self, request: Frame) -> tuple[str, int]:
        """The prompt and the first output that is wanted, of a request that may be answered."""
        prompt, start_at = request.fields.get("prompt", ""), request.fields.get("start_at", 0)
        if not isinstance(prompt, str) or isinstance(start_at, bool) or not isinstance(start_at, int) or start_at < 0:
            raise Refusal(400, BadFrame.code, "A request has a text 'prompt' and a number 'start_at', from 0.")
        if request.fields.get("peer") not in (None, self._peer_id):
            raise Refusal(421, "wrong_peer", f"The request is for another node; this is {self._peer_id}.")
        if self._authorizer is not None:
            try:
                if not await self._authorizer.validate_request(request):
                    raise Refused("The request was not let through.")
            except Refused as refused:
                status = 429 if refused.code == "rate_limited" else 403
                raise Refusal(status, refused.code, str(refused), refused.retry_after) from None
            except Exception as error:
                self._say(f"the authorizer failed: {type(error).__name__}: {error}")
                raise Refusal(403, "authorization_refused", "The node's authorizer failed.") from None
        if start_at and self._app.resume == "none":
            raise Refusal(409, "cannot_resume", "The application cannot take a stream up where it broke off.")
        return prompt, start_at

    # -- one stream --------------------------------------------------------------------------------------------------------
    async def _stream(self, request: Frame, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        prompt, start_at = await self._checked(request)
        try:
            run = self._app.stream(prompt, request.body, start_at, self._limits.payload_bytes)
        except BadTensor as error:
            raise Refusal(400, error.code, str(error)) from None
        request.body, request._payload = None, None  # the application has it, and may let it go
        gone = asyncio.ensure_future(_gone(reader))
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nCache-Control: no-store\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        seq = start_at
        try:
            await self._send(writer, gone, Frame("open", seq, self.info()), request)
            while (output := await self._next(run, gone)) is not None:
                await self._send(writer, gone, Frame("tensor", seq, body=output), request)
                seq += 1
            await self._send(writer, gone, Frame("end", seq), request)
        except AppFailed as failed:
            self._say(failed.traceback.rstrip())
            told = {"ename": failed.ename, "evalue": failed.evalue, "traceback": failed.traceback}
            told.update(code="application_error", message=f"The application raised {failed}."[:4096])
            await self._send(writer, gone, Frame("error", seq, told), request)
        except BadOutput as error:
            self._say(f"output {seq}: {error}")
            await self._send(writer, gone, Frame("error", seq, {"code": "bad_output", "message": str(error)}), request)
        finally:
            gone.cancel()
            await run.close()

    async def _next(self, run: Run, gone: asyncio.Future[None]) -> Body:
        step = asyncio.ensure_future(run.next())
        both: set[asyncio.Future[Any]] = {step, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                raise Vanished
        finally:
            step.cancel()
        if step.cancelled():
            raise AppFailed(RuntimeError("The application cancelled itself."))
        return step.result()

    async def _send(
        self, writer: asyncio.StreamWriter, gone: asyncio.Future[None], frame: Frame, request: Frame
    ) -> None:
        """Until the client has taken most of it: nothing is made ahead."""
        if gone.done():
            raise Vanished
        if self._authorizer is not None:
            await self._authorizer.sign_response(frame, request)
        for part in frame.parts():
            writer.write(part)
        await asyncio.wait_for(writer.drain(), _STALL_SECONDS)


class _Body(asyncio.StreamReader):
    """The first `length` bytes of a connection."""

    def __init__(self, reader: asyncio.StreamReader, length: int) -> None:
        self._reader = reader
        self._left = length

    async def readexactly(self, n: int) -> bytes:
        if n > self._left:
            raise asyncio.IncompleteReadError(b"" if not self._left else b"?", n)
        self._left -= n
        return await self._reader.readexactly(n)

    async def read(self, n: int = -1) -> bytes:
        data = await self._reader.read(min(n, self._left))
        self._left -= len(data)
        return data


async def _gone(reader: asyncio.StreamReader) -> None:
    """Until the client closes; a client has nothing more to say."""
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    try:
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
    except asyncio.LimitOverrunError:
        raw = b""
    if not 0 < len(raw) <= HEAD_BYTES:
        raise Refusal(431, "request_too_large", "The head of the request is too large.")
    line, *rest = raw.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refusal(400, "invalid_request", "This is no HTTP/1.1.")
    headers = {}
    for one in filter(None, rest):
        name, colon, value = one.partition(":")
        if not colon or name != name.strip():
            raise Refusal(400, "invalid_request", "A header is NAME: VALUE.")
        if name.lower() in headers and name.lower() == "content-length":
            raise Refusal(400, "invalid_request", "There are two Content-Lengths.")
        headers[name.lower()] = value.strip()
    return words[0], words[1].partition("?")[0], headers


def _plain(status: int, told: dict[str, Any], *, bodyless: bool = False) -> bytes:
    body = json.dumps(told).encode() + b"\n"
    more = f"Retry-After: {max(1, round(told['retry_after']))}\r\n" if "retry_after" in told else ""
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if bodyless else body)


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What is under way is taken and dropped for a moment: a reset would overtake the answer."""
    writer.write_eof()

    async def drop() -> None:
        left = _LINGER_BYTES
        while left > 0 and (data := await reader.read(1 << 16)):
            left -= len(data)

    await asyncio.wait_for(drop(), _LINGER_SECONDS)


# -- the program -----------------------------------------------------------------------------------------------------------
def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tensor-stream", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("entry", metavar="MODULE:NAME", help="an async generator function, or a class with 'run'")
    parser.add_argument("--path", default=".", help="the folder of the module, which becomes the current one")
    parser.add_argument("--port", type=int, default=7070)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--concurrency", type=int, default=16, help="streams at a time; more are refused as busy")
    parser.add_argument(
        "--tensors",
        choices=("auto", "torch", "numpy", "raw"),
        default="auto",
        help="as what the application gets its input; auto: as what it has imported",
    )
    parser.add_argument("--most-mib", type=int, default=256, help="the largest tensor, either way")
    parser.add_argument("--secret-file", help="requests are signed with this secret, and answers as well")
    parser.add_argument("--rate", metavar="N/SECONDS", help="requests of one signer; of all, without a secret")
    parser.add_argument("--peer-id", help="what this node is called; the kernel's id otherwise")  # fmt: skip
    return parser.parse_args(argv)


def _authorizer(asked: argparse.Namespace) -> AuthorizerBase | None:
    found: AuthorizerBase | None = None
    if asked.secret_file:
        with open(asked.secret_file, "rb") as file:
            found = SignatureAuthorizer(file.read().strip())
    if asked.rate:
        requests, _, seconds = asked.rate.partition("/")
        found = RateLimitAuthorizer(found, requests=int(requests), per_seconds=float(seconds or 60))
    return found


def _kernel_id() -> str:
    from runner.moorage_session import context

    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(context["kernel_id"])
    return uuid.uuid4().hex


async def serve(asked: argparse.Namespace) -> int:
    """Until SIGTERM. It listens once the application has been set up."""
    app = App(asked.entry, path=asked.path, tensors=asked.tensors, concurrency=asked.concurrency)
    authorizer = _authorizer(asked)
    try:
        await app.start()
    except AppFailed as failed:
        print(failed.traceback, file=sys.stderr)
        print(f"tensor-stream: {asked.entry} cannot be served: {failed}", file=sys.stderr)
        return 1
    server = Server(
        app,
        peer_id=asked.peer_id or _kernel_id(),
        limits=Limits(payload_bytes=asked.most_mib << 20),
        concurrency=asked.concurrency,
        authorizer=authorizer or app.authorizer,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = await server.start(asked.host, asked.port)
    print(f"tensor-stream: {asked.entry} is served on port {port}", flush=True)
    await stop.wait()
    await server.close()
    await app.close()
    return 0


def main() -> None:
    asked = _arguments(sys.argv[1:])
    del sys.path[0]
    code = asyncio.run(serve(asked))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever threads the application has left


if __name__ == "__main__":
    main()
