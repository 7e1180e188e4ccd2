"""What is kept sealed in the database: passwords of registries. The key never is in it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.errors import SecretUnreadable

_NONCE_BYTES: Final = 12


class Vault:
    """Seals and opens with AES-256-GCM. All managers of an installation share the key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def of(cls, pki_dir: Path) -> Self:
        """Its key is derived from the certificate authority's, which every manager has and the database has not."""
        authority = (pki_dir / "ca.key").read_bytes()
        return cls(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"moorage vault").derive(authority))

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
