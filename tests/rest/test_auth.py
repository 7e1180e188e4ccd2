"""Who may pass the door: nobody without a credential, and nobody who guesses for long."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from manager.rest.auth import FAILURE_BURST
from manager.rest.routes import ROUTES
from tests.rest.conftest import SECRET, Caller, Installation

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
PUBLIC = ("/healthz", "/readyz", "/openapi.json", "/docs", "/metrics")


def addresses() -> Iterator[str]:
    for path in dict.fromkeys(route.path for route in ROUTES):
        yield re.sub(r"\{[a-z*]+\}", "x", path)


async def test_without_a_credential_nothing_is_told(nobody: Caller, installation: Installation) -> None:
    """Every address, every method: 401, or 404 where there is nothing."""
    asked = 0
    for path in [*addresses(), "/v1", "/v1/nothing", "/v2/sessions", "/proxy/x", "/v1/sessions/x/y/z"]:
        known = path in set(addresses())
        for method in METHODS:
            if method == "CONNECT":
                continue  # names no path; see test_http
            answer = await nobody.ask(method, path)
            if (method, path) == ("POST", "/v1/sign-in"):  # the one question without a credential
                assert answer.code == "invalid_json"
                continue
            asked += 1
            assert answer.status == (401 if known else 404), (method, path, answer.body)
            if method != "HEAD":
                assert answer.code == ("unauthenticated" if known else "route_not_found")
            if known:
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="moorage"'
    assert asked > 400
    assert installation.host.calls == []


async def test_public_addresses_need_none(nobody: Caller, alice: Caller) -> None:
    for path in PUBLIC:
        assert (await nobody.get(path)).status == 200, path
        assert (await nobody.post(path)).code == "unauthenticated"
        wrong = await alice.post(path)
        assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer KEY-alice",
        "Bearer KEY-alice.",
        f"Bearer KEY-alice.{SECRET}x",
        f"Bearer KEY-mallory.{SECRET[:-1]}",
        f"Bearer KEY-nobody.{SECRET}",
        f"Basic KEY-alice.{SECRET}",
        f"KEY-alice.{SECRET}",
        f"Bearer KEY-alice.{SECRET} and more",
        "Bearer ' OR 1=1 --.x",
        "Bearer " + "x" * 5000,
        "Bearer \xff\xfe",
    ],
)
async def test_wrong_credentials(nobody: Caller, header: str) -> None:
    answer = await nobody.get("/v1/whoami", headers={"Authorization": header})
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_credentials_are_taken_from_the_header_only(nobody: Caller) -> None:
    credential = f"KEY-alice.{SECRET}"
    for path in (f"/v1/whoami?access_token={credential}", f"/v1/whoami?token={credential}"):
        assert (await nobody.get(path)).code == "unauthenticated"
    assert (await nobody.get("/v1/whoami", headers={"Cookie": f"token={credential}"})).code == "unauthenticated"
    lower = await nobody.get("/v1/whoami", headers={"Authorization": f"bearer {credential}"})
    assert lower.json["access_key"] == "KEY-alice"


async def test_a_token_stands_for_its_keypair(alice: Caller, nobody: Caller) -> None:
    made = await alice.post("/v1/tokens", {"name": "laptop", "ttl_seconds": 3600})
    assert made.status == 201
    headers = {"Authorization": f"Bearer {made.json['token']}"}
    who = (await nobody.get("/v1/whoami", headers=headers)).json
    assert (who["access_key"], who["role"], who["user"]["email"]) == ("KEY-alice", "user", "alice@example.org")
    assert (who["domain"], who["projects"]) == ("default", ["default"])
    listed = (await alice.get("/v1/tokens")).json["items"]
    assert [item["name"] for item in listed] == ["laptop"]
    assert "token" not in listed[0]
    assert (await alice.ask("DELETE", f"/v1/tokens/{made.json['id']}")).status == 204
    assert (await nobody.get("/v1/whoami", headers=headers)).code == "unauthenticated"


async def test_guessing_is_slowed_down_and_others_pass(nobody: Caller, alice: Caller) -> None:
    assert (await alice.get("/v1/whoami")).status == 200
    wrong = {"Authorization": f"Bearer KEY-alice.{'x' * 43}"}
    for _ in range(FAILURE_BURST):
        assert (await nobody.get("/v1/whoami", headers=wrong)).status == 401
    slowed = await nobody.get("/v1/whoami", headers=wrong)
    assert (slowed.status, slowed.code) == (429, "too_many_requests")
    assert 1 <= int(slowed.headers["Retry-After"]) <= 5
    # whoever has proved itself before shares the address, but not the blame
    assert (await alice.get("/v1/whoami")).status == 200


async def test_metrics_elsewhere_need_an_administrator(
    nobody: Caller, alice: Caller, installation: Installation
) -> None:
    text = (await nobody.get("/metrics")).body.decode()
    assert "moorage_http_requests_total" in text
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    assert (await nobody.get("/metrics", headers=forwarded)).code == "unauthenticated"
    assert (await alice.get("/metrics", headers=forwarded)).code == "permission_denied"
    assert (await installation.caller("watcher").get("/metrics", headers=forwarded)).status == 200


async def test_a_known_address_names_its_methods(alice: Caller) -> None:
    answer = await alice.ask("PUT", "/v1/sessions")
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method_not_allowed", "GET, POST")
    assert (await alice.get("/v1/nothing")).code == "route_not_found"
    for path in ("/v1/sessions/", "/v1//sessions", "/v1/sessions/train/", "//v1/sessions", "/V1/sessions"):
        assert (await alice.get(path)).code == "route_not_found", path
