"""Passwords: setting them, and the short-lived token that a right one gives. Whether it is right, the door has found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field

from actions.administration import hash_secret
from actions.base import Audit, Effect, Remote, Result, Rules, ScopeAction, Work, action, anyone
from actions.credentials import TokenResult, check_makes_credentials, new_token, token_data
from actions.people import check_manages, seen_domain
from actions.views import Done
from domain.errors import InvalidRequest, PasswordTooWeak, PermissionDenied, SignInRefused
from domain.principal import ALL_SCOPES, Credential, Principal, Role, TokenScope
from domain.session import Session

SIGN_IN_SECONDS: Final = 12 * 3600.0
LEAST_CHARACTERS: Final = 10
MOST_CHARACTERS: Final = 256
Password = Annotated[str, Field(max_length=1024)]


def proven_by_password(by: Principal, session: Session | None) -> bool:
    """This very moment. No other credential signs in: a token would renew itself for ever."""
    return by.credential is Credential.PASSWORD


@action(
    Rules(
        allow=proven_by_password,
        effect=Effect.DATABASE,
        scope=TokenScope.READ,
        secrets=frozenset({"secret_token"}),
    )
)
class SignInAction(ScopeAction[Work, TokenResult]):
    """Sign in by e-mail address and password: a token for 12 hours, shown in this answer only."""

    email: Annotated[str, Field(min_length=1, max_length=254)]
    password: Password = field(repr=False)

    def target(self) -> str:
        return self.email

    async def run(self, call: Work, /) -> TokenResult:
        token = new_token()
        row = await call.db.credentials.add_token(
            call.new_id(),
            token_hash=hash_secret(token),
            access_key=call.by.access_key,
            name="sign-in",
            expires_at=call.now + timedelta(seconds=SIGN_IN_SECONDS),
            scopes=ALL_SCOPES,
            kind="sign_in",
        )
        return TokenResult(token=token_data(row, token))


@action(Rules(allow=anyone, effect=Effect.DATABASE, scope=TokenScope.READ))
class SignOutAction(ScopeAction[Work, Done]):
    """End the sign-in whose token is sent; it is refused within a second, and what it opened is closed."""

    async def run(self, call: Work, /) -> Done:
        if call.by.token_id is None or call.by.credential is not Credential.SIGN_IN:
            raise InvalidRequest("This is no sign-in that could be ended; keypairs and tokens are disabled or removed.")
        await call.db.credentials.remove_token(call.by.token_id)
        call.announce("identity")
        return Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSet(Result):
    email: str
    set: bool  #: False: there is none any more, so nobody signs in as this user


@action(Rules(allow=anyone, effect=Effect.AGENT, audit=Audit.ALWAYS, scope=TokenScope.ADMIN))
class SetPasswordAction(ScopeAction[Remote, PasswordSet]):
    """Set or take away a password: one's own, or as an administrator another's. Whoever has signed in signs in again."""

    user: Annotated[str, Field(min_length=1, max_length=254)]
    password: Password | None = field(default=None, repr=False)  #: left out: none any more
    current_password: Password | None = field(default=None, repr=False)  #: of one's own, when there is one

    def target(self) -> str:
        return self.user

    async def run(self, call: Remote, /) -> PasswordSet:
        by = call.by
        check_makes_credentials(by)
        async with call.service.reading(call) as reading:
            own = await reading.db.identity.user(str(by.user_id))
            if self.user in (own["email"], str(own["id"])):
                user, before = own, await reading.db.credentials.password(by.user_id)
            elif by.role in (Role.USER, Role.MONITOR):
                raise PermissionDenied("Only administrators set the passwords of others.")
            else:
                user, before = await reading.db.identity.user(self.user, domain=seen_domain(by)), None
        check_manages_or_self(by, user)
        if before is not None:
            await self._check_current(call, own["email"], before)
        hashed = None if self.password is None else await call.service.passwords.hash(_checked(self.password, user))
        async with call.service.work(call) as work:
            check_manages_or_self(by, await work.db.identity.lock_user(user["id"]))
            await work.db.credentials.set_password(user["id"], hashed)
            await work.db.credentials.remove_sign_ins(user["id"])
            work.announce("identity")
        return PasswordSet(email=user["email"], set=hashed is not None)

    async def _check_current(self, call: Remote, email: str, before: str) -> None:
        """Whoever found an open terminal does not take the account over. Wrong ones cost as much as at signing in."""
        passwords = call.service.passwords
        async with passwords.attempt(email, None, now=call.now) as attempt:
            if self.current_password is None or not await passwords.verify(before, self.current_password):
                raise SignInRefused("The present password is wrong; name it as current_password.")
            attempt.was_right()


def check_manages_or_self(by: Principal, row: dict[str, object]) -> None:
    if row["id"] != by.user_id:
        check_manages(by, row, str(row["email"]))


def _checked(password: str, user: dict[str, object]) -> str:
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS or password.lower() == str(user["email"]).lower():
        raise PasswordTooWeak
    return password
