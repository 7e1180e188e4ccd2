"""Backend.AI's request signatures: what is signed, with which key, and how far that proves anything. No door, no database.

Of the body only its media type is signed. Whoever can change what is on the wire can change it: use TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from domain.errors import Unauthenticated
from manager.compat.backendai.errors import GenericBadRequest, InvalidAuthParameters

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

#: A Date may be so far from now, either way.
TOLERANCE: Final = timedelta(minutes=15)
_AUTHORIZATION: Final = re.compile(
    r"BackendAI\s+signMethod=([A-Za-z0-9-]{1,32})\s*,\s*credential=([A-Za-z0-9_-]{1,128}):([0-9A-Fa-f]{1,256})"
)
_METHOD: Final = "HMAC-SHA256"
_VERSION: Final = re.compile(r"v([67])\.(\d{8})")
_EMPTY_BODY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class SignedRequest:
    access_key: str
    signature: bytes
    at: datetime
    host: str
    text: bytes  #: what was signed

    @classmethod
    def of(cls, request: BaseRequest) -> Self:
        """Raises Unauthenticated without a signature, InvalidAuthParameters and GenericBadRequest for one that cannot be right."""
        authorization = _only(request, "Authorization")
        if authorization is None:
            raise Unauthenticated("The request carries no signature; set the access key and the secret key.")
        if (match := _AUTHORIZATION.fullmatch(authorization.strip())) is None:
            raise InvalidAuthParameters(
                "The Authorization header is not 'BackendAI signMethod=..., credential=KEY:SIGNATURE'."
            )
        method, access_key, signature = match.groups()
        if method.upper() != _METHOD:
            raise InvalidAuthParameters("Requests are signed with HMAC-SHA256 here, and with nothing else.")
        if len(signature) != 64:
            raise InvalidAuthParameters("A signature has 64 hexadecimal digits.")
        date = _only(request, "Date") or _only(request, "X-BackendAI-Date") or ""
        version = _only(request, "X-BackendAI-Version") or ""
        host = _only(request, "Host") or ""
        if not _VERSION.fullmatch(version):
            raise GenericBadRequest("X-BackendAI-Version names no version that is spoken here; v7.20230615 is.")
        lines = (
            request.method,
            request.raw_path,
            date,
            f"host:{host}",
            f"content-type:{request.content_type.lower()}",
            f"x-backendai-version:{version}",
            _EMPTY_BODY,
        )
        text = "\n".join(lines).encode("utf-8", "surrogateescape")
        return cls(access_key, bytes.fromhex(signature), _time(date), host, text)

    def check_time(self, now: datetime) -> None:
        """Raises InvalidAuthParameters."""
        if abs(now - self.at) > TOLERANCE:
            raise InvalidAuthParameters(
                "Date/time sync error: the request's Date is more than 15 minutes off; set the clock."
            )

    @property
    def good_until(self) -> datetime:
        return self.at + TOLERANCE

    def is_of(self, secret: str) -> bool:
        """Takes as long for a wrong signature as for the right one."""
        day = hmac.digest(secret.encode(), self.at.strftime("%Y%m%d").encode(), "sha256")
        key = hmac.digest(day, self.host.encode("utf-8", "surrogateescape"), "sha256")
        return hmac.compare_digest(hmac.digest(key, self.text, "sha256"), self.signature)


def _only(request: BaseRequest, name: str) -> str | None:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise InvalidAuthParameters(f"The request carries more than one {name} header.")
    return values[0] if values else None


def _time(date: str) -> datetime:
    """In the zone that it was written in, because its day is part of the key."""
    try:
        at = datetime.fromisoformat(date) if len(date) <= 64 else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidAuthParameters("The Date header is not a time in ISO 8601 with its zone.")
    return at
