"""HTTP with patience: safe retries, typed errors, streams that go on where they broke off."""

from __future__ import annotations

import json as jsonlib
import ssl
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx

from moorage import _wire
from moorage._errors import MoorageError, StreamBroken, StreamSilent, UnexpectedAnswer, Unreachable
from moorage._tls import tls_context
from moorage._version import USER_AGENT
from moorage.aio import _io
from moorage.config import Config

T = TypeVar("T")
Content = bytes | Callable[[], AsyncIterator[bytes]]
#: Streams that say nothing for so long are taken for dead, and resumed.
STREAM_SILENCE_SECONDS = 60.0
#: Before the first answer, an address at which nothing listens is most likely a wrong one.
FIRST_CONTACT_SECONDS = 1.0


class Transport:
    """One server, one caller, one connection pool."""

    def __init__(self, config: Config, *, timeout: float, retry_for: float, transport: Any = None) -> None:
        self.config = config
        self._timeout = timeout
        self._retry_for = retry_for
        self._given = transport
        self._client: httpx.AsyncClient | None = None
        self._had_contact = False
        self._lock = threading.Lock()  # of threads that share a client; never held while anything is waited for

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        content: Content | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        hold: float = 0.0,
    ) -> httpx.Response:
        """The whole answer. `hold`: seconds for which the server was asked to hold it.

        A mutation gets an Idempotency-Key (`key`, or a new one), so that it may be sent again when the connection
        breaks or the server is busy, and still happens once.
        """
        request = await self._build(method, path, params, json, content, headers, key)
        return await self._send(request, streamed=False, read_seconds=self._timeout + hold)

    async def get(self, path: str, /, **params: Any) -> Any:
        """The answer's JSON."""
        return decoded(await self.request("GET", path, params=_wire.query(**params)))

    async def pages(self, path: str, /, *, limit: int | None = None, **params: Any) -> AsyncGenerator[Any]:
        """The items of a list, page by page, at most `limit`."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = None if left is None else min(left, 1000)
            page = await self.get(path, cursor=cursor, limit=size, **params)
            items = page["items"] if isinstance(page, dict) and isinstance(page.get("items"), list) else None
            if items is None:
                raise UnexpectedAnswer(f"The server's list at {path} has no items.")
            for item in items[:left]:
                yield item
            cursor = page.get("next_cursor")
            if not cursor:
                return
            left = None if left is None else left - len(items)

    async def items(
        self, make: Callable[[Any], T], path: str, /, *, limit: int | None = None, **params: Any
    ) -> AsyncGenerator[T]:
        """The same, each as what `make` makes of it."""
        async with aclosing(self.pages(path, limit=limit, **params)) as found:
            async for item in found:
                yield make(item)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        read_seconds: float = STREAM_SILENCE_SECONDS,
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read by the caller. Opening is retried; reading is the caller's affair."""
        request = await self._build(method, path, params, json, None, headers, key)
        response = await self._send(request, streamed=True, read_seconds=read_seconds)
        try:
            yield response
        except httpx.ReadTimeout:
            raise StreamSilent("The server sent nothing more.") from None
        except httpx.TransportError as problem:
            what = str(problem) or type(problem).__name__
            raise StreamBroken(f"The connection to {self.config.endpoint} broke ({what}).") from problem
        finally:
            await response.aclose()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _build(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        json: Any,
        content: Content | None,
        headers: Mapping[str, str] | None,
        key: str | None,
    ) -> Callable[[], httpx.Request]:
        client = await self._opened()
        sent = dict(headers or {})
        if method not in ("GET", "HEAD"):
            sent["Idempotency-Key"] = key or str(uuid.uuid4())
        if json is not None:
            sent["Content-Type"] = "application/json"
            content = jsonlib.dumps(json, allow_nan=False, ensure_ascii=False).encode("utf-8", "surrogatepass")
        url = httpx.URL(self.config.endpoint + path, params=params) if params else self.config.endpoint + path

        def build() -> httpx.Request:
            return client.build_request(method, url, headers=sent, content=content() if callable(content) else content)

        return build

    async def _send(self, build: Callable[[], httpx.Request], *, streamed: bool, read_seconds: float) -> httpx.Response:
        client = await self._opened()
        started, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            retry_after: str | None = None
            limits = httpx.Timeout(self._timeout, connect=min(5.0, self._timeout), read=read_seconds)
            try:
                request = build()
                request.extensions["timeout"] = limits.as_dict()
                response = await client.send(request, stream=True)
                try:
                    if response.status_code < 400:
                        if not streamed:
                            await response.aread()
                        self._had_contact = True
                        return response
                    content = await response.aread()
                finally:
                    if not streamed or response.status_code >= 400:
                        await response.aclose()
                self._had_contact = True
                failure = _wire.error_from(response.status_code, content, response.headers)
                if not _wire.worth_retrying(failure):
                    raise failure
                retry_after = response.headers.get("retry-after")
                patience = self._retry_for
            except httpx.TransportError as problem:
                failure = self._unreachable(problem)
                patience = self.patience()
            pause = _wire.pause_seconds(attempt, retry_after)
            if time.monotonic() - started + pause > patience:
                raise failure
            await _io.sleep(pause)

    async def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            verify: ssl.SSLContext | bool = False
            if self.config.endpoint.startswith("https:"):
                verify = await _io.in_thread(tls_context, self.config)
            with self._lock:
                if self._client is None:
                    self._client = self._new_client(verify)
        return self._client

    def _new_client(self, verify: ssl.SSLContext | bool) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": self.config.authorization, "User-Agent": USER_AGENT},
            verify=verify,
            transport=self._given,
            trust_env=not self.config.is_local,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    def patience(self) -> float:
        """For how many seconds a server that does not answer is tried."""
        return self._retry_for if self._had_contact else min(self._retry_for, FIRST_CONTACT_SECONDS)

    def _unreachable(self, problem: httpx.TransportError) -> MoorageError:
        endpoint = self.config.endpoint
        if isinstance(problem, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(problem):
            return Unreachable(
                f"The certificate of {endpoint} is not trusted: name its CA (MOORAGE_CA), or its SHA-256 "
                "(MOORAGE_FINGERPRINT)."
            )
        if isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(
                f"Nothing answers at {endpoint}; is the server up ('moorage status'), is the address right?"
            )
        if isinstance(problem, httpx.TimeoutException):
            return Unreachable(f"The server at {endpoint} took the request and did not answer in time.")
        return Unreachable(f"The connection to {endpoint} broke ({problem or type(problem).__name__}).")


def decoded(response: httpx.Response) -> Any:
    """The answer's JSON."""
    try:
        return response.json()
    except ValueError:
        kind = response.headers.get("content-type", "no type")
        raise UnexpectedAnswer(f"The server's answer is not JSON but {kind}; is the endpoint right?") from None
