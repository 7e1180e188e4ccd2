"""Tells sessions' callback_url what happens to them: signed, in order, again and again until somebody has it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Final
from uuid import UUID

import aiohttp
from yarl import URL

from domain.errors import MoorageError
from manager.egress import Egress, Forbidden, Pinned
from manager.herald import Herald
from manager.loop import Loop
from manager.vault import Vault
from repositories.database import Database
from repositories.upkeep import lead
from repositories.webhook import (
    Delivery,
    claim,
    hosts_of_ours,
    next_try,
    queue_events,
    record,
    sealed_secrets,
    secret_about,
)

#: Of an answer so much is read, and nothing is made of it but its status.
_MOST_ANSWER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    timeout_seconds: float = 10.0  #: for one try, from the look-up of the host to the answer
    most_tries: int = 12
    first_pause_seconds: float = 2.0  #: twice as long before each further try
    most_pause_seconds: float = 3600.0
    most_age_seconds: float = 86400.0  #: after that it is given up
    lease_seconds: float = 30.0
    most_at_once: int = 32
    egress: Egress = field(default_factory=Egress)


class Callbacks(Loop):
    """Makes deliveries of events. One manager at a time, under a row lock that guards the place in the order of events."""

    name: ClassVar[str] = "callbacks"
    gather_seconds: ClassVar[float] = 0.02

    def __init__(self, database: Database, herald: Herald, *, clock: Callable[[], datetime]) -> None:
        super().__init__()
        self._database = database
        self._herald = herald
        self._clock = clock

    async def step(self) -> float | None:
        async with self._database.transaction("control.callbacks") as connection:
            if not await lead(connection, "callbacks"):
                return None
            made, more = await queue_events(connection, now=self._clock())
        if made:
            self._herald.announce("webhooks")
        return 0.0 if more else None


class Webhooks(Loop):
    """Makes the deliveries. Any number of managers share them by leases; what one leaves behind, another takes over."""

    name: ClassVar[str] = "webhooks"

    def __init__(
        self,
        database: Database,
        *,
        manager_id: UUID,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        vault: Vault | None,
        settings: WebhookSettings | None = None,
    ) -> None:
        super().__init__()
        self._database = database
        self._manager_id = manager_id
        self._clock = clock
        self._jitter = jitter
        self._vault = vault
        self._settings = settings or WebhookSettings()
        self._under_way: set[asyncio.Task[None]] = set()

    async def step(self) -> float | None:
        settings = self._settings
        room = settings.most_at_once - len(self._under_way)
        if self._vault is None or room <= 0:
            return None
        now = self._clock()
        async with self._database.reader() as connection:
            found = await claim(connection, self._manager_id, now=now, lease_seconds=settings.lease_seconds, limit=room)
            sealed = await sealed_secrets(connection, list({one.user_id for one in found})) if found else {}
            ours = await hosts_of_ours(connection) if found else frozenset()
            due_at = None if found else await next_try(connection)
        for delivery in found:
            work = self._deliver(delivery, sealed.get(delivery.user_id), ours)
            task = asyncio.create_task(work, name=f"webhook {delivery.id}")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if found:
            return 0.0
        return None if due_at is None else max(0.0, (due_at - now).total_seconds())

    async def settle(self) -> None:
        """Wait for what is under way. For tests."""
        await asyncio.gather(*self._under_way)

    async def close(self) -> None:
        """What is under way is given up here; its lease ends, and another manager tries again."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _deliver(self, delivery: Delivery, sealed: bytes | None, ours: frozenset[str]) -> None:
        assert self._vault is not None
        status: int | None = None
        error: str | None = None
        again = True
        try:
            if sealed is None:
                raise Forbidden("its owner has no secret to sign with any more")
            secret = self._vault.open(sealed, secret_about(delivery.user_id))
            status = await self._post(delivery, secret, ours)
            if not 200 <= status < 300:
                error = f"the receiver answered {status}" + (
                    " (redirects are not followed)" if 300 <= status < 400 else ""
                )
                again = status != 410  # Gone: it wants no more of this
        except Forbidden as refused:
            error = str(refused)
        except TimeoutError:
            error = f"no answer within {self._settings.timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            error = f"{type(failed).__name__}: {failed}"[:300]
        except MoorageError as failed:
            error = failed.message
        with suppress(MoorageError):  # else its lease ends, and it is tried again
            await self._record(delivery, status, error, again)
        self.wake()

    async def _post(self, delivery: Delivery, secret: str, ours: frozenset[str]) -> int:
        url = URL(delivery.url, encoded=True)  # what is looked up is what the client will read of it
        async with asyncio.timeout(self._settings.timeout_seconds):
            address = await self._settings.egress.resolve(url.host or "", url.port or 443, ours=ours)
            connector = aiohttp.TCPConnector(resolver=Pinned(address), use_dns_cache=False, force_close=True)
            async with (
                aiohttp.ClientSession(
                    connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
                ) as http,
                http.post(
                    url,
                    data=delivery.body.encode(),
                    headers=headers(delivery, secret, at=self._clock()),
                    allow_redirects=False,
                ) as answer,
            ):
                await answer.content.read(_MOST_ANSWER_BYTES)
                return answer.status

    async def _record(self, delivery: Delivery, status: int | None, error: str | None, again: bool) -> None:
        settings, now = self._settings, self._clock()
        pause = min(settings.first_pause_seconds * 2 ** min(delivery.tries - 1, 30), settings.most_pause_seconds)
        at = now + timedelta(seconds=pause * (0.75 + 0.5 * self._jitter()))
        last = delivery.tries >= settings.most_tries or at > delivery.created_at + timedelta(
            seconds=settings.most_age_seconds
        )
        state = "delivered" if error is None else "failed" if last or not again else "queued"
        async with self._database.reader() as connection:
            await record(
                connection,
                delivery,
                self._manager_id,
                status=state,
                http_status=status,
                error=error,
                next_try_at=at,
                now=now,
            )


def headers(delivery: Delivery, secret: str, *, at: datetime) -> Mapping[str, str]:
    """What a receiver checks: the signature is over the time, a dot and the body (docs/sessions.md)."""
    timestamp = str(int(at.timestamp()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "Moorage-Webhook/1",
        "Moorage-Event": delivery.type,
        "Moorage-Delivery": str(delivery.id),
        "Moorage-Timestamp": timestamp,
        "Moorage-Signature": f"v1={sign(secret, timestamp, delivery.body)}",
    }


def sign(secret: str, timestamp: str, body: str) -> str:
    return hmac.new(secret.encode(), f"{timestamp}.{body}".encode(), hashlib.sha256).hexdigest()
