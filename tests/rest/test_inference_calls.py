"""Tasks of the front of inference.sh in a warm session, on a host that does what the test says."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from domain.apps import AppDefinition
from manager.compat.inference import InferenceFront, following
from manager.compat.inference.links import Links
from manager.vault import Vault
from repositories.database import Database
from tests.rest.conftest import IMAGE, RUNNING, Answer, Caller, Installation
from tests.rest.host import Run

FRONT = "/compat/inference"
APP = UUID("22222222-0000-7000-8000-000000000001")


@pytest.fixture
async def warm(installation: Installation, database: Database, tmp_path: Path) -> Installation:
    """Alice's running session has loaded the app `blur`."""
    definition = AppDefinition(image=IMAGE, entry="app:App").to_json()
    said = {"id": str(APP), "name": "blur", "version": 1, **definition}
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO apps (id, name, user_id, created_by) VALUES ($1, 'blur', $2, $2)", APP, UUID(int=1)
        )
        await connection.execute(
            "INSERT INTO app_versions (app_id, version, definition, by_access_key) VALUES ($1, 1, $2, 'KEY-alice')",
            APP,
            definition,
        )
        await connection.execute(
            "UPDATE sessions SET session_type = 'worker', idle_timeout_seconds = 60 WHERE id = $1", RUNNING
        )
        await connection.execute(
            """
            INSERT INTO workers (session_id, app_id, app_version, app, ready_attempt, ready_at)
            SELECT $1, $2, 1, $3, attempt, now() FROM sessions WHERE id = $1
            """,
            RUNNING,
            APP,
            said,
        )
    (tmp_path / "vault.key").write_bytes(b"k" * 32)
    front = InferenceFront(installation.door, Links(lambda: Vault.of(tmp_path)))
    installation.door.mount({"inference": front})
    return installation


async def called(warm: Installation, caller: Caller, **more: Any) -> tuple[dict[str, Any], Run]:
    """A task that has come to the host."""
    warm.host.started.clear()
    answer = await caller.post(f"{FRONT}/apps/run", {"app": "blur", "input": {}, "session": str(RUNNING), **more})
    assert answer.status == 200, answer.body
    await warm.host.started.wait()
    task = answer.json["data"]
    return task, warm.host.runs[task["id"]]


