"""Who somebody is, by e-mail address and password. What they get for it, the action says."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from actions.administration import hash_secret
from actions.credentials import TokenResult, new_access_key
from actions.sign_in import SignInAction
from domain.errors import MoorageError, SignInRefused, TooManySignIns
from domain.principal import Credential, Principal
from repositories.credentials import CredentialRepository, add_first_keypair, keypair_to_sign_in
from repositories.database import Connection
from repositories.identity import principal_of_keypair
from repositories.record import AuditRecord, write_audit

if TYPE_CHECKING:
    from manager.world import World


async def sign_in(world: World, asked: SignInAction, address: str, request_id: str | None) -> TokenResult:
    """Raises SignInRefused, which says no more than that, or TooManySignIns."""
    now, passwords = world.service.now(), world.service.passwords
    user_id: UUID | None = None
    try:
        async with passwords.attempt(asked.email, address, now=now) as attempt:
            async with world.database.reader() as connection:
                found = await keypair_to_sign_in(connection, asked.email)
            user_id, password_hash, access_key = found or (None, None, None)
            if not await passwords.verify(password_hash, asked.password) or user_id is None or password_hash is None:
                raise SignInRefused
            stale = passwords.needs_rehash(password_hash)
            fresh = await passwords.hash(asked.password) if stale else None
            async with world.database.transaction() as connection:
                by = await _principal(connection, user_id, access_key, now)
                if fresh is not None:
                    await CredentialRepository(connection, now=now).set_password(user_id, fresh)
            attempt.was_right()
    except MoorageError as error:
        if isinstance(error, SignInRefused) or (isinstance(error, TooManySignIns) and error.first):
            await _audit_refusal(world, asked, user_id, now, error.code, request_id)
        raise
    return await world.processor.run(asked, by=by, request_id=request_id)


async def _principal(connection: Connection, user_id: UUID, access_key: str | None, now: datetime) -> Principal:
    if access_key is None:  # nobody knows its secret, until its owner rotates it
        secret = hash_secret(secrets.token_urlsafe(32))
        access_key = await add_first_keypair(connection, new_access_key(), secret, user_id, now=now)
    found = await principal_of_keypair(connection, access_key) if access_key is not None else None
    if found is None:
        raise SignInRefused
    return replace(found[0], credential=Credential.PASSWORD)


async def _audit_refusal(
    world: World, asked: SignInAction, user_id: UUID | None, now: datetime, outcome: str, request_id: str | None
) -> None:
    """Of a name that nobody has, it is not kept what it was: people type passwords into the wrong field."""
    record = AuditRecord(
        at=now,
        user_id=user_id,
        access_key=None,
        owner_access_key=None,
        action=asked.action_name,
        target=asked.email if user_id is not None else None,
        outcome=outcome,
        request_id=request_id,
    )
    async with world.database.reader() as connection:
        await write_audit(connection, record)
