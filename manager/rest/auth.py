"""Who sends a request: a bearer credential in the Authorization header, and nothing else."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from aiohttp.web_request import BaseRequest

from domain.errors import PermissionDenied, RateLimited, TooManyRequests, Unauthenticated
from domain.ids import AccessKey
from domain.principal import Principal

#: What keys and tokens are made of; anything else is not worth a look into the database.
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9_\-]{1,128}(?:\.[A-Za-z0-9_\-~+/=]{1,256})?")
#: One peer may be wrong so often, and is forgiven one every so many seconds.
FAILURE_BURST: Final = 30
FORGIVEN_EVERY_SECONDS: Final = 2.0
_MAX_PEERS: Final = 10_000
_MAX_PROVEN: Final = 10_000

_MAX_BUCKETS: Final = 10_000
#: Whoever shows no credential, at the few addresses that take none. It has no scope, so every action refuses it.
NOBODY: Final = Principal(user_id=UUID(int=0), access_key=AccessKey(""), domain="", scopes=frozenset())
Authenticate = Callable[[str], Awaitable[Principal | None]]


class Authenticator:
    """Checks credentials, and slows down peers that guess them."""

    def __init__(self, authenticate: Authenticate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._authenticate = authenticate
        self._clock = clock
        #: by peer: the time until which its failures are paid for
        self._debts: dict[str, float] = {}
        #: hashes of headers that were right once: they pass while their peer is being slowed down
        self._proven: set[int] = set()

    async def principal(self, request: BaseRequest) -> Principal:
        """Raises Unauthenticated, or TooManyRequests for a peer that has been wrong too often."""
        headers = request.headers.getall("Authorization", ())
        if not headers:
            raise Unauthenticated
        if len(headers) > 1:
            raise Unauthenticated("The request carries more than one Authorization header.")
        header = headers[0]
        peer = request.remote or "local"
        if peer in self._debts and hash(header) not in self._proven:
            self._refuse_guesser(peer)
        found = await self._of(header)
        if found is None:
            self._failed(peer)
            raise Unauthenticated("The credential is not valid; it may have expired or been disabled.")
        if len(self._proven) >= _MAX_PROVEN:
            self._proven.clear()
        self._proven.add(hash(header))
        return found

    async def still(self, request: BaseRequest, by: Principal) -> bool:
        """Whether what was opened on this word may stay open: the credential is good, and reaches as far as it did."""
        now = await self._of(request.headers.get("Authorization", ""))
        return now is not None and not now.lost(by)

    def check_peer(self, request: BaseRequest, proof: str) -> None:
        """For doors that look at other proofs: raises TooManyRequests for a peer that has been wrong too often."""
        peer = request.remote or "local"
        if peer in self._debts and hash((peer, proof)) not in self._proven:
            self._refuse_guesser(peer)

    def was_right(self, request: BaseRequest, proof: str) -> None:
        if len(self._proven) >= _MAX_PROVEN:
            self._proven.clear()
        self._proven.add(hash((request.remote or "local", proof)))

    def was_wrong(self, request: BaseRequest) -> None:
        self._failed(request.remote or "local")

    async def _of(self, header: str) -> Principal | None:
        scheme, _, credential = header.partition(" ")
        if scheme.lower() != "bearer" or not _CREDENTIAL.fullmatch(credential.strip()):
            return None
        return await self._authenticate(credential.strip())

    def _failed(self, peer: str) -> None:
        now = self._clock()
        if len(self._debts) >= _MAX_PEERS:
            self._debts = {name: until for name, until in self._debts.items() if until > now}
            if len(self._debts) >= _MAX_PEERS:
                self._debts.clear()
        self._debts[peer] = max(self._debts.get(peer, now), now) + FORGIVEN_EVERY_SECONDS

    def _refuse_guesser(self, peer: str) -> None:
        debt = self._debts[peer] - self._clock()
        if debt <= 0:
            del self._debts[peer]
        elif debt > (FAILURE_BURST - 1) * FORGIVEN_EVERY_SECONDS:
            seconds = max(1, round(debt - (FAILURE_BURST - 1) * FORGIVEN_EVERY_SECONDS))
            raise TooManyRequests("Too many wrong credentials came from this address; wait.", retry_after=seconds)


class Rates:
    """How often keypairs may ask, at this process: a bucket of two seconds' requests, at least one, that fills steadily."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: by access key: requests left, and when that was
        self._buckets: dict[str, tuple[float, float]] = {}

    def left(self, by: Principal) -> tuple[int, int] | None:
        """How many requests may come at once, and how many of these are left; None: any number."""
        if by.requests_per_second is None:
            return None
        size = max(1.0, 2.0 * by.requests_per_second)
        return int(size), int(self._buckets.get(by.access_key, (size, 0.0))[0])

    def take(self, by: Principal) -> None:
        """Raises RateLimited."""
        rate = by.requests_per_second
        if rate is None:
            return
        now, size = self._clock(), max(1.0, 2.0 * rate)
        left, at = self._buckets.get(by.access_key, (size, now))
        left = min(size, left + (now - at) * rate)
        if left < 1.0:
            seconds = math.ceil((1.0 - left) / rate)
            raise RateLimited(
                f"This keypair may send {rate:g} requests a second; come back in {seconds} s.",
                retry_after=seconds,
                requests_per_second=rate,
            )
        if len(self._buckets) >= _MAX_BUCKETS:
            self._buckets.clear()
        self._buckets[by.access_key] = (left - 1.0, now)


def check_origin(request: BaseRequest) -> None:
    """A browser page of another site must not open a WebSocket here with anything that the browser keeps."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        host = ""
    if not host or host.lower() != request.headers.get("Host", "").lower():
        raise PermissionDenied("WebSockets are not opened to pages of other sites.", origin=origin[:200])