async def lines_of(caller: Caller, task: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with caller.request("GET", f"{FRONT}/tasks/{task['id']}/stream") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        async for line in response.content:
            yield orjson.loads(line)


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


async def test_a_task_is_told_of_as_it_goes_on(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, run = await called(warm, alice, function="train", input={"n": 1})
    assert task["status"] == 7
    assert task["session_id"] == str(RUNNING)
    assert (run.mode, orjson.loads(run.code)) == ("call", {"function": "train", "input": {"n": 1}})
    lines = lines_of(alice, task)
    assert (await anext(lines))["status"] == 7
    run.say("stdout", b"half way\n")
    assert "".join(log["content"] for log in (await anext(lines))["logs"]) == "half way\n"
    run.say("result", {"partial": {"at": 1}})
    told = await anext(lines)
    assert (told["status"], told["output"]) == (7, {"at": 1})
    run.say("result", {"output": {"at": 2}})
    run.end()
    last = [told async for told in lines][-1]
    assert (last["status"], last["output"], last["input"], last["error"]) == (10, {"at": 2}, {"n": 1}, None)
    assert last["logs"][0]["content"] == "half way\n"
    known = (await alice.get(f"{FRONT}/tasks/{task['id']}")).json["data"]
    assert (known["status"], known["output"], known["logs"]) == (10, {"at": 2}, last["logs"])
    session = (await alice.get(f"{FRONT}/sessions/{RUNNING}")).json["data"]
    assert (session["status"], session["call_count"], session["idle_timeout"]) == ("active", 1, 60)
    assert session["app"] == "blur@1"


async def test_what_a_quick_task_has_yielded_is_told_afterwards(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, run = await called(warm, alice)
    for number in range(3):
        run.say("result", {"partial": number})
    run.say("result", {"output": 3})
    run.end()
    assert (await alice.get(f"{FRONT}/tasks/{task['id']}?wait")).status == 200
    told = [(line["status"], line["output"]) async for line in lines_of(alice, task)]
    assert [one for one in told if one[1] is not None] == [(7, 0), (7, 1), (7, 2), (10, 3)]


async def test_what_fails_says_how(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, run = await called(warm, alice)
    run.say("error", {"ename": "ValueError", "evalue": "no", "traceback": ["line 1"]})
    run.end(1)
    last = [told async for told in lines_of(alice, task)][-1]
    assert (last["status"], last["error"], last["output"]) == (11, "ValueError: no\nline 1", None)


async def test_a_task_that_is_cancelled_ends_so(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, _ = await called(warm, alice)
    assert (await alice.post(f"{FRONT}/tasks/{task['id']}/cancel")).status == 200
    assert [told async for told in lines_of(alice, task)][-1]["status"] == 12
    assert (await alice.ask("DELETE", f"{FRONT}/tasks/{task['id']}")).status == 204
    assert code_of(await alice.get(f"{FRONT}/tasks/{task['id']}")) == (404, "not_found")


async def test_a_silent_task_is_told_of_all_the_same(warm: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "UPDATE_SECONDS", 0.05)
    alice = warm.caller("alice")
    task, run = await called(warm, alice)
    lines = lines_of(alice, task)
    times = [(await anext(lines))["updated_at"] for _ in range(4)]
    assert times == sorted(set(times))  # updates, and no heartbeats
    run.end(1)
    assert [told async for told in lines][-1]["status"] == 11


async def test_an_output_too_long_for_a_line_is_had_by_asking(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, run = await called(warm, alice)
    run.say("result", {"output": "x" * 200_000})
    run.end()
    assert [told["status"] async for told in lines_of(alice, task) if told["status"] == 10] == []
    assert len((await alice.get(f"{FRONT}/tasks/{task['id']}")).json["data"]["output"]) == 200_000


async def test_what_is_anothers_is_not_there(warm: Installation) -> None:
    alice, mallory = warm.caller("alice"), warm.caller("mallory")
    task, run = await called(warm, alice)
    asked = {"app": "blur", "input": {}, "session": str(RUNNING)}
    assert code_of(await mallory.post(f"{FRONT}/apps/run", asked)) == (404, "SESSION_NOT_FOUND")
    for method, path, code in (
        ("GET", f"/sessions/{RUNNING}", "SESSION_NOT_FOUND"),
        ("DELETE", f"/sessions/{RUNNING}", "SESSION_NOT_FOUND"),
        ("POST", f"/sessions/{RUNNING}/keepalive", "SESSION_NOT_FOUND"),
        ("GET", f"/tasks/{task['id']}", "not_found"),
        ("GET", f"/tasks/{task['id']}/stream", "not_found"),
        ("GET", f"/tasks/{task['id']}/files", "not_found"),
        ("POST", f"/tasks/{task['id']}/cancel", "not_found"),
        ("DELETE", f"/tasks/{task['id']}", "not_found"),
    ):
        assert code_of(await mallory.ask(method, FRONT + path)) == (404, code), path
    assert run.done is None
    run.end(1)


async def test_a_session_keeps_to_its_app(warm: Installation) -> None:
    alice = warm.caller("alice")
    for app, code in (("other", "APP_MISMATCH"), ("blur@2", "VERSION_MISMATCH")):
        asked = {"app": app, "input": {}, "session": str(RUNNING)}
        assert code_of(await alice.post(f"{FRONT}/apps/run", asked)) == (409, code)
    assert warm.host.runs == {}
    task, run = await called(warm, alice, app="anybody/blur@1")
    assert (await alice.ask("DELETE", f"{FRONT}/tasks/{task['id']}")).status == 400  # it is not over
    run.end(1)


async def test_an_input_that_is_too_large_never_comes_to_the_host(warm: Installation) -> None:
    alice = warm.caller("alice")
    for size in (5 << 20, 20 << 20):  # more than an input may be, and more than is read
        asked = orjson.dumps({"app": "blur", "input": "x" * size, "session": str(RUNNING)})
        json = {"Content-Type": "application/json"}
        answer = await alice.ask("POST", f"{FRONT}/apps/run", data=io.BytesIO(asked), headers=json)
        assert code_of(answer) == (413, "limit_exceeded")
    assert warm.host.runs == {}


async def test_a_reader_that_vanishes_takes_nothing_with_it(warm: Installation) -> None:
    alice = warm.caller("alice")
    task, run = await called(warm, alice)
    async with alice.request("GET", f"{FRONT}/tasks/{task['id']}/stream") as response:
        await response.content.readline()
        response.close()
    reading = asyncio.create_task(_last(alice, task))
    run.say("result", {"output": "there"})
    run.end()
    assert (await reading)["output"] == "there"


async def _last(caller: Caller, task: dict[str, Any]) -> dict[str, Any]:
    return [told async for told in lines_of(caller, task)][-1]


async def test_a_session_that_has_ended_says_so(warm: Installation) -> None:
    alice = warm.caller("alice")
    assert (await alice.ask("DELETE", f"{FRONT}/sessions/{RUNNING}")).status == 204
    asked = {"app": "blur", "input": {}, "session": str(RUNNING)}
    assert code_of(await alice.post(f"{FRONT}/apps/run", asked)) == (410, "SESSION_ENDED")
    assert code_of(await alice.post(f"{FRONT}/sessions/{RUNNING}/keepalive")) == (410, "SESSION_ENDED")
    assert (await alice.ask("DELETE", f"{FRONT}/sessions/{RUNNING}")).status == 204  # a second time as well
    assert (await alice.get(f"{FRONT}/sessions/{RUNNING}")).json["data"]["status"] == "ended"
