"""Who may ask for a tensor stream, and whether its chunks are those of the node that was asked.

Shared by the server in the container (`import moorage_authorizers` in an app) and by `moorage.mesh`, whose copy is
generated from this file. Signatures are HMAC-SHA256 over a shared secret, or Ed25519 where `cryptography` is installed.
"""

from __future__ import annotations

import abc
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from runner.moorage_tensors import Frame

    class _Key(Protocol):
        """What signs, and whose signatures count."""

        name: str

        def sign(self, text: bytes) -> bytes: ...
        def verify(self, name: str, signature: bytes, text: bytes) -> bool: ...


WINDOW_SECONDS = 60.0
_MOST_NONCES = 100_000
_MOST_BUCKETS = 10_000


class Refused(Exception):
    """An authorizer does not let a request through, and says why. `retry_after`: when it may be asked again, in seconds."""

    def __init__(self, message: str, *, code: str = "authorization_refused", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class AuthorizerBase(abc.ABC):
    """`sign_*` fill `auth` of what is sent, `validate_*` say whether what came may be believed.

    The client calls sign_request and validate_response (for every frame), the server the other two. To refuse, return
    False, or raise Refused with the reason.
    """

    @abc.abstractmethod
    async def sign_request(self, request: Frame, service_public_key: Any = None) -> None: ...

    @abc.abstractmethod
    async def validate_request(self, request: Frame) -> bool: ...

    @abc.abstractmethod
    async def sign_response(self, response: Frame, request: Frame) -> None: ...

    @abc.abstractmethod
    async def validate_response(self, response: Frame, request: Frame) -> bool: ...


class SignatureAuthorizer(AuthorizerBase):
    """Signs requests and every frame of their answers.

    `private_key`: a secret that both sides know (bytes or text), or an Ed25519 private key of `cryptography`; then
    `trusted` names the public keys (hex) of the others. A request is good once, within `window_seconds` of its time.
    """

    def __init__(
        self,
        private_key: Any,
        trusted: Collection[str] | None = None,
        *,
        window_seconds: float = WINDOW_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key: _Key = (
            _Secret(private_key) if isinstance(private_key, (bytes, str)) else _Pair(private_key, trusted or ())
        )
        self._window = window_seconds
        self._now = now
        self._seen: OrderedDict[str, float] = OrderedDict()

    @property
    def name(self) -> str:
        """By which the others know this key: of a pair, its public half."""
        return self._key.name

    async def sign_request(self, request: Frame, service_public_key: Any = None) -> None:
        auth: dict[str, Any] = {"key": self.name, "nonce": secrets.token_hex(16), "time": self._now()}
        request.auth = {**auth, "signature": self._key.sign(await _text(request, auth)).hex()}

    async def validate_request(self, request: Frame) -> bool:
        auth = dict(request.auth or {})
        if not auth:
            raise Refused("The request is not signed.")
        if not self._is_good(auth, await _text(request, auth)):
            raise Refused("The request's signature is not of a key that is trusted here.")
        at, nonce, now = auth.get("time"), auth.get("nonce"), self._now()
        if not isinstance(at, (int, float)) or not abs(now - at) <= self._window:
            raise Refused(f"The request was signed more than {self._window:.0f} seconds ago, or by another clock.")
        return self._is_new(str(nonce), now)

    async def sign_response(self, response: Frame, request: Frame) -> None:
        auth: dict[str, Any] = {"key": self.name, "nonce": (request.auth or {}).get("nonce")}
        response.auth = {**auth, "signature": self._key.sign(await _text(response, auth)).hex()}

    async def validate_response(self, response: Frame, request: Frame) -> bool:
        auth, asked = dict(response.auth or {}), request.auth or {}
        return auth.get("nonce") == asked.get("nonce") and self._is_good(auth, await _text(response, auth))

    def _is_good(self, auth: dict[str, Any], text: bytes) -> bool:
        try:
            return self._key.verify(str(auth.get("key")), bytes.fromhex(str(auth.get("signature"))), text)
        except ValueError:
            return False

    def _is_new(self, nonce: str, now: float) -> bool:
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise Refused("The request was sent before.")
        if len(self._seen) >= _MOST_NONCES:
            raise Refused("Too many requests were signed of late.", code="rate_limited", retry_after=self._window)
        self._seen[nonce] = now + 2 * self._window  # longer than any request with it is believed
        return True


class RateLimitAuthorizer(AuthorizerBase):
    """Lets each signer through `requests` times within `per_seconds`; all together where `authorizer` names nobody.

    Wraps another authorizer, which is asked first.
    """

    def __init__(
        self,
        authorizer: AuthorizerBase | None = None,
        *,
        requests: int = 60,
        per_seconds: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if requests < 1 or per_seconds <= 0:
            raise ValueError("A rate is at least one request within some seconds.")
        self._inner = authorizer
        self._requests = requests
        self._per_seconds = per_seconds
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  #: tokens left, and when

    async def sign_request(self, request: Frame, service_public_key: Any = None) -> None:
        if self._inner is not None:
            await self._inner.sign_request(request, service_public_key)

    async def validate_request(self, request: Frame) -> bool:
        who = ""  # without an authorizer, a name is only claimed
        if self._inner is not None:
            if not await self._inner.validate_request(request):
                return False
            who = str((request.auth or {}).get("key", ""))
        now, rate = self._now(), self._requests / self._per_seconds
        left, at = self._buckets.pop(who, (float(self._requests), now))
        left = min(float(self._requests), left + (now - at) * rate)
        if len(self._buckets) >= _MOST_BUCKETS:
            self._buckets.popitem(last=False)  # who has been silent for longest
        self._buckets[who] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise Refused(
                f"More than {self._requests} requests within {self._per_seconds:g} seconds.",
                code="rate_limited",
                retry_after=(1 - left) / rate,
            )
        return True

    async def sign_response(self, response: Frame, request: Frame) -> None:
        if self._inner is not None:
            await self._inner.sign_response(response, request)

    async def validate_response(self, response: Frame, request: Frame) -> bool:
        return self._inner is None or await self._inner.validate_response(response, request)


async def _text(frame: Frame, auth: dict[str, Any]) -> bytes:
    """What is signed: the whole frame, and everything else that `auth` says."""
    told = {name: value for name, value in auth.items() if name != "signature"}
    return f"{await frame.digest()} {json.dumps(told, sort_keys=True)}".encode()


class _Secret:
    """One secret that both sides know."""

    def __init__(self, secret: bytes | str) -> None:
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if len(self._secret) < 16:
            raise ValueError("A shared secret has at least 16 bytes.")
        self.name = hashlib.sha256(b"name of " + self._secret).hexdigest()[:16]

    def sign(self, text: bytes) -> bytes:
        return hmac.new(self._secret, text, hashlib.sha256).digest()

    def verify(self, name: str, signature: bytes, text: bytes) -> bool:
        return name == self.name and hmac.compare_digest(self.sign(text), signature)


class _Pair:
    """A private key, and the public ones of others."""

    def __init__(self, private_key: Any, trusted: Collection[str]) -> None:
        if not trusted:
            raise ValueError("Name the public keys that are trusted; with none, everybody would be.")
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        self._private = private_key
        self._trusted = {key: Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in trusted}
        self.name = str(private_key.public_key().public_bytes_raw().hex())

    def sign(self, text: bytes) -> bytes:
        return bytes(self._private.sign(text))

    def verify(self, name: str, signature: bytes, text: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        if (key := self._trusted.get(name)) is None:
            return False
        try:
            key.verify(signature, text)
        except InvalidSignature:
            return False
        return True
