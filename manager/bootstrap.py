"""The first rows and files of an installation: its administrator, its default image, its certificate authority."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from actions.administration import hash_secret
from agent import pki
from domain.errors import ImageNotFound
from domain.ids import AccessKey, uuid7
from domain.principal import Role
from manager.config import ManagerConfig
from repositories import agents as agent_rows
from repositories.credentials import CredentialRepository
from repositories.database import Database
from repositories.identity import IdentityRepository
from repositories.image import ImageRepository
from repositories.transit import Cause
from repositories.upkeep import alone

ADMIN_EMAIL: Final = "admin@localhost"
#: What people type for the default image.
DEFAULT_ALIASES: Final[Sequence[str]] = ("python", "python:3", "python:3.9", "python:3.11")
_CAUSE: Final = Cause(by="moorage up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The administrator's keypair, in a file that only its owner can read: the database has just its hash."""

    access_key: AccessKey
    secret_key: str

    @staticmethod
    def path(data_dir: Path) -> Path:
        return data_dir / "admin.json"

    @classmethod
    def load(cls, data_dir: Path) -> Credentials:
        return cls(**json.loads(cls.path(data_dir).read_text()))

    def save(self, data_dir: Path) -> None:
        partial = self.path(data_dir).with_suffix(".new")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        partial.replace(self.path(data_dir))


async def bootstrap(config: ManagerConfig, *, image: str | None, now: datetime) -> None:
    """Whatever of it is missing; a second time it changes nothing."""
    pki.ensure_authority(config.data_dir / "pki")
    database = await Database.connect(config.database_url, max_size=2)
    try:
        async with database.transaction() as connection:
            await alone(connection, "bootstrap")  # the first managers may come at the same time
            identity = IdentityRepository(connection, now=now, cause=_CAUSE)
            if not await identity.users(limit=1, after=None):
                user_id = uuid7()
                await identity.add_user(
                    user_id, email=ADMIN_EMAIL, username="admin", domain="default", role=Role.SUPERADMIN
                )
                credentials = Credentials(
                    access_key=AccessKey(f"MO{secrets.token_hex(9).upper()}"), secret_key=secrets.token_urlsafe(32)
                )
                # The file first: a crash in between leaves a file that the next start overwrites, not a lost secret.
                credentials.save(config.data_dir)
                proof = hash_secret(credentials.secret_key)
                await CredentialRepository(connection, now=now).add_keypair(credentials.access_key, proof, user_id)
            if image is not None:
                await _register(ImageRepository(connection, now=now, cause=_CAUSE), image)
    finally:
        await database.close()


async def _register(images: ImageRepository, name: str) -> None:
    try:
        await images.resolve(name)
    except ImageNotFound:
        labels = {"moorage.default": "true"}
        await images.register(
            name, architecture=os.uname().machine, labels=labels, aliases=DEFAULT_ALIASES, replace=True
        )


async def new_join_token(config: ManagerConfig, *, expires_at: datetime) -> str:
    """A token with which one agent may join the manager of this configuration."""
    database = await Database.connect(config.database_url, max_size=2)
    try:
        async with database.transaction() as connection:
            secret = await agent_rows.issue_token(connection, expires_at=expires_at, now=datetime.now(UTC))
    finally:
        await database.close()
    return join_token(config, secret)


def join_token(config: ManagerConfig, secret: str) -> str:
    host = config.advertised_agent_host or config.agent_host
    authority = (config.data_dir / "pki" / "ca.pem").read_bytes()
    return pki.join_token(f"https://{host}:{config.agent_control_port}", authority, secret)
