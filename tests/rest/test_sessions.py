"""Sessions over HTTP: created, read, changed, listed, ended."""

from __future__ import annotations

import asyncio

from tests.rest.conftest import ENDED, PENDING, RUNNING, Caller, Installation

NEW = {"name": "fresh", "image": "python", "resource_slots": {"cpu": 1, "mem": "1g"}}


async def test_a_session_is_shown_with_everything(alice: Caller) -> None:
    answer = await alice.get(f"/v1/sessions/{RUNNING}")
    assert answer.status == 200
    shown = answer.json
    assert shown["id"] == str(RUNNING)
    assert shown["status"] == "RUNNING"
    assert shown["requested_slots"] == {"cpu": 1.5, "mem": 512}
    assert shown["occupied_slots"] == {"cpu": 1.5, "mem": 512}
    assert shown["created_at"].endswith("Z")
    assert (await alice.get("/v1/sessions/train")).json["id"] == str(RUNNING)
    assert answer.headers["Server"] == "moorage"


async def test_an_etag_spares_the_body(alice: Caller) -> None:
    first = await alice.get("/v1/sessions/train")
    again = await alice.get("/v1/sessions/train", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    await alice.ask("PATCH", "/v1/sessions/train", {"tag": "x"})
    changed = await alice.get("/v1/sessions/train", headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status == 200
    assert changed.json["tag"] == "x"


async def test_if_match_refuses_to_overwrite_what_others_have_changed(alice: Caller) -> None:
    etag = (await alice.get("/v1/sessions/train")).headers["ETag"]
    mine = await alice.ask("PATCH", "/v1/sessions/train", {"priority": 20}, headers={"If-Match": etag})
    assert (mine.status, mine.json["priority"]) == (200, 20)
    late = await alice.ask("PATCH", "/v1/sessions/train", {"priority": 30}, headers={"If-Match": etag})
    assert (late.status, late.code) == (412, "precondition_failed")
    odd = await alice.ask("PATCH", "/v1/sessions/train", {"priority": 30}, headers={"If-Match": "W/x"})
    assert odd.code == "precondition_failed"
    newest = await alice.ask(
        "PATCH", "/v1/sessions/train", {"priority": 30}, headers={"If-Match": mine.headers["ETag"]}
    )
    assert newest.status == 200


async def test_a_session_is_created(alice: Caller) -> None:
    answer = await alice.post("/v1/sessions", NEW)
    assert answer.status == 201
    assert answer.json["status"] == "PENDING"
    assert answer.json["requested_slots"] == {"cpu": 1, "mem": 1024}
    assert answer.headers["Location"] == f"/v1/sessions/{answer.json['id']}"
    taken = await alice.post("/v1/sessions", NEW)
    assert (taken.status, taken.code) == (409, "name_taken")
    reused = await alice.post("/v1/sessions", {**NEW, "reuse_if_exists": True})
    assert (reused.status, reused.json["id"]) == (200, answer.json["id"])


async def test_the_same_key_creates_once(alice: Caller) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *(alice.post("/v1/sessions", {"image": "python"}, headers=headers) for _ in range(8))
    )
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 1
    other = await alice.post("/v1/sessions", {"image": "python", "tag": "x"}, headers=headers)
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    odd = await alice.post("/v1/sessions", NEW, headers={"Idempotency-Key": "a b"})
    assert odd.code == "invalid_request"


async def test_a_creation_is_waited_for(installation: Installation, alice: Caller) -> None:
    waiting = asyncio.create_task(alice.post("/v1/sessions?wait=30", NEW))
    while (found := await alice.get("/v1/sessions/fresh")).status == 404:
        await asyncio.sleep(0)
    await alice.ask("DELETE", "/v1/sessions/fresh")
    answer = await waiting
    assert (answer.status, answer.json["status"]) == (201, "CANCELLED")
    assert answer.json["id"] == found.json["id"]
    short = await alice.post("/v1/sessions?wait=0.01", NEW)
    assert (short.status, short.json["status"]) == (201, "PENDING")
    assert (await alice.post("/v1/sessions?wait=-1", NEW)).code == "invalid_request"
    assert (await alice.post("/v1/sessions?wait=soon", NEW)).code == "invalid_request"


async def test_what_is_wrong_with_a_creation_is_named(alice: Caller) -> None:
    async def refused(**fields: object) -> tuple[int, str, str | None]:
        answer = await alice.post("/v1/sessions", {**NEW, **fields})
        return answer.status, answer.code, answer.json.get("field")

    assert await refused(colour="red") == (400, "invalid_request", "colour")
    assert await refused(access_key="KEY-root") == (400, "invalid_request", "access_key")
    assert await refused(priority="high") == (400, "invalid_request", "priority")
    assert await refused(priority=-1) == (400, "invalid_request", "priority")
    assert await refused(name="no") == (400, "invalid_name", None)
    assert await refused(name="../../etc") == (400, "invalid_name", None)
    assert (await refused(resource_slots={"cpu": -1}))[:2] == (422, "invalid_resources")
    assert (await refused(resource_slots={"cpu": 2**62}))[:2] == (422, "invalid_resources")
    assert (await refused(resource_slots=7))[:2] == (422, "invalid_resources")
    assert (await refused(resource_slots={"cpu": 64, "mem": 1024}))[:2] == (422, "resources_impossible")
    assert (await refused(image="nothing"))[:2] == (404, "image_not_found")
    missing = await alice.post("/v1/sessions", {"name": "fresh"})
    assert (missing.code, missing.json["field"]) == ("invalid_request", "image")


async def test_lists_are_pages(alice: Caller) -> None:
    for number in range(5):
        await alice.post("/v1/sessions", {"image": "python", "name": f"many-{number}"})
    names, cursor = [], ""
    while cursor is not None:
        page = (await alice.get(f"/v1/sessions?limit=2&name=many-*{f'&cursor={cursor}' if cursor else ''}")).json
        names += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert names == [f"many-{number}" for number in reversed(range(5))]
    assert (await alice.get("/v1/sessions?cursor=nonsense")).code == "invalid_request"
    assert (await alice.get("/v1/sessions?limit=0")).code == "invalid_request"
    assert (await alice.get("/v1/sessions?limit=1&limit=2")).code == "invalid_request"
    assert (await alice.get("/v1/sessions?colour=red")).code == "invalid_request"


async def test_lists_are_filtered(alice: Caller) -> None:
    async def names(query: str) -> set[str]:
        return {item["name"] for item in (await alice.get(f"/v1/sessions{query}")).json["items"]}

    assert await names("") == {"train", "waits"}
    assert await names("?status=PENDING,TERMINATED") == {"waits", "over"}
    assert await names("?status=PENDING&status=TERMINATED") == {"waits", "over"}
    assert await names("?status=all") == {"train", "waits", "over"}
    assert await names("/match?pattern=tra*") == {"train"}
    assert (await alice.get("/v1/sessions?status=HAPPY")).code == "invalid_request"
    assert (await alice.get("/v1/sessions?all=true")).code == "permission_denied"


async def test_an_administrator_acts_for_others(root: Caller, installation: Installation) -> None:
    assert (await root.get("/v1/sessions")).json["items"] == []
    assert len((await root.get("/v1/sessions?all=true")).json["items"]) == 2
    assert len((await root.get("/v1/sessions?owner_access_key=KEY-alice")).json["items"]) == 2
    assert (await root.get("/v1/sessions/train")).code == "session_not_found"
    assert (await root.get("/v1/sessions/train?owner_access_key=KEY-alice")).status == 200
    made = await root.post("/v1/sessions?owner_access_key=KEY-alice", NEW)
    assert made.json["access_key"] == "KEY-alice"
    mallory = installation.caller("mallory")
    assert (await mallory.get("/v1/sessions/train?owner_access_key=KEY-alice")).code == "permission_denied"
    assert (await mallory.get("/v1/sessions/train?owner_access_key=KEY-nobody")).code == "permission_denied"
    assert (await root.get("/v1/sessions/train?owner_access_key=KEY-nobody")).code == "keypair_not_found"
    assert (await mallory.get(f"/v1/sessions/{RUNNING}")).code == "session_not_found"


async def test_a_session_is_renamed_restarted_and_destroyed(alice: Caller) -> None:
    assert (await alice.post("/v1/sessions/train/rename", {"new_name": "best"})).json["name"] == "best"
    assert (await alice.post("/v1/sessions/best/rename", {"new_name": "waits"})).code == "name_taken"
    restarted = await alice.post("/v1/sessions/best/restart", {})
    assert (restarted.status, restarted.json["status"]) == (200, "RESTARTING")
    assert (await alice.post(f"/v1/sessions/{PENDING}/restart")).code == "session_not_ready"
    gone = await alice.ask("DELETE", f"/v1/sessions/{PENDING}?wait=5")
    assert (gone.status, gone.json["status"]) == (200, "CANCELLED")
    assert (await alice.ask("DELETE", f"/v1/sessions/{ENDED}")).status == 200
    forced = await alice.ask("DELETE", f"/v1/sessions/{RUNNING}?forced=true")
    assert forced.json["status"] == "TERMINATED"
    assert (await alice.ask("PATCH", f"/v1/sessions/{RUNNING}", {"tag": "x"})).code == "session_ended"


async def test_history_and_transit(alice: Caller) -> None:
    await alice.ask("DELETE", f"/v1/sessions/{PENDING}")
    history = (await alice.get(f"/v1/sessions/{PENDING}/status-history")).json["history"]
    assert [entry["status"] for entry in history] == ["PENDING", "CANCELLED"]
    assert history[1]["event"] == "destroy"
    unknown = "99999999-0000-7000-8000-000000000009"
    outcomes = (await alice.post("/v1/sessions/transit", {"session_ids": [str(RUNNING), unknown]})).json["outcomes"]
    assert outcomes[0]["before"] == outcomes[0]["after"] == "RUNNING"
    assert outcomes[0]["events"] == []
    assert outcomes[1]["error"] == "session_not_found"


async def test_statistics_and_completion(alice: Caller) -> None:
    assert (await alice.get("/v1/sessions/train/statistics")).json["cpu_seconds"] == 1.5
    assert (await alice.get("/v1/sessions/waits/statistics")).code == "session_not_ready"
    found = (await alice.post("/v1/sessions/train/complete", {"code": "pri", "row": 0, "col": 3})).json
    assert found == {"suggestions": ["print"], "start": 0, "end": 3}
    assert (await alice.post("/v1/sessions/train/interrupt", {})).json == {"interrupted": False}


async def test_head_is_get_without_a_body(alice: Caller) -> None:
    answer = await alice.ask("HEAD", "/v1/sessions/train")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 500
    assert "ETag" in answer.headers
