"""A server that answers as it is told, connection faults included: what a healthy one cannot be made to do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SESSION_ID = "3f2b8c52-60a5-4a9c-9d0a-1f3c8f1d2e11"
BASE = f"/v1/sessions/{SESSION_ID}"


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str | None:
        return self.headers.get("Idempotency-Key")


@dataclass
class ScriptedServer:
    """`on(method, path, *answers)`: each answer is given once, the last one for ever."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    _answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path] = list(answers)

    def asked(self, method: str, path: str) -> list[Seen]:
        return [request for request in self.seen if (request.method, request.path) == (method, path)]

    def forget(self) -> None:
        self.seen.clear()
        self._answers.clear()

    def until(self, method: str, path: str, what: Callable[[Seen], bool] = lambda request: True) -> None:
        """Wait for such a request."""
        with self._news:
            assert self._news.wait_for(lambda: any(map(what, self.asked(method, path))), 10), f"no {method} {path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.raw_path.partition("?")[0]
        with self._news:
            self.seen.append(Seen(request.method, path, dict(request.query), dict(request.headers), body))
            self._news.notify_all()
        if not (answers := self._answers.get((request.method, path))):
            return problem(404, "route_not_found", f"nothing is scripted for {request.method} {path}")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return await answer(request)

    def run(self, ready: threading.Event, stop: threading.Event) -> None:
        async def serve() -> None:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", self.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            ready.set()
            await asyncio.to_thread(stop.wait)
            await runner.cleanup()

        asyncio.run(serve())


# -- answers ------------------------------------------------------------------------------------------------------
def says(body: Any, status: int = 200, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def refuses(status: int, code: str, detail: str = "no", *, retry_after: str | None = None, **facts: Any) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        refusal = problem(status, code, detail, **facts)
        if retry_after is not None:
            refusal.headers["Retry-After"] = retry_after
        return refusal

    return answer


def problem(status: int, code: str, detail: str, **facts: Any) -> web.Response:
    fields = {"type": "about:blank", "title": detail, "status": status, "detail": detail, "code": code, **facts}
    headers = {"X-Request-Id": "req-1"}
    text = json.dumps(fields | {"request_id": "req-1"})
    return web.Response(text=text, status=status, content_type="application/problem+json", headers=headers)


async def drops(request: web.Request) -> web.StreamResponse:
    """Closes the connection without an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def lines(*records: dict[str, Any], then_drop: bool = False, torn: str = "") -> Answer:
    """NDJSON; `then_drop` breaks the connection instead of ending the body, after the half line `torn`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for record in records:
            await response.write(json.dumps(record).encode() + b"\n")
        if torn:
            await response.write(torn.encode())
        if then_drop:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def events(*found: tuple[str, str, dict[str, Any]], then_drop: bool = False) -> Answer:
    """Server-sent events: id, name, data."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event_id, name, data in found:
            await response.write(f": hello\nid: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
        if then_drop:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def piece(content: bytes, *, break_after: int | None = None, etag: str = '"1"') -> Answer:
    """A file, with Range; `break_after` so many bytes the connection breaks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        start = int(request.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in request.headers else 0
        part = content[start:]
        headers = {"Content-Length": str(len(part)), "ETag": etag}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        await response.write(part[:break_after])
        if break_after is not None:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def session(**changes: Any) -> dict[str, Any]:
    return {"id": SESSION_ID, "name": "demo", "status": "RUNNING", "image": "python", "version": 1, **changes}


def record(seq: int, text: str = "", kind: str = "stdout", **data: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"seq": seq, "kind": kind, "time": "2026-01-01T00:00:00Z"}
    return fields | ({"text": text} if kind in ("stdout", "stderr") else {"data": data})


def done(seq: int, exit_code: int = 0) -> dict[str, Any]:
    return record(seq, kind="done", exit_code=exit_code, signal=None, reason=None)


RUN = {"run_id": "r1", "kind": "run"}
