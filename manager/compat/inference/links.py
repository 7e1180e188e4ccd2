"""Addresses that carry their own permission: for one file, one purpose and a time; sealed, so that nobody makes or reads one."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from domain.errors import PermissionDenied, SecretUnreadable
from manager.vault import Vault

UPLOAD_SECONDS: Final = 15 * 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """To one file of one keypair."""

    purpose: str  #: upload, or download
    access_key: str
    path: str  #: below the folder of the front's files
    size: int = -1
    until: float = 0.0  #: unix seconds


class Links:
    def __init__(self, vault: Callable[[], Vault], *, now: Callable[[], float] = time.time) -> None:
        self._vault = vault
        self._now = now

    @classmethod
    def of(cls, data_dir: Path) -> Links:
        made: list[Vault] = []

        def vault() -> Vault:
            if not made:
                made.append(Vault.of(data_dir / "pki"))
            return made[0]

        return cls(vault)

    def seal(self, link: Link) -> str:
        sealed = self._vault().seal(orjson.dumps(asdict(link)).decode(), _about(link.purpose))
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def open(self, token: str, purpose: str) -> Link:
        """Raises PermissionDenied: what does not open says nothing of why."""
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            link = Link(**orjson.loads(self._vault().open(sealed, _about(purpose))))
        except (binascii.Error, SecretUnreadable, ValueError, TypeError):
            raise PermissionDenied("The address of the file is not one that was given.") from None
        if link.until < self._now():
            raise PermissionDenied("The address of the file has expired; ask for a new one.")
        return link


def _about(purpose: str) -> str:
    return f"inference {purpose}"
