"""The front of inference.sh without containers: names, addresses, envelopes, and who is let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from domain.errors import InvalidRequest, PermissionDenied, SessionNotFound, from_code
from manager.compat.inference import InferenceFront, files
from manager.compat.inference.links import Link, Links
from manager.compat.inference.names import AppReference, parse_reference
from manager.compat.inference.problems import problem
from manager.vault import Vault
from tests.rest.conftest import Answer, Caller, Installation

FRONT = "/compat/inference"


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("blur", AppReference("blur")),
        ("acme/blur", AppReference("blur")),
        ("acme/blur@3", AppReference("blur", "3")),
        ("acme/blur@3:train", AppReference("blur", "3", "train")),
        ("blur:train", AppReference("blur", None, "train")),
    ],
)
def test_an_app_is_named(text: str, reference: AppReference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize("text", [None, 7, "", "a/b/c", "blur@", "@3", "blur:", "a b", "../x", "blur:2x", "é"])
def test_what_is_no_name_is_refused(text: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text)


# -- addresses ---------------------------------------------------------------------------------------------------------
def test_an_address_is_good_for_one_purpose_and_a_time(tmp_path: Path) -> None:
    now = 100.0
    (tmp_path / "vault.key").write_bytes(b"k" * 32)
    links = Links(lambda: Vault.of(tmp_path), now=lambda: now)
    link = Link(purpose="upload", access_key="KEY", path="1/x", size=3, until=200.0)
    token = next(token for _ in range(100) if (token := links.seal(link))[40].isalpha())
    assert links.open(token, "upload") == link
    with pytest.raises(PermissionDenied):
        links.open(token, "download")
    for broken in (token[:-2], token[:40] + token[40].swapcase() + token[41:], token[::-1], "", "!", "é"):
        with pytest.raises(PermissionDenied):
            links.open(broken, "upload")
    now = 200.5
    with pytest.raises(PermissionDenied, match="expired"):
        links.open(token, "upload")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.txt", "a.txt"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\x", "x"),
        ("..", "file"),
        ("", "file"),
        ("words and more.txt", "words_and_more.txt"),
        ("a\0b\n", "a_b_"),
        ("x" * 300, "x" * 120),
    ],
)
def test_a_file_name_is_tame(given: str, name: str) -> None:
    assert files.file_name(given) == name


# -- envelopes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("session_not_found", 404, "SESSION_NOT_FOUND"),
        ("session_expired", 410, "SESSION_EXPIRED"),
        ("session_ended", 410, "SESSION_ENDED"),
        ("unauthenticated", 401, "unauthorized"),
        ("scope_missing", 403, "insufficient_scope"),
        ("app_not_found", 404, "not_found"),
        ("quota_exceeded", 422, "limit_exceeded"),
        ("agent_unavailable", 503, "internal_error"),
    ],
)
def test_an_error_has_the_code_that_the_client_knows(code: str, status: int, said: str) -> None:
    answer = problem(from_code(code, "It is so."), "r1")
    assert isinstance(answer.body, bytes)
    body = orjson.loads(answer.body)
    assert (answer.status, body["status"], body["success"]) == (status, status, False)
    assert body["type"] == f"/errors/{said}"
    assert body["error"] == {"code": said, "message": body["detail"]}


@pytest.mark.parametrize("error", [SessionNotFound("x"), from_code("session_expired", "x")])
def test_programs_find_the_words_that_they_look_for(error: Any) -> None:
    answer = problem(error, "r1")
    assert isinstance(answer.body, bytes)
    assert "session not found" in orjson.loads(answer.body)["detail"].lower()


# -- the door ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def front(installation: Installation, tmp_path: Path) -> Installation:
    (tmp_path / "vault.key").write_bytes(b"k" * 32)
    links = Links(lambda: Vault.of(tmp_path))
    installation.door.mount({"inference": InferenceFront(installation.door, links)})
    return installation


def said(answer: Answer) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-Id"] == answer.json["request_id"]
    return answer.status, answer.json["error"]["code"]


async def test_nobody_is_let_in_without_a_key(front: Installation, nobody: Caller) -> None:
    for method, path in (("GET", "/sessions"), ("POST", "/apps/run"), ("GET", "/nosuch"), ("PATCH", "/sessions")):
        assert said(await nobody.ask(method, FRONT + path)) == (401, "unauthorized")


async def test_what_is_not_there_says_so(front: Installation) -> None:
    alice = front.caller("alice")
    assert said(await alice.get(f"{FRONT}/agents/run")) == (404, "not_found")
    assert said(await alice.get(f"{FRONT}")) == (404, "not_found")
    assert said(await alice.get(f"{FRONT}/tasks//stream")) == (400, "invalid_request")
    refused = await alice.ask("DELETE", f"{FRONT}/files")
    assert said(refused) == (405, "method_not_allowed")
    assert refused.headers["Allow"] == "POST"


NO_RUNS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"app": 7},
    {"app": "a/b/c"},
    {"app": "x", "session": "new", "session_timeout": 0},
    {"app": "x", "session": "new", "session_timeout": 3601},
    {"app": "x", "session": "new", "session_timeout": "60"},
    {"app": "x", "session": "new", "session_timeout": True},
    {"app": "x", "session_timeout": 60},
    {"app": "x", "function": 7},
    {"app": "x:one", "function": "two"},
    {"app": "x", "run_at": "2027-01-01"},
    {"app": "x", "webhook": "https://example.org"},
    {"app": "x", "setup": {"model": "large"}},
)


async def test_a_run_that_makes_no_sense_leaves_nothing_behind(front: Installation) -> None:
    alice = front.caller("alice")
    before = (await alice.get("/v1/sessions")).json
    for body in NO_RUNS:
        assert said(await alice.post(f"{FRONT}/apps/run", body)) == (400, "invalid_request"), body
    assert (await alice.get("/v1/sessions")).json == before


async def test_an_app_or_session_that_is_not_there_is_not_found(front: Installation) -> None:
    alice = front.caller("alice")
    for session in (None, "new"):
        answer = await alice.post(f"{FRONT}/apps/run", {"app": "nosuch", "input": {}, "session": session})
        assert said(answer) == (404, "not_found")
    for unknown in ("sess_abc123", "0197aaaa-0000-7000-8000-000000000000", 7):
        answer = await alice.post(f"{FRONT}/apps/run", {"app": "x", "input": {}, "session": unknown})
        assert said(answer) == (404, "SESSION_NOT_FOUND")
    running = "11111111-0000-7000-8000-000000000001"  # an interactive one
    assert said(await alice.get(f"{FRONT}/sessions/{running}")) == (404, "SESSION_NOT_FOUND")
    assert said(await alice.ask("DELETE", f"{FRONT}/sessions/{running}")) == (404, "SESSION_NOT_FOUND")
    assert (await alice.get(f"/v1/sessions/{running}")).json["status"] == "RUNNING"
    assert said(await alice.get(f"{FRONT}/tasks/nosuch")) == (404, "not_found")
    assert (await alice.get(f"{FRONT}/sessions")).json == {"data": [], "success": True}


NO_FILES: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"files": []},
    {"files": "x"},
    {"files": ["x"]},
    {"files": [{"filename": "x"}]},
    {"files": [{"filename": "x", "size": -1}]},
    {"files": [{"filename": 7, "size": 1}]},
)


async def test_files_that_make_no_sense_are_refused(front: Installation) -> None:
    for body in NO_FILES:
        answer = await front.caller("alice").post(f"{FRONT}/files", body)
        assert said(answer) == (400, "invalid_request"), body


async def test_an_address_that_nobody_gave_leads_nowhere(front: Installation, nobody: Caller) -> None:
    assert said(await nobody.ask("PUT", f"{FRONT}/files/upload/{'A' * 80}", data=b"x")) == (403, "forbidden")
    assert said(await nobody.get(f"{FRONT}/files/{'A' * 80}/x")) == (403, "forbidden")
