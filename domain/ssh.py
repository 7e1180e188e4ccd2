"""Public keys as OpenSSH writes them: what they are, and whether they will do. Holds no cryptography."""

from __future__ import annotations

import hashlib
import re
import struct
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final, Self

from domain.errors import InvalidSshKey

MIN_RSA_BITS: Final = 2048
MAX_KEY_BYTES: Final = 16 * 1024
_WORDS: Final = re.compile(r"([A-Za-z0-9@.-]{4,64})[ \t]+([A-Za-z0-9+/=]{16,12000})(?:[ \t]+([^\r\n]*))?")
#: Kinds that are taken, and how many bytes their first value after the name has; None: it varies.
_KINDS: Final[dict[str, int | None]] = {
    "ssh-ed25519": 32,
    "sk-ssh-ed25519@openssh.com": 32,
    "ssh-rsa": None,
    "ecdsa-sha2-nistp256": 8,
    "ecdsa-sha2-nistp384": 8,
    "ecdsa-sha2-nistp521": 8,
    "sk-ecdsa-sha2-nistp256@openssh.com": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    kind: str
    blob: bytes
    comment: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """One line of a .pub file. Raises InvalidSshKey, which says what it is instead."""
        text = text.strip()
        if "PRIVATE KEY" in text:
            raise InvalidSshKey(
                "This is a private key: never give it away. Register the public one, from the file ending in .pub."
            )
        if len(text) > MAX_KEY_BYTES or "\n" in text or (match := _WORDS.fullmatch(text)) is None:
            raise InvalidSshKey
        kind, encoded, comment = match.groups()
        if kind.endswith("-cert-v01@openssh.com"):
            raise InvalidSshKey("This is a certificate; register the public key that it was made for.")
        if kind not in _KINDS:
            raise InvalidSshKey(f"Keys of the kind '{kind}' are not taken; make one with 'ssh-keygen -t ed25519'.")
        try:
            blob = b64decode(encoded, validate=True)
            values = _values(blob)
        except (ValueError, struct.error):
            raise InvalidSshKey("The key is cut off or was changed; copy the whole line of the .pub file.") from None
        _check(kind, values)
        return cls(kind=kind, blob=blob, comment=(comment or "").strip())

    @property
    def line(self) -> str:
        return f"{self.kind} {b64encode(self.blob).decode()}"

    @property
    def fingerprint(self) -> str:
        return "SHA256:" + b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")


def _values(blob: bytes) -> list[bytes]:
    values, at = [], 0
    while at < len(blob):
        (length,) = struct.unpack_from("!I", blob, at)
        at += 4
        if at + length > len(blob):
            raise ValueError
        values.append(blob[at : at + length])
        at += length
    return values


def _check(kind: str, values: list[bytes]) -> None:
    broken = InvalidSshKey("The key is cut off or was changed; copy the whole line of the .pub file.")
    if len(values) < 2 or values[0].decode("latin-1") != kind:
        raise broken
    if kind == "ssh-rsa":
        if len(values) != 3:
            raise broken
        bits = int.from_bytes(values[2], "big").bit_length()
        if bits < MIN_RSA_BITS:
            raise InvalidSshKey(
                f"An RSA key of {bits} bits is too weak; make a better one with 'ssh-keygen -t ed25519'."
            )
    elif len(values[1]) != _KINDS[kind]:
        raise broken
