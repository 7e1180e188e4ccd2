"""Signing in by password, what tokens may do, and how often keypairs may ask: at the door."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from domain.errors import RateLimited
from manager.passwords import ACCOUNT_BURST, ADDRESS_BURST, Passwords
from manager.rest.auth import Rates
from tests.rest.conftest import Caller, Installation
from tests.scenario import ALICE

GOOD = "correct horse battery"
WRONG = {"email": "alice@example.org", "password": "wrong horse battery"}
RIGHT = {"email": "alice@example.org", "password": GOOD}


@pytest.fixture(autouse=True)
def quick(installation: Installation) -> None:
    """As in earnest, but for memory and time."""
    installation.world.service.passwords = Passwords(installation.world.database, memory_kib=8, passes=1, lanes=1)


async def test_sign_in_and_out(root: Caller, nobody: Caller, installation: Installation) -> None:
    assert (await nobody.post("/v1/sign-in", RIGHT)).code == "sign_in_refused"  # there is no password yet
    said = await root.ask("PUT", "/v1/users/alice@example.org/password", {"password": GOOD})
    assert said.json == {"email": "alice@example.org", "set": True}
    made = await nobody.post("/v1/sign-in", {"email": "Alice@Example.org", "password": GOOD})
    assert (made.status, made.json["kind"], made.json["access_key"]) == (201, "sign_in", "KEY-alice")
    assert made.headers["Cache-Control"] == "no-store"
    alice = Caller(nobody.http, nobody.base, {"Authorization": f"Bearer {made.json['token']}"})
    who = (await alice.get("/v1/whoami")).json
    assert (who["user"]["email"], who["credential"], len(who["scopes"])) == ("alice@example.org", "sign_in", 5)
    assert (await alice.post("/v1/keypairs", {})).status == 201  # a person makes credentials
    assert (await alice.post("/v1/sign-out", {})).status == 204
    assert (await alice.get("/v1/whoami")).code == "unauthenticated"
    async with installation.world.database.reader() as connection:
        rows = await connection.fetch("SELECT action, target, outcome FROM audit WHERE action LIKE 'sign%' ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("sign_in", "alice@example.org", "sign_in_refused"),
        ("sign_in", "Alice@Example.org", "ok"),
        ("sign_out", None, "ok"),
    ]


async def test_every_refusal_says_the_same(root: Caller, nobody: Caller, installation: Installation) -> None:
    for user in ("alice", "mallory", "watcher"):
        await root.ask("PUT", f"/v1/users/{user}@example.org/password", {"password": GOOD})
    await root.ask("PATCH", "/v1/users/mallory@example.org", {"active": False})
    await root.ask("PATCH", "/v1/keypairs/KEY-watcher", {"active": False})
    answers = [
        await nobody.post("/v1/sign-in", {"email": email, "password": password})
        for email, password in (
            ("alice@example.org", "wrong horse battery"),
            ("mallory@example.org", GOOD),  # closed
            ("watcher@example.org", GOOD),  # whose keypairs were disabled
            ("root@example.org", GOOD),  # without a password
            ("nobody@example.org", GOOD),
            ("a password in the wrong field", "x"),
        )
    ]
    assert {(a.status, a.code, a.json["detail"]) for a in answers} == {
        (401, "sign_in_refused", "The e-mail address or the password is wrong, or the account is closed.")
    }
    async with installation.world.database.reader() as connection:
        targets = [row["target"] for row in await connection.fetch("SELECT target FROM audit WHERE action = 'sign_in'")]
    assert "a password in the wrong field" not in targets
    assert "nobody@example.org" not in targets


async def test_who_never_had_a_keypair_gets_one(root: Caller, nobody: Caller) -> None:
    await root.post("/v1/users", {"email": "new@example.org"})
    await root.ask("PUT", "/v1/users/new@example.org/password", {"password": GOOD})
    made = (await nobody.post("/v1/sign-in", {"email": "new@example.org", "password": GOOD})).json
    assert made["access_key"].startswith("MO")
    again = (await nobody.post("/v1/sign-in", {"email": "new@example.org", "password": GOOD})).json
    assert again["access_key"] == made["access_key"]


async def test_an_account_is_guessed_at_so_often(root: Caller, nobody: Caller) -> None:
    await root.ask("PUT", "/v1/users/alice@example.org/password", {"password": GOOD})
    tried = await asyncio.gather(*(nobody.post("/v1/sign-in", WRONG) for _ in range(ACCOUNT_BURST + 5)))
    assert sorted(a.code for a in tried) == ["sign_in_refused"] * ACCOUNT_BURST + ["too_many_sign_ins"] * 5
    late = await nobody.post("/v1/sign-in", RIGHT)
    assert (late.status, late.code) == (429, "too_many_sign_ins")
    assert 1 <= int(late.headers["Retry-After"]) <= 60
    # an account that nobody has is no different, and neither is another one yet
    others = [
        await nobody.post("/v1/sign-in", {**WRONG, "email": "none@example.org"}) for _ in range(ACCOUNT_BURST + 1)
    ]
    assert [a.code for a in others] == ["sign_in_refused"] * ACCOUNT_BURST + ["too_many_sign_ins"]


async def test_an_address_guesses_so_often(nobody: Caller) -> None:
    codes = [
        (await nobody.post("/v1/sign-in", {**WRONG, "email": f"user{n}@example.org"})).code
        for n in range(ADDRESS_BURST + 1)
    ]
    assert codes == ["sign_in_refused"] * ADDRESS_BURST + ["too_many_sign_ins"]


async def test_bodies_that_are_none(nobody: Caller) -> None:
    for body in ({}, {"email": "alice@example.org"}, {"email": 7, "password": []}, {**WRONG, "otp": "1"}):
        assert (await nobody.post("/v1/sign-in", body)).code == "invalid_request"
    long = await nobody.post("/v1/sign-in", {**WRONG, "password": "x" * 1025})
    assert (long.code, "x" * 100 in long.body.decode()) == ("invalid_request", False)
    assert (await nobody.post("/v1/sign-in", {**WRONG, "password": "x" * 20_000})).code == "request_too_large"


async def test_a_tokens_scope(alice: Caller, nobody: Caller) -> None:
    made = await alice.post("/v1/tokens", {"name": "ci", "scopes": ["files"]})
    assert made.json["scopes"] == ["files", "read"]
    ci = Caller(nobody.http, nobody.base, {"Authorization": f"Bearer {made.json['token']}"})
    assert (await ci.get("/v1/sessions")).status == 200
    assert (await ci.ask("PUT", "/v1/sessions/train/files/a.txt", data=b"hi")).status == 200
    for method, path, body in (
        ("PATCH", "/v1/sessions/train", {"tag": "x"}),
        ("POST", "/v1/sessions/train/execute", {"code": "print(1)"}),
        ("POST", "/v1/sessions/train/services/web", {"port": 80}),
        ("POST", "/v1/tokens", {"name": "more"}),
        ("DELETE", "/v1/sessions/nowhere", None),
    ):
        answer = await ci.ask(method, path, body)
        assert (answer.status, answer.code) == (403, "scope_missing"), path
    assert (await alice.post("/v1/tokens", {"scopes": ["everything"]})).code == "invalid_request"
    assert (await alice.post("/v1/tokens", {"scopes": []})).code == "invalid_request"


async def test_a_keypair_asks_so_often(root: Caller, alice: Caller, nobody: Caller) -> None:
    token = (await alice.post("/v1/tokens", {"name": "other"})).json["token"]
    said = await root.ask("PATCH", "/v1/keypairs/KEY-alice", {"requests_per_second": 0.5})
    assert said.json["requests_per_second"] == 0.5
    other = Caller(nobody.http, nobody.base, {"Authorization": f"Bearer {token}"})
    assert (await alice.get("/v1/whoami")).status == 200
    slowed = await other.get("/v1/whoami")  # all of its credentials together
    assert (slowed.status, slowed.code) == (429, "rate_limited")
    assert 1 <= int(slowed.headers["Retry-After"]) <= 2
    assert (await root.get("/v1/whoami")).status == 200
    await root.ask("PATCH", "/v1/keypairs/KEY-alice", {"requests_per_second": 0})
    assert (await other.get("/v1/whoami")).status == 200


def test_a_bucket_fills_steadily() -> None:
    now = [0.0]
    rates, by = Rates(clock=lambda: now[0]), replace(ALICE, requests_per_second=10.0)
    for _ in range(20):
        rates.take(by)
    with pytest.raises(RateLimited) as refused:
        rates.take(by)
    assert refused.value.facts["retry_after"] == 1
    now[0] = 0.5
    for _ in range(5):
        rates.take(by)
    with pytest.raises(RateLimited):
        rates.take(by)
    now[0] = 1000.0
    for _ in range(20):  # and holds two seconds' worth
        rates.take(by)
    with pytest.raises(RateLimited):
        rates.take(by)
    rates.take(ALICE)
