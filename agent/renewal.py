"""An agent renews its certificate by itself, over the connection that the present one secures; nothing is interrupted."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from agent import pki
from domain.errors import MoorageError

log = logging.getLogger("moorage.renewal")
#: Between two attempts; days are left for them.
_AGAIN_SECONDS: Final = 60.0
_LONGEST_SLEEP_SECONDS: Final = 3600.0


class Managers(Protocol):
    """The part of `agent.link.Links` that this needs."""

    on_authorities: Callable[[str], None]

    async def renew(self, request_pem: str) -> dict[str, Any] | None: ...
    def make_anew(self) -> None: ...


class Renewal:
    """`run` goes on until it is cancelled. `tls` is the context of all connections, changed where it is."""

    def __init__(
        self,
        folder: Path,
        agent_id: str,
        tls: ssl.SSLContext,
        managers: Managers,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._agent_id = agent_id
        self._tls = tls
        self._managers = managers
        self._now = now
        self._look = asyncio.Event()
        self._asked_at: datetime | None = None
        managers.on_authorities = self._hear_of_authorities

    async def run(self) -> None:
        while True:
            seconds = await self._step()
            self._look.clear()
            try:
                async with asyncio.timeout(seconds * random.uniform(0.9, 1.0)):  # noqa: S311 - spreads hosts, no secret
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _step(self) -> float:
        left = pki.expires_at(self._folder) - self._now()
        if left > pki.RENEW_WITHIN and pki.is_of_signing_authority(self._folder):
            return min((left - pki.RENEW_WITHIN).total_seconds() + 1.0, _LONGEST_SLEEP_SECONDS)
        if self._asked_at is not None and self._now() - self._asked_at < timedelta(seconds=_AGAIN_SECONDS):
            return _AGAIN_SECONDS  # the welcomes of new connections wake it too
        self._asked_at = self._now()
        try:
            await self.renew()
        except (MoorageError, ValueError, LookupError, OSError, ssl.SSLError) as error:
            log.warning("the certificate was not renewed (%s); it ends in %s", error, left)
        return _AGAIN_SECONDS

    async def renew(self) -> bool:
        """False when no manager is there to ask."""
        key, request = pki.renewal_request(self._agent_id)
        answer = await self._managers.renew(request.decode())
        if answer is None:
            return False
        await asyncio.to_thread(pki.keep_renewed, self._folder, key, str(answer["certificate"]).encode())
        await asyncio.to_thread(pki.keep_authorities, self._folder, str(answer["authorities"]).encode())
        pki.load_identity(self._tls, self._folder)
        self._managers.make_anew()
        log.info("the certificate was renewed; it ends at %s", pki.expires_at(self._folder))
        return True

    def _hear_of_authorities(self, bundle: str) -> None:
        """A manager says which authorities are trusted: at once also here, so that one can follow the other."""
        try:
            if pki.keep_authorities(self._folder, bundle.encode()):
                pki.load_identity(self._tls, self._folder)
                log.warning("the list of trusted authorities has changed")
        except (ValueError, OSError, ssl.SSLError) as error:
            log.error("what a manager said of the authorities cannot be used: %s", error)
        self._look.set()
