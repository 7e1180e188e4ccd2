"""Keypairs and tokens: made, rotated, limited, disabled, removed. Secrets are shown once and kept as hashes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from actions.administration import hash_secret
from actions.base import Effect, Reading, Result, Rules, ScopeAction, Work, action, any_user, anyone
from actions.people import check_manages, seen_domain
from actions.views import Done, KeypairData
from domain.errors import InvalidRequest, KeypairNotFound, NotFound, PermissionDenied
from domain.ids import AccessKey
from domain.principal import ALL_SCOPES, Principal, Role, TokenScope
from repositories.signing import secret_about

TokenName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\w[\w.-]*$")]
#: A secret that was replaced is good for a week at most.
MOST_GRACE_SECONDS: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairResult(Result):
    keypair: KeypairData


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairPage(Result):
    items: list[KeypairData]
    next_cursor: str | None = None


def new_access_key() -> AccessKey:
    return AccessKey(f"MO{secrets.token_hex(9).upper()}")


def check_makes_credentials(by: Principal) -> None:
    """What is made must not outlive, or reach further than, what it was made with."""
    if not by.makes_credentials:
        raise PermissionDenied("A token makes no credentials, which would outlive it; use a keypair, or sign in.")


def _keypair(row: Mapping[str, Any], secret_key: str | None = None) -> KeypairData:
    told = {name: value for name, value in row.items() if name not in ("user_id", "domain", "role")}
    return KeypairData(**told, secret_key=secret_key)


def _check_others(by: Principal, user: str | None) -> None:
    if user is not None and by.role is Role.USER:
        raise PermissionDenied("Only administrators see the credentials of others; leave the user out to see your own.")


async def _whose(call: Reading, user: str | None, everybody: bool) -> tuple[UUID | None, str | None]:
    """The user and the domain that are asked for; None: any."""
    if user is not None:
        found = await call.db.identity.user(user, domain=seen_domain(call.by))
        return found["id"], None
    if everybody and call.by.role is not Role.USER:
        return None, seen_domain(call.by)
    return call.by.user_id, None


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret_key"})))
class CreateKeypairAction(ScopeAction[Work, KeypairResult]):
    """Make a keypair for oneself, or as an administrator for another. The secret is shown in this answer only."""

    user: str | None = None

    def target(self) -> str | None:
        return self.user

    async def run(self, call: Work, /) -> KeypairResult:
        by = call.by
        check_makes_credentials(by)
        if by.role is Role.USER and self.user is not None:
            own = await call.db.identity.user(str(by.user_id))
            if self.user not in (own["email"], str(own["id"])):
                raise PermissionDenied("Only administrators make keypairs for others.")
        user = await call.db.identity.user(self.user or str(by.user_id), domain=seen_domain(by))
        if user["id"] != by.user_id:
            check_manages(by, await call.db.identity.lock_user(user["id"]), user["email"])
        access_key, secret_key = new_access_key(), secrets.token_urlsafe(32)
        row = await call.db.credentials.add_keypair(access_key, hash_secret(secret_key), user["id"])
        return KeypairResult(keypair=_keypair(row, secret_key))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListKeypairsAction(ScopeAction[Reading, KeypairPage]):
    """One's own keypairs; for administrators those of everybody they see, or of one user."""

    user: str | None = None

    async def run(self, call: Reading, /) -> KeypairPage:
        _check_others(call.by, self.user)
        user_id, domain = await _whose(call, self.user, everybody=True)
        rows = await call.db.credentials.keypairs(user_id=user_id, domain=domain)
        return KeypairPage(items=[_keypair(row) for row in rows])


