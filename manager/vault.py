"""Keys that the database does not hold: for what is kept sealed in it, and for the links of the audit's chain."""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.errors import InvalidConfiguration, SecretUnreadable
from repositories.audit import Anchor, begin_keyed, find_anchor
from repositories.database import Connection

_NONCE_BYTES: Final = 12


class Vault:
    """Seals and opens with AES-256-GCM. All managers of an installation share the key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def of(cls, pki_dir: Path) -> Self:
        return cls(_derived(pki_dir, b"moorage vault"))

    def seal(self, secret: str, about: str) -> bytes:
        """`about` is bound to it: sealed for one registry, it does not open as another's."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), about.encode())

    def open(self, sealed: bytes, about: str) -> str:
        """Raises SecretUnreadable."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode()).decode()
        except (InvalidTag, ValueError):
            raise SecretUnreadable from None


class AuditSeal:
    """The key of the audit's links, and the note of where they begin."""

    def __init__(self, key: bytes, note: Path) -> None:
        self.key = key
        self._note = note

    @classmethod
    def of(cls, pki_dir: Path) -> Self:
        return cls(_derived(pki_dir, b"moorage audit"), pki_dir / "audit.json")

    @property
    def kept(self) -> Anchor | None:
        """Where keyed links begin, as it was written down on this host. Raises InvalidConfiguration."""
        try:
            said = json.loads(self._note.read_text())
            return Anchor.made(self.key, "keyed", int(said["seq"]), bytes.fromhex(said["chain"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError):
            raise InvalidConfiguration(f"{self._note} cannot be read; docs/audit.md says what to do.") from None

    async def begin(self, connection: Connection, *, now: datetime) -> Anchor | None:
        """Inside a transaction, before links are made with the key; what is returned is to be noted after its commit.

        What was noted once is never vouched for anew: somebody who has taken the database's word away gains nothing by it.
        """
        if self._note.exists():
            return None
        there = await find_anchor(connection, "keyed")
        return (
            there if there is not None and there.is_real(self.key) else await begin_keyed(connection, self.key, now=now)
        )

    def note(self, anchor: Anchor) -> None:
        partial = self._note.with_suffix(".new")
        partial.write_text(json.dumps({"seq": anchor.seq, "chain": anchor.chain.hex()}))
        partial.replace(self._note)


def _derived(pki_dir: Path, purpose: bytes) -> bytes:
    """Of a secret that every manager has and the database has not: the certificate authority's key, or `vault.key`, which is
    that of the first authority when there has been another since."""
    own = pki_dir / "vault.key"
    secret = (own if own.exists() else pki_dir / "ca.key").read_bytes()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
