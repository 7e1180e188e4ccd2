"""Explanations and dry runs at the REST door."""

from __future__ import annotations

import pytest

from tests.rest.conftest import Caller

CREATE = {"image": "python", "name": "fresh", "resource_slots": {"cpu": 1, "mem": 512}}


async def test_a_session_is_explained(alice: Caller) -> None:
    told = (await alice.get("/v1/sessions/train/explain?host_limit=0&search=false")).json
    assert (told["name"], told["status"], told["code"]) == ("train", "RUNNING", "running")
    assert told["text"].startswith("It runs on ")
    assert told["per_host"] == told["ways"] == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/sessions/nothing/explain", "session_not_found"),
        ("/v1/sessions/train/explain?host_limit=1001", "invalid_request"),
        ("/v1/sessions/train/explain?colour=red", "invalid_request"),
    ],
)
async def test_what_is_refused(alice: Caller, path: str, code: str) -> None:
    assert (await alice.get(path)).code == code


async def test_a_dry_run_leaves_nothing_and_uses_no_key(alice: Caller) -> None:
    key = {"Idempotency-Key": "once"}
    dry = await alice.post("/v1/sessions?dry_run=true", CREATE, headers=key)
    assert dry.status == 200
    assert (dry.json["name"], dry.json["session_id"], dry.json["status"]) == ("fresh", None, None)
    assert dry.json["code"]
    assert (await alice.get("/v1/sessions/fresh")).code == "session_not_found"
    assert (await alice.post("/v1/sessions", CREATE, headers=key)).status == 201
    again = await alice.post("/v1/sessions?dry_run=true", CREATE, headers=key)
    assert again.code == "name_taken"


async def test_what_a_creation_would_be_refused_for(alice: Caller) -> None:
    assert (await alice.post("/v1/sessions?dry_run=perhaps", CREATE)).code == "invalid_request"
    assert (await alice.post("/v1/sessions?dry_run=true", {**CREATE, "image": "nosuch"})).code == "image_not_found"
    gang = await alice.post("/v1/sessions/cluster?dry_run=true", {**CREATE, "workers": 2})
    assert (gang.status, gang.json["session_id"]) == (200, None)
    template = await alice.post("/v1/sessions/from-template?dry_run=true", {"template": "nosuch"})
    assert template.code == "template_not_found"
