"""The installation's SSH keys: the gateway's own, and the one that signs certificates. Both lie in the data dir."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_private_key,
    load_ssh_public_key,
)

from domain.errors import InvalidSshKey
from domain.ssh import PublicKey
from manager.config import ManagerConfig

_EXTENSIONS = (b"permit-pty", b"permit-port-forwarding", b"permit-user-rc")


class Authority:
    """Implements `actions.base.SshAuthority`."""

    def __init__(self, ca: Ed25519PrivateKey, host_key: Ed25519PrivateKey, host: str | None, port: int) -> None:
        self._ca = ca
        self._host_key = host_key
        self.host = host
        self.port = port

    @classmethod
    def of(cls, config: ManagerConfig) -> Self:
        """Makes the keys when there are none yet; several processes may do so at once."""
        folder = config.data_dir / "pki"
        host = config.advertised_ssh_host or None
        return cls(_ensure(folder / "ssh_ca"), _ensure(folder / "ssh_host_key"), host, config.ssh_port)

    @property
    def host_key(self) -> str:
        return _line(self._host_key)

    @property
    def ca_key(self) -> str:
        return _line(self._ca)

    @property
    def private_host_key(self) -> bytes:
        return _private(self._host_key)

    def sign(
        self, key: PublicKey, *, identity: str, principals: Sequence[str], valid_from: datetime, valid_until: datetime
    ) -> str:
        try:
            public = load_ssh_public_key(key.line.encode())
            builder = (
                SSHCertificateBuilder()
                .public_key(public)  # type: ignore[arg-type]  # what it refuses is answered below
                .serial(secrets.randbits(63))
                .type(SSHCertificateType.USER)
                .key_id(identity.encode())
                .valid_principals([principal.encode() for principal in principals])
                .valid_after(valid_from.timestamp())
                .valid_before(valid_until.timestamp())
            )
            for name in sorted(_EXTENSIONS):
                builder = builder.add_extension(name, b"")
            return builder.sign(self._ca).public_bytes().decode()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InvalidSshKey(
                "No certificate can be made for a key of this kind; make one with 'ssh-keygen -t ed25519'."
            ) from None


def _ensure(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_private(Ed25519PrivateKey.generate()))
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, path)
        partial.unlink()
    key = load_ssh_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{path} holds a key of another kind than Ed25519")
    return key


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
