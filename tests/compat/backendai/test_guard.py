"""Who is let in by a signature, how often, and what strangers and replays are told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, cast

import pytest

from actions import SetSigningAction
from agent.client import AgentClient
from manager.compat.backendai.answering import BackendAiFront
from manager.metrics import Metrics
from manager.rest.app import RestDoor
from manager.rest.auth import FAILURE_BURST
from manager.world import World
from tests.compat.backendai.fakes import SECRET, VAULT, Fronted, alice, fronted, mallory, root  # noqa: F401  # fixtures
from tests.compat.backendai.signer import Signer

pytestmark = pytest.mark.usefixtures("fronted")


async def test_versions_are_told_to_everybody(fronted: Fronted) -> None:  # noqa: F811
    nobody = Signer(fronted.http, fronted.port, "", "")
    answer = await nobody.send("GET", "/", {})
    assert (answer.status, answer.json) == (200, {"version": "v7.20230615", "manager": "23.09.10"})
    answer = await nobody.send("GET", "/session/train", {})
    assert (answer.status, answer.prob) == (401, "auth-failed")
    assert answer.json["title"] == "Credential/signature mismatch."


@pytest.mark.parametrize(
    ("who", "secret"),
    [("alice", SECRET + "x"), ("nobody-at-all", SECRET), ("watcher", SECRET), ("watcher", "s" * 43)],
)
async def test_a_wrong_secret_an_unknown_key_and_one_that_may_not_sign_are_told_the_same(
    fronted: Fronted,  # noqa: F811
    who: str,
    secret: str,
) -> None:
    answer = await fronted.as_(who, secret).ask("GET", "/session/train")
    assert (answer.status, answer.prob) == (401, "auth-failed")
    assert answer.json["msg"].startswith("Signature mismatch")


async def test_a_keypairs_own_secret_signs_nothing_and_a_signing_secret_opens_nothing_else(
    fronted: Fronted,  # noqa: F811
) -> None:
    assert (await fronted.as_("alice", "s" * 43).ask("GET", "/session/train")).status == 401
    url = f"http://127.0.0.1:{fronted.port}/v1/whoami"
    async with fronted.http.get(url, headers={"Authorization": f"Bearer KEY-alice.{SECRET}"}) as response:
        assert response.status == 401


@pytest.mark.parametrize("minutes", [-16, 16])
async def test_a_clock_that_is_off_is_told_so(alice: Signer, minutes: int) -> None:  # noqa: F811
    date = datetime.now(UTC) + timedelta(minutes=minutes)
    answer = await alice.send("GET", "/session/train", alice.signed("GET", "/session/train", date=date))
    assert (answer.status, answer.prob) == (400, "invalid-auth-params")
    assert "sync" in answer.json["msg"]


async def test_a_request_for_another_host_is_not_taken(alice: Signer) -> None:  # noqa: F811
    headers = {**alice.signed("GET", "/session/train"), "Host": "moorage.example:8470"}
    assert (await alice.send("GET", "/session/train", headers)).prob == "auth-failed"


async def test_a_change_is_taken_once(alice: Signer, mallory: Signer) -> None:  # noqa: F811
    headers = alice.signed("POST", "/session/train", "application/json")
    body = b'{"mode": "query", "code": "print(1)"}'
    assert (await alice.send("POST", "/session/train", headers, body)).status == 200
    for again in (body, b'{"mode": "query", "code": "print(2)"}'):
        answer = await mallory.send("POST", "/session/train", headers, again)
        assert (answer.status, answer.prob) == (401, "auth-failed")
        assert "used before" in answer.json["msg"]


async def test_of_many_at_once_one_is_taken(fronted: Fronted, alice: Signer) -> None:  # noqa: F811
    headers = alice.signed("POST", "/session/train/interrupt")
    answers = await asyncio.gather(*(alice.send("POST", "/session/train/interrupt", headers) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [204] + [401] * 7
    assert fronted.host.calls.count("interrupt") == 1


async def test_another_manager_does_not_take_it_again(fronted: Fronted, alice: Signer) -> None:  # noqa: F811
    world = World.build(
        fronted.database, fronted.world.herald, cast(AgentClient, fronted.host), observe=Metrics().observe, vault=VAULT
    )
    door = RestDoor(world, Metrics())
    door.mount({"backendai": BackendAiFront(door, lambda: VAULT)})
    port = await door.listen("127.0.0.1", 0)
    path = "/session/train/interrupt"
    headers = {**alice.signed("POST", path), "Host": alice.host}  # as a balancer before both passes it on
    assert (await alice.send("POST", path, headers)).status == 204
    other = Signer(fronted.http, port, alice.access_key, alice.secret)
    answer = await other.send("POST", path, headers)
    assert (answer.status, "used before" in answer.json["msg"]) == (401, True)
    await door.close(2.0)


async def test_looking_may_be_repeated(alice: Signer) -> None:  # noqa: F811
    headers = alice.signed("GET", "/session/train")
    assert [(await alice.send("GET", "/session/train", headers)).status for _ in range(3)] == [200] * 3


async def test_a_websocket_runs_code_so_its_handshake_is_good_once(alice: Signer) -> None:  # noqa: F811
    path = "/stream/session/train/execute"
    headers = alice.signed("GET", path, "application/octet-stream")
    del headers["Content-Type"]
    async with alice.http.ws_connect(alice.url(path), headers=headers) as ws:
        await ws.send_json({"code": "print(1)", "mode": "query", "options": {}})
        assert (await ws.receive_json())["console"] == [["stdout", "1\n"]]
    with pytest.raises(Exception, match="401"):
        await alice.http.ws_connect(alice.url(path), headers=headers)


async def test_switched_off_it_is_over_at_once(fronted: Fronted, alice: Signer) -> None:  # noqa: F811
    assert (await alice.ask("GET", "/session/train")).status == 200
    by = await fronted.world.identities.of_access_key("KEY-alice")
    await fronted.world.processor.run(SetSigningAction(keypair="KEY-alice", on=False), by=by)
    await asyncio.sleep(0)
    assert (await alice.ask("GET", "/session/train")).status == 401


async def test_a_new_secret_ends_the_old_one(fronted: Fronted, alice: Signer) -> None:  # noqa: F811
    by = await fronted.world.identities.of_access_key("KEY-alice")
    made = await fronted.world.processor.run(SetSigningAction(keypair="KEY-alice", on=True), by=by)
    assert made.keypair.signing_secret is not None
    assert (await alice.ask("GET", "/session/train")).status == 401
    assert (await fronted.as_("alice", made.keypair.signing_secret).ask("GET", "/session/train")).status == 200


async def test_one_who_guesses_is_slowed_down_and_one_who_knows_is_not(
    fronted: Fronted,  # noqa: F811
    alice: Signer,  # noqa: F811
) -> None:
    assert (await alice.ask("GET", "/session/train")).status == 200
    guesser = fronted.as_("mallory", "wrong")
    answers = [await guesser.ask("GET", "/session/train") for _ in range(FAILURE_BURST + 2)]
    assert answers[-1].status == 429
    assert answers[-1].prob == "rate-limit-exceeded"
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await alice.ask("GET", "/session/train")).status == 200


async def test_a_keypairs_rate_is_told_and_kept(fronted: Fronted, alice: Signer) -> None:  # noqa: F811
    assert "X-RateLimit-Limit" not in (await alice.ask("GET", "/session/train")).headers
    async with fronted.database.reader() as connection:
        await connection.execute("UPDATE keypairs SET requests_per_second = 1.5 WHERE access_key = 'KEY-alice'")
    fronted.world.identities._forget(None)
    answers = [await alice.ask("GET", "/session/train") for _ in range(6)]
    first = {name: answers[0].headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Window")}
    assert first == {"Limit": "3", "Remaining": "2", "Window": "2"}
    limited = next(answer for answer in answers if answer.status == 429)
    assert limited.prob == "rate-limit-exceeded"
    assert limited.headers["X-RateLimit-Remaining"] == "0"


NOWHERE: Any = [
    ("GET", "/nowhere", 404, "url-not-found"),
    ("PUT", "/session/train", 405, "method-not-allowed"),
    ("GET", "/session/train/", 404, "url-not-found"),
    ("GET", "//", 404, "url-not-found"),
    ("GET", "/session/%ff", 400, "invalid-api-params"),
    ("GET", "/session/%00", 400, "invalid-api-params"),
    ("GET", "/session/none-such", 404, "object-not-found"),
]


async def test_what_is_not_there(alice: Signer) -> None:  # noqa: F811
    for method, path, status, prob in NOWHERE:
        answer = await alice.ask(method, path)
        assert (answer.status, answer.prob) == (status, prob), path


HOSTILE: Any = [
    (b"{", "application/json", 400),
    (b"[]", "application/json", 400),
    (b'{"mode": "query", "mode": "batch"}', "application/json", 400),
    (b'{"mode": NaN}', "application/json", 400),
    (b"\xff\xfe", "application/json", 400),
    (b'{"a":' * 100 + b"1" + b"}" * 100, "application/json", 400),
    (b"mode=query", "application/x-www-form-urlencoded", 400),
    (b" " * (7 * 1024 * 1024), "application/json", 413),
]


async def test_hostile_bodies(alice: Signer) -> None:  # noqa: F811
    for body, media_type, status in HOSTILE:
        headers = alice.signed("POST", "/session/train", media_type)
        answer = await alice.send("POST", "/session/train", headers, BytesIO(body))
        assert answer.status == status, body[:80]
        assert answer.prob in ("invalid-api-params", "content-too-large")
    assert (await alice.ask("GET", "/session/train")).status == 200


async def test_others_sessions_are_not_there(alice: Signer, mallory: Signer, root: Signer) -> None:  # noqa: F811
    asks: list[tuple[str, str, Any]] = [
        ("GET", "/session/train", None),
        ("PATCH", "/session/train", None),
        ("DELETE", "/session/train?forced=true", None),
        ("POST", "/session/train", {"mode": "query", "code": "print(1)"}),
        ("POST", "/session/train/complete", {"code": "pri", "options": {}}),
        ("POST", "/session/train/interrupt", None),
        ("POST", "/session/train/rename?name=mine", None),
        ("POST", "/session/train/commit", None),
        ("GET", "/session/train/logs", None),
        ("GET", "/session/train/files", {"path": "."}),
        ("GET", "/session/train/download", {"files": ["a"]}),
        ("GET", "/session/train/status-history", None),
        ("GET", "/session/train/dependency-graph", None),
        ("GET", "/session/train/abusing-report", None),
        ("GET", "/stream/session/train/apps", None),
        ("GET", "/events/session?sessionName=train", None),
    ]
    for method, path, body in asks:
        answer = await mallory.ask(method, path, body)
        assert (answer.status, answer.prob) == (404, "object-not-found"), path
    by_id = "/session/11111111-0000-7000-8000-000000000001"
    assert (await mallory.ask("GET", by_id)).prob == "object-not-found"
    answer = await mallory.ask("DELETE", "/session/train?owner_access_key=KEY-alice")
    assert (answer.status, answer.prob) == (403, "generic-forbidden")
    assert (await root.ask("GET", "/session/train?owner_access_key=KEY-alice")).json["userId"].endswith("01")
    assert (await alice.ask("GET", "/session/train?owner_access_key=KEY-alice")).status == 200