async def _change_keypair(call: Work, access_key: str) -> dict[str, Any]:
    """One's own, or of somebody whom one manages. Raises KeypairNotFound for what the asker does not see."""
    by, row = call.by, await call.db.credentials.keypair(access_key)
    if row["user_id"] == by.user_id:
        return row
    if not by.watches_domain(row["domain"]):
        raise KeypairNotFound(access_key=access_key)
    check_manages(by, await call.db.identity.lock_user(row["user_id"]), row["user"])
    return row


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class ModifyKeypairAction(ScopeAction[Work, KeypairResult]):
    """Disable a keypair, which is refused within a second; for administrators: enable it, or limit its requests."""

    keypair: str
    active: bool | None = None
    #: of all its credentials together, at each manager; 0: any number
    requests_per_second: Annotated[float, Field(ge=0, le=100_000)] | None = None

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> KeypairResult:
        if self.active is None and self.requests_per_second is None:
            raise InvalidRequest("Nothing to change was given; name one of active, requests_per_second.")
        row = await _change_keypair(call, self.keypair)
        if not call.by.manages(row["domain"], Role(row["role"])):
            if self.requests_per_second is not None:
                raise PermissionDenied("How often a keypair may ask, administrators say.")
            if self.active and not row["active"]:
                raise PermissionDenied("A keypair that was disabled is enabled by administrators.")
        changed = await call.db.credentials.edit_keypair(
            self.keypair, active=self.active, requests_per_second=self.requests_per_second
        )
        call.announce("identity")
        return KeypairResult(keypair=_keypair(changed))


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret_key"})))
class RotateKeypairAction(ScopeAction[Work, KeypairResult]):
    """Give a keypair a new secret, shown in this answer only. The old one ends at once, or is good for a while longer."""

    keypair: str
    grace_seconds: Annotated[float, Field(ge=0, le=MOST_GRACE_SECONDS)] = 0.0

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> KeypairResult:
        check_makes_credentials(call.by)
        await _change_keypair(call, self.keypair)
        secret_key = secrets.token_urlsafe(32)
        row = await call.db.credentials.rotate_keypair(
            self.keypair, hash_secret(secret_key), grace_seconds=self.grace_seconds
        )
        call.announce("identity")
        return KeypairResult(keypair=_keypair(row, secret_key))


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"signing_secret"})))
class SetSigningAction(ScopeAction[Work, KeypairResult]):
    """Let a keypair sign requests as clients of Backend.AI do, with a new secret shown in this answer only; or no longer."""

    keypair: str
    on: bool

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> KeypairResult:
        check_makes_credentials(call.by)
        await _change_keypair(call, self.keypair)
        # Whoever checks signatures has to open the secret: it is one of its own, and the keypair's stays a hash.
        secret = f"mos_{secrets.token_urlsafe(32)}" if self.on else None
        sealed = None if secret is None else call.seal(secret, secret_about(self.keypair))
        row = await call.db.credentials.set_signing(self.keypair, sealed)
        call.announce("identity")
        return KeypairResult(keypair=replace(_keypair(row), signing_secret=secret))


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class DeleteKeypairAction(ScopeAction[Work, Done]):
    """Remove a keypair for good, with its tokens and registered SSH keys."""

    keypair: str

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> Done:
        await _change_keypair(call, self.keypair)
        await call.db.policies.forget(("keypair", self.keypair))
        await call.db.credentials.remove_keypair(self.keypair)
        call.announce("identity")
        return Done()


# -- tokens ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenData:
    id: UUID
    name: str
    access_key: str
    user: str
    kind: str  #: token; sign_in: given for a password
    scopes: list[str]  #: what it may be used for
    expires_at: datetime
    created_at: datetime
    secret_token: str | None = None  #: only in the answer to its creation


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResult(Result):
    token: TokenData


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage(Result):
    items: list[TokenData]
    next_cursor: str | None = None


def token_data(row: Mapping[str, Any], secret_token: str | None = None) -> TokenData:
    told = {name: value for name, value in row.items() if name not in ("user_id", "domain", "role")}
    return TokenData(**told, secret_token=secret_token)


def new_token() -> str:
    return f"mot_{secrets.token_urlsafe(32)}"


def whole(scopes: Iterable[TokenScope]) -> frozenset[TokenScope]:
    """Every token may look."""
    return frozenset(scopes) | {TokenScope.READ}


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret_token"})))
class CreateTokenAction(ScopeAction[Work, TokenResult]):
    """Make a token that stands for a keypair, as far as its scopes reach, until it expires. It is shown in this answer only."""

    token_name: TokenName = "token"  # noqa: S105  # a name, not a secret
    ttl_seconds: Annotated[float, Field(ge=60, le=366 * 86400)] = 30 * 86400.0
    scopes: Annotated[list[TokenScope], Field(min_length=1)] | None = None  #: all when left out
    keypair: str | None = None  #: the one that asks when left out

    async def run(self, call: Work, /) -> TokenResult:
        by = call.by
        check_makes_credentials(by)
        if self.keypair is not None:
            await _change_keypair(call, self.keypair)
        token = new_token()
        row = await call.db.credentials.add_token(
            call.new_id(),
            token_hash=hash_secret(token),
            access_key=AccessKey(self.keypair or by.access_key),
            name=self.token_name,
            expires_at=call.now + timedelta(seconds=self.ttl_seconds),
            scopes=ALL_SCOPES if self.scopes is None else whole(self.scopes),
        )
        return TokenResult(token=token_data(row, token))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListTokensAction(ScopeAction[Reading, TokenPage]):
    """One's own tokens; for administrators those of one user, or of everybody they see."""

    user: str | None = None
    everybody: bool = False

    async def run(self, call: Reading, /) -> TokenPage:
        _check_others(call.by, self.user)
        if self.everybody and call.by.role is Role.USER:
            raise PermissionDenied("Only administrators see the tokens of others.")
        user_id, domain = await _whose(call, self.user, self.everybody)
        rows = await call.db.credentials.tokens(user_id=user_id, domain=domain)
        return TokenPage(items=[token_data(row) for row in rows])


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class DeleteTokenAction(ScopeAction[Work, Done]):
    """Revoke a token: it is refused within a second, and what it opened is closed."""

    token_id: UUID

    def target(self) -> str:
        return str(self.token_id)

    async def run(self, call: Work, /) -> Done:
        row = await call.db.credentials.token(self.token_id)
        if row["user_id"] != call.by.user_id:
            if not call.by.watches_domain(row["domain"]):
                raise NotFound("There is no such token, or it is not yours.")
            check_manages(call.by, await call.db.identity.lock_user(row["user_id"]), row["user"])
        await call.db.credentials.remove_token(self.token_id)
        call.announce("identity")
        return Done()
