"""Rotated keypairs, signing in and out, passwords; and that nobody reaches above themselves or outside their domain."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import RotateKeypairAction, SetPasswordAction, SetSigningAction, SignInAction, SignOutAction
from actions.administration import hash_secret
from domain.errors import (
    InvalidRequest,
    KeypairNotFound,
    PasswordTooWeak,
    PermissionDenied,
    SignInRefused,
    TooManySignIns,
    UserNotFound,
)
from domain.principal import Credential, Principal
from manager.passwords import ACCOUNT_BURST, Passwords
from manager.world import Identities
from repositories.database import Database
from repositories.signing import sealed_secret
from tests.actions.people import DORA, EVE, LARS, OTHERS
from tests.scenario import (
    ALICE,
    MALLORY,
    NOW,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    Outbox,
    TestScenario,
    a_row,
    new_id,
    scenarios,
    stage,
    wrong,
)

NO_STATUS = NotApplicable("this is about no session's status")
TOKEN_ID = UUID(int=77)


def by_token(who: Principal, kind: Credential = Credential.TOKEN) -> Principal:
    return replace(who, credential=kind, token_id=TOKEN_ID)


def a_token(kind: str = "token", owner: Principal = ALICE) -> Given:
    expires_at = NOW + timedelta(days=1)
    row = {"id": TOKEN_ID, "token_hash": b"h", "name": "t", "kind": kind, "expires_at": expires_at}
    return a_row("tokens", **row, access_key=owner.access_key)


def denied(do: Any, by: Principal, *given: Given) -> TestScenario:
    return TestScenario(given=(OTHERS, *given), do=do, by=by, error=PermissionDenied, then_audit="permission_denied")


# -- keypairs ----------------------------------------------------------------------------------------------------------
def rotate(key: str = "KEY-alice", grace_seconds: float = 0.0) -> RotateKeypairAction:
    return RotateKeypairAction(keypair=key, grace_seconds=grace_seconds)


async def rotated(database: Database, by: Principal, *, grace_seconds: float) -> tuple[bool, bool]:
    """Whether the old and the new secret are good afterwards."""
    processor = await stage(database, OTHERS)
    made = (await processor.run(rotate(grace_seconds=grace_seconds), by=by)).keypair
    identities = Identities(database, Outbox())  # type: ignore[arg-type]  # it only subscribes
    old = await identities.authenticate("KEY-alice.secret-alice")
    new = await identities.authenticate(f"KEY-alice.{made.secret_key}")
    return old is not None, new is not None


@scenarios(
    RotateKeypairAction,
    success=TestScenario(
        given=(OTHERS,),
        do=rotate("KEY-lars"),
        by=LARS,
        answer=lambda a: len(a.keypair.secret_key) > 40 and a.keypair.previous_until is None,
        then_rows=NotImplemented,
    ),
    stranger=TestScenario(
        given=(OTHERS,), do=rotate(), by=MALLORY, error=KeypairNotFound, then_audit="keypair_not_found"
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=rotate("KEY-x"), error=KeypairNotFound, then_audit="keypair_not_found"),
    bad_input=TestScenario(do=rotate(grace_seconds=-1), error=InvalidRequest, then_audit=None),
    more={
        "a_domain_admin_of_another_domain": TestScenario(
            given=(OTHERS,), do=rotate(), by=LARS, error=KeypairNotFound, then_audit="keypair_not_found"
        ),
        "nobody_takes_a_superadmins": denied(rotate("KEY-root"), DORA),
        "a_monitor_rotates_none": denied(rotate("KEY-watcher"), WATCHER),
        "a_token_makes_no_credential": denied(rotate(), by_token(ALICE)),
    },
)
async def test_rotate_keypair(scenario: TestScenario, database: Database) -> None:
    if scenario.then_rows is not NotImplemented:
        await scenario.play(database)
        return
    processor = await stage(database, *scenario.given)  # hashes are drawn by lot: what they are good for is seen below
    assert scenario.answer(await processor.run(scenario.do, by=scenario.by))


@pytest.mark.parametrize("by", [ALICE, DORA, ROOT])
async def test_an_old_secret_ends_at_once(database: Database, by: Principal) -> None:
    assert await rotated(database, by, grace_seconds=0) == (False, True)


async def test_or_is_good_for_a_while(database: Database) -> None:
    # the stage's clock stands in the past, the door's does not: so much grace that it is not over yet
    seconds = (7 * 86400.0) - 1
    processor = await stage(database)
    await processor.run(rotate(grace_seconds=seconds), by=ALICE)
    async with database.reader() as connection:
        row = await connection.fetchrow(
            "SELECT previous_hash, previous_until FROM keypairs WHERE access_key = 'KEY-alice'"
        )
        assert row is not None
        assert (row["previous_hash"], row["previous_until"]) == (
            hash_secret("secret-alice"),
            NOW + timedelta(seconds=1 + seconds),
        )
        await connection.execute(
            "UPDATE keypairs SET previous_until = now() + interval '1 minute' WHERE previous_hash IS NOT NULL"
        )
    identities = Identities(database, Outbox())  # type: ignore[arg-type]
    assert await identities.authenticate("KEY-alice.secret-alice") is not None
    async with database.reader() as connection:
        await connection.execute(
            "UPDATE keypairs SET previous_until = now() - interval '1 minute' WHERE previous_hash IS NOT NULL"
        )
    identities = Identities(database, Outbox())  # type: ignore[arg-type]
    assert await identities.authenticate("KEY-alice.secret-alice") is None


# -- signing requests --------------------------------------------------------------------------------------------------
def signing(key: str = "KEY-alice", on: Any = True) -> SetSigningAction:
    return SetSigningAction(keypair=key, on=on)


@scenarios(
    SetSigningAction,
    success=TestScenario(
        given=(OTHERS,),
        do=signing("KEY-lars"),
        by=LARS,
        answer=lambda a: a.keypair.signing_secret.startswith("mos_") and a.keypair.signing_since is not None,
        then_rows=NotImplemented,
    ),
    stranger=TestScenario(
        given=(OTHERS,), do=signing(), by=MALLORY, error=KeypairNotFound, then_audit="keypair_not_found"
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=signing("KEY-x"), error=KeypairNotFound, then_audit="keypair_not_found"),
    bad_input=TestScenario(do=signing(on=wrong("perhaps")), error=InvalidRequest, then_audit=None),
    more={
        "off_when_it_was_off": TestScenario(do=signing(on=False), answer=lambda a: a.keypair.signing_secret is None),
        "nobody_takes_a_superadmins": denied(signing("KEY-root"), DORA),
        "a_monitor_switches_none": denied(signing("KEY-watcher"), WATCHER),
        "a_token_makes_no_credential": denied(signing(), by_token(ALICE)),
        "nor_does_a_signature": denied(signing(), replace(ALICE, credential=Credential.SIGNATURE)),
    },
)
async def test_set_signing(scenario: TestScenario, database: Database) -> None:
    if scenario.then_rows is not NotImplemented:
        await scenario.play(database)
        return
    processor = await stage(database, *scenario.given)
    assert scenario.answer(await processor.run(scenario.do, by=scenario.by))


async def test_a_signing_secret_is_kept_sealed_and_in_no_answer_that_is_stored(database: Database) -> None:
    processor = await stage(database)
    made = (await processor.run(signing(), by=ALICE, key="once")).keypair
    again = (await processor.run(signing(), by=ALICE, key="once")).keypair
    assert made.signing_secret is not None
    assert again.signing_secret is None
    async with database.reader() as connection:
        assert (
            await sealed_secret(connection, "KEY-alice")
            == f"signing secret of KEY-alice {made.signing_secret}".encode()
        )
        kept = await connection.fetchval("SELECT string_agg(answer::text, '') FROM idempotency_keys")
        assert made.signing_secret not in kept
    await processor.run(signing(on=False), by=ALICE)
    async with database.reader() as connection:
        assert await sealed_secret(connection, "KEY-alice") is None


# -- signing in --------------------------------------------------------------------------------------------------------
enter = SignInAction(email="alice@example.org", password="whatever it was")
proven = replace(ALICE, credential=Credential.PASSWORD)


@scenarios(
    SignInAction,
    success=TestScenario(
        do=enter,
        by=proven,
        answer=lambda a: a.token.kind == "sign_in" and a.token.secret_token.startswith("mot_"),
        then_rows=("+tokens sign-in",),
    ),
    stranger=denied(enter, ALICE),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("whoever gets here has been found"),
    bad_input=TestScenario(
        do=SignInAction(email=wrong(7), password="x"), by=proven, error=InvalidRequest, then_audit=None
    ),
    more={"a_sign_in_does_not_renew_itself": denied(enter, by_token(ALICE, Credential.SIGN_IN))},
)
async def test_sign_in(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    SignOutAction,
    success=TestScenario(
        given=(a_token("sign_in"),),
        do=SignOutAction(),
        by=by_token(ALICE, Credential.SIGN_IN),
        then_rows=("-tokens t",),
    ),
    stranger=NotApplicable("it is about the credential that is sent, and no other"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("the credential is there, or nobody gets here"),
    bad_input=TestScenario(do=SignOutAction(), error=InvalidRequest, then_audit=None),
    more={
        "an_api_token_is_no_sign_in": TestScenario(
            given=(a_token(),), do=SignOutAction(), by=by_token(ALICE), error=InvalidRequest, then_audit=None
        ),
        "a_monitor_signs_out_too": TestScenario(
            given=(a_token("sign_in", WATCHER),),
            do=SignOutAction(),
            by=by_token(WATCHER, Credential.SIGN_IN),
            then_rows=("-tokens t",),
        ),
    },
)
async def test_sign_out(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- passwords ---------------------------------------------------------------------------------------------------------
GOOD = "correct horse battery"


def choose(user: str = "alice@example.org", password: str | None = GOOD, **fields: Any) -> SetPasswordAction:
    return SetPasswordAction(user=user, password=password, **fields)


def has_one(who: Principal = ALICE) -> Given:
    return a_row("passwords", user_id=who.user_id, hash="$argon2id$nonsense", set_at=NOW)


@scenarios(
    SetPasswordAction,
    success=TestScenario(
        do=choose(), answer=lambda a: (a.email, a.set) == ("alice@example.org", True), then_rows=("+passwords ",)
    ),
    stranger=denied(choose(), MALLORY),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=choose("nobody@example.org"), by=ROOT, error=UserNotFound, then_audit="user_not_found"),
    bad_input=TestScenario(do=choose(password="short"), error=PasswordTooWeak, then_audit=None),
    more={
        "ones_own_takes_the_present_one": TestScenario(
            given=(has_one(),),
            do=choose(current_password="wrong"),
            error=SignInRefused,
            then_rows=("+sign_in_debts ",),
            then_audit=None,
        ),
        "the_address_is_no_password": TestScenario(
            do=choose(password="Alice@Example.org"), error=PasswordTooWeak, then_audit=None
        ),
        "an_administrator_sets_another's": TestScenario(
            given=(OTHERS, has_one(), a_token("sign_in")),
            do=choose(),
            by=DORA,
            then_rows=(
                "-tokens t",
                "passwords : hash $argon2id$nonsense -> " + "?",
            ),
        ),
        "or_takes_it_away": TestScenario(
            given=(has_one(),), do=choose(password=None), by=ROOT, then_rows=("-passwords ",)
        ),
        "not_that_of_a_superadmin": denied(choose("root@example.org"), DORA),
        "not_that_of_another_domain": TestScenario(
            given=(OTHERS,), do=choose("eve@example.org"), by=DORA, error=UserNotFound, then_audit="user_not_found"
        ),
        "a_monitor_sets_its_own": TestScenario(
            do=choose("watcher@example.org"), by=WATCHER, then_rows=("+passwords ",)
        ),
        "and_nobody_elses": denied(choose(), WATCHER),
        "a_token_sets_none": denied(choose(), by_token(ALICE)),
    },
)
async def test_set_password(scenario: TestScenario, database: Database) -> None:
    if scenario.then_rows[-1:] == ("passwords : hash $argon2id$nonsense -> ?",):  # salted: another one each time
        processor = await stage(database, *scenario.given)
        assert (await processor.run(scenario.do, by=scenario.by)).set
        async with database.reader() as connection:
            assert await connection.fetchval("SELECT count(*) FROM tokens") == 0
            assert "nonsense" not in await connection.fetchval("SELECT hash FROM passwords")
        return
    await scenario.play(database)


async def test_a_right_password_costs_nothing_and_wrong_ones_run_out(database: Database) -> None:
    passwords = Passwords(database, memory_kib=8, passes=1, lanes=1)
    stored = await passwords.hash(GOOD)
    for _ in range(ACCOUNT_BURST + 5):
        async with passwords.attempt("a@example.org", "10.0.0.1", now=NOW) as attempt:
            assert await passwords.verify(stored, GOOD)
            attempt.was_right()
    for _ in range(ACCOUNT_BURST):
        async with passwords.attempt("A@example.org", "10.0.0.1", now=NOW):
            assert not await passwords.verify(stored, "wrong")
            assert not await passwords.verify(None, GOOD)
    with pytest.raises(TooManySignIns) as refused:
        async with passwords.attempt("a@example.org", "10.0.0.2", now=NOW):
            raise AssertionError
    assert refused.value.facts["retry_after"] == 60
    async with passwords.attempt("a@example.org", "10.0.0.2", now=NOW + timedelta(seconds=60)):
        pass
    async with passwords.attempt("b@example.org", "10.0.0.1", now=NOW):  # the address has some left
        pass


def test_the_stage_has_two_domains() -> None:
    assert {who.domain for who in (DORA, EVE, LARS)} == {"default", "lab"}
    assert new_id(0) != TOKEN_ID
