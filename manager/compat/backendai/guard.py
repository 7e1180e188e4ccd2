"""Who has signed a request: only keypairs for which signing was switched on, each signature of a change good for one use."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from domain.errors import SecretUnreadable, Unauthenticated
from domain.principal import Credential, Principal
from manager.compat.backendai.signing import SignedRequest
from repositories.signing import sealed_secret, secret_about, use_signature

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from manager.rest.app import RestDoor
    from manager.vault import Vault

_LIFETIME_SECONDS: Final = 0.5
_MAX_ENTRIES: Final = 10_000


class SigningKeys:
    """Secrets of keypairs that may sign, opened; remembered for half a second, and forgotten at once when any changes."""

    def __init__(self, door: RestDoor, vault: Callable[[], Vault]) -> None:
        self._database = door.world.database
        self._make_vault = vault
        self._vault: Vault | None = None
        self._known: dict[str, tuple[float, str | None]] = {}
        self._changes = 0
        door.world.herald.subscribe("identity", self._forget)

    async def secret(self, access_key: str) -> str | None:
        until, secret = self._known.get(access_key, (0.0, None))
        if until > time.monotonic():
            return secret
        changes = self._changes
        async with self._database.reader() as connection:
            sealed = await sealed_secret(connection, access_key)
        secret = None if sealed is None else self._opened(sealed, access_key)
        if changes == self._changes:
            if len(self._known) >= _MAX_ENTRIES:
                self._known.clear()
            self._known[access_key] = (time.monotonic() + _LIFETIME_SECONDS, secret)
        return secret

    def _opened(self, sealed: bytes, access_key: str) -> str | None:
        """None for what this installation's key does not open, as after it was restored elsewhere."""
        if self._vault is None:
            self._vault = self._make_vault()
        try:
            return self._vault.open(sealed, secret_about(access_key))
        except SecretUnreadable:
            return None

    def _forget(self, _ids: object) -> None:
        self._changes += 1
        self._known.clear()


class Guard:
    """`await guard.admit(request)` gives the principal, or raises what is wrong with the signature; `use` takes it once."""

    def __init__(self, door: RestDoor, vault: Callable[[], Vault]) -> None:
        self._door = door
        self._keys = SigningKeys(door, vault)
        #: what signatures of unknown keypairs are compared with, so that they take as long
        self._nobodys = secrets.token_urlsafe(32)

    async def admit(self, request: BaseRequest) -> tuple[Principal, SignedRequest]:
        door = self._door
        try:
            signed = SignedRequest.of(request)
        except Unauthenticated:
            door.authenticator.check_peer(request, "")
            raise
        door.authenticator.check_peer(request, signed.access_key)
        signed.check_time(door.world.service.now())
        by, secret = await self._who(signed.access_key)
        if not signed.is_of(secret or self._nobodys) or by is None or secret is None:
            door.authenticator.was_wrong(request)
            raise Unauthenticated(
                "Signature mismatch: the access key or the secret key is wrong, or this keypair may not sign requests."
            )
        door.authenticator.was_right(request, signed.access_key)
        return by, signed

    async def still(self, by: Principal, signed: SignedRequest | None) -> bool:
        """Whether what was opened with this signature may stay open; without one nobody was asked for it."""
        if signed is None:
            return True
        now, secret = await self._who(by.access_key)
        return now is not None and secret is not None and signed.is_of(secret) and not now.lost(by)

    async def derived(self, by: Principal, about: str) -> bytes:
        """Of the keypair's secret. Raises Unauthenticated for a keypair that may not sign any more."""
        if (secret := await self._keys.secret(by.access_key)) is None:
            raise Unauthenticated("This keypair may not sign requests.")
        return hmac.digest(secret.encode(), f"moorage backendai {about}".encode(), "sha256")

    async def _who(self, access_key: str) -> tuple[Principal | None, str | None]:
        by = await self._door.world.identities.of_access_key(access_key)
        secret = await self._keys.secret(access_key)
        return None if by is None else replace(by, credential=Credential.SIGNATURE), secret

    async def use(self, signed: SignedRequest) -> None:
        """Raises Unauthenticated for a signature that was used before, at whichever manager."""
        async with self._door.world.database.transaction() as connection:
            first = await use_signature(connection, signed.signature, good_until=signed.good_until)
        if not first:
            raise Unauthenticated(
                "This signature was used before; sign the request again, with the time that it is now."
            )
