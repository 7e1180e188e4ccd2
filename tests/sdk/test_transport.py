"""Broken connections, busy servers, typed errors: each request happens once, each record arrives once."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import moorage
import pytest
from aiohttp import web
from moorage import aio, errors
from moorage.results import Record

from tests.sdk.scripted import (
    BASE,
    RUN,
    SESSION_ID,
    ScriptedServer,
    done,
    drops,
    events,
    lines,
    piece,
    record,
    refuses,
    says,
    session,
)

SESSIONS = "/v1/sessions"


def a_session(server: ScriptedServer, client: moorage.Client) -> moorage.Session:
    server.on("GET", f"{SESSIONS}/demo", says(session()))
    return client.sessions.get("demo")


def test_a_create_whose_answer_was_lost_is_sent_again_with_the_same_key(
    server: ScriptedServer, client: moorage.Client
) -> None:
    server.on("POST", SESSIONS, drops, drops, says(session(), 201))
    found = client.sessions.create("demo", image="python", cpu=1, mem="1g", gpu=0)
    sent = server.asked("POST", SESSIONS)
    assert found.status == "RUNNING"
    assert len(sent) == 3
    assert len({request.key for request in sent}) == 1
    assert sent[0].key
    assert sent[0].json == {"name": "demo", "image": "python", "resource_slots": {"cpu": 1, "mem": "1g"}}
    assert sent[0].headers["Authorization"] == "Bearer AKIA.secret"


def test_two_requests_have_two_keys(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", SESSIONS, says(session(), 201))
    client.sessions.create("demo")
    client.sessions.create("demo")
    first, second = server.asked("POST", SESSIONS)
    assert first.key != second.key


def test_a_busy_server_is_asked_again_after_retry_after(server: ScriptedServer, client: moorage.Client) -> None:
    busy = refuses(503, "database_unavailable", retry_after="0.01")
    server.on("GET", f"{SESSIONS}/demo", busy, busy, says(session()))
    assert client.sessions.get("demo").name == "demo"
    assert len(server.asked("GET", f"{SESSIONS}/demo")) == 3


@pytest.mark.parametrize("code", ["resource_unavailable", "storage_full"])
def test_what_waiting_has_been_tried_for_is_not_asked_again(
    server: ScriptedServer, client: moorage.Client, code: str
) -> None:
    server.on("POST", SESSIONS, refuses(503, code))
    with pytest.raises(errors.BY_CODE[code]):
        client.sessions.create("demo")
    assert len(server.asked("POST", SESSIONS)) == 1


@pytest.mark.parametrize("error", [e for e in errors.BY_CODE.values() if not e.retryable], ids=lambda e: e.code)
def test_every_code_of_the_server_has_its_class(
    server: ScriptedServer, client: moorage.Client, error: type[errors.MoorageError]
) -> None:
    server.on("GET", f"{SESSIONS}/demo", refuses(error.http_status, error.code, "as it is", status_now="ERROR"))
    with pytest.raises(errors.MoorageError) as caught:
        client.sessions.get("demo")
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.request_id, str(caught.value)) == (error.code, "req-1", "as it is")
    assert caught.value.facts == {"status_now": "ERROR"}


def test_a_code_from_the_future_is_still_an_error_with_its_code(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("GET", f"{SESSIONS}/demo", refuses(418, "teapot", "short and stout"))
    with pytest.raises(errors.MoorageError, match="short and stout") as caught:
        client.sessions.get("demo")
    assert (caught.value.code, caught.value.http_status) == ("teapot", 418)


def test_a_proxy_without_a_server_behind_it_is_asked_again(server: ScriptedServer, client: moorage.Client) -> None:
    async def bad_gateway(request: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<html>Bad Gateway</html>")

    server.on("GET", f"{SESSIONS}/demo", bad_gateway, says(session()))
    assert client.sessions.get("demo").name == "demo"


def test_nobody_there_is_said_at_once_and_with_what_to_do() -> None:
    with (
        moorage.Client("http://127.0.0.1:9", "a", "b") as client,
        pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:9.*moorage status"),
    ):
        client.whoami()


def test_an_answer_of_something_else_is_not_taken_for_one(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("GET", "/v1/whoami", says([1]))
    with pytest.raises(errors.UnexpectedAnswer):
        client.whoami()


# -- output -------------------------------------------------------------------------------------------------------
def test_a_stream_that_breaks_is_taken_up_where_it_broke(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    server.on("POST", f"{BASE}/execute", lines(RUN, record(0, "a"), record(1, "b"), then_drop=True))
    server.on(
        "GET",
        f"{BASE}/executions/r1",
        drops,
        lines(RUN, record(1, "b"), record(2, "c"), torn='{"seq":3,"ki', then_drop=True),
        lines(record(3, "d"), done(4)),
    )
    seen: list[str] = []
    result = s.run_code("work()", on_stdout=seen.append)
    assert result.stdout == "abcd"
    assert seen == ["a", "b", "c", "d"]
    assert (result.run_id, result.exit_code, result.status) == ("r1", 0, "done")
    assert [request.query["from_seq"] for request in server.asked("GET", f"{BASE}/executions/r1")] == ["2", "2", "3"]
    assert len(server.asked("POST", f"{BASE}/execute")) == 1


def test_an_execution_whose_start_was_lost_is_started_again_with_its_key(
    server: ScriptedServer, client: moorage.Client
) -> None:
    s = a_session(server, client)
    server.on("POST", f"{BASE}/execute", drops, lines(then_drop=True), lines(RUN, record(0, "x"), done(1)))
    assert s.run_code("once()").stdout == "x"
    sent = server.asked("POST", f"{BASE}/execute")
    assert len({request.key for request in sent}) == 1
    assert len(sent) == 3


def test_a_stream_that_ends_without_an_end_is_taken_up_too(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    server.on("POST", f"{BASE}/execute", lines(RUN, record(0, "a")))
    server.on("GET", f"{BASE}/executions/r1", lines(record(1, "b"), done(2)))
    assert s.commands.run(["echo", "a b"]).stdout == "ab"
    assert server.asked("POST", f"{BASE}/execute")[0].json == {
        "code": "echo 'a b'",
        "mode": "batch",
        "opts": {"stdin": False},
    }


def test_a_failure_within_a_stream_is_raised(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    lost = {"code": "runner_lost", "status": 502, "detail": "The runner is gone."}
    server.on("POST", f"{BASE}/execute", lines(RUN, record(0, "a"), lost))
    with pytest.raises(errors.RunnerLost, match="gone"):
        s.run_code("work()")


def test_a_gap_is_reported_as_a_range(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    gap = record(1, kind="gap", first=1, last=7)
    server.on("POST", f"{BASE}/execute", lines(RUN, record(0, "a"), gap, record(8, "z"), done(9)))
    result = s.run_code("much()")
    assert (result.stdout, result.gaps, result.next_seq) == ("az", [(1, 7)], 10)


def test_everything_of_a_run_is_in_its_result(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    server.on(
        "POST",
        f"{BASE}/execute",
        lines(
            RUN,
            record(0, "out"),
            record(1, "err", kind="stderr"),
            record(2, kind="result", **{"text/plain": "2"}),
            record(3, kind="error", ename="ValueError", evalue="bad", traceback=["Traceback", "ValueError: bad"]),
            done(4, exit_code=1),
        ),
    )
    result = s.run_code("f()")
    assert (result.stdout, result.stderr, result.results) == ("out", "err", [{"text/plain": "2"}])
    assert (result.error and result.error.ename, result.ok, result.text) == ("ValueError", False, "2")
    with pytest.raises(errors.CommandFailed, match="ValueError: bad"):
        result.check()


def test_input_is_asked_of_the_caller(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    asks = record(0, kind="input_request", prompt="name? ", password=False)
    server.on("POST", f"{BASE}/execute", lines(RUN, asks, then_drop=True), says({"run_id": "r1", "status": "running"}))
    server.on("GET", f"{BASE}/executions/r1", lines(record(1, "hi Ada"), done(2)))
    assert s.run_code("input()", on_input=lambda asked: f"Ada ({asked.prompt})").stdout == "hi Ada"
    fed = server.asked("POST", f"{BASE}/execute")[1].json
    assert (fed["mode"], fed["run_id"], fed["code"]) == ("input", "r1", "Ada (name? )\n")


def test_waiting_for_an_execution_gives_up_in_time_and_leaves_it_running(
    server: ScriptedServer, client: moorage.Client
) -> None:
    s = a_session(server, client)
    server.on("GET", f"{BASE}/executions/r1", lines(RUN, record(0, "a")))
    with pytest.raises(errors.WaitTimeout, match="runs on"):
        s.executions.get("r1").wait(timeout=0.2)
    assert not server.asked("POST", f"{BASE}/executions/r1/kill")


# -- lists, events, files ---------------------------------------------------------------------------------------------
def test_lists_go_on_to_the_last_page(server: ScriptedServer, client: moorage.Client) -> None:
    pages = [
        says({"items": [session(name="one"), session(name="two")], "next_cursor": "c1"}),
        drops,
        says({"items": [session(name="three")], "next_cursor": None}),
    ]
    server.on("GET", SESSIONS, *pages)
    assert [s.name for s in client.sessions.list(status=["RUNNING", "PENDING"])] == ["one", "two", "three"]
    asked = server.asked("GET", SESSIONS)
    assert [request.query.get("cursor") for request in asked] == [None, "c1", "c1"]
    assert asked[0].query["status"] == "RUNNING,PENDING"


def test_a_list_is_fetched_as_it_is_looked_at(server: ScriptedServer, client: moorage.Client) -> None:
    first = says({"items": [{"id": "u1", "email": "a@b.c"}, {"id": "u2", "email": "b@b.c"}], "next_cursor": "c1"})
    server.on("GET", "/v1/users", first, says({"items": [{"id": "u3", "email": "c@b.c"}], "next_cursor": None}))
    users = client.users.iterate()
    assert [next(users).email, next(users).email] == ["a@b.c", "b@b.c"]
    assert len(server.asked("GET", "/v1/users")) == 1
    assert [user.email for user in users] == ["c@b.c"]
    assert [user.email for user in client.users.list(limit=1)] == ["c@b.c"]


def test_a_limited_list_asks_for_no_more(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("GET", SESSIONS, says({"items": [session(name="one"), session(name="two")], "next_cursor": "c1"}))
    assert len(client.sessions.list(limit=2)) == 2
    assert [request.query["limit"] for request in server.asked("GET", SESSIONS)] == ["2"]


def test_events_go_on_after_the_last_one_seen(server: ScriptedServer, client: moorage.Client) -> None:
    at = {"at": "2026-01-01T00:00:00Z"}
    server.on(
        "GET",
        "/v1/events",
        events(("1.1", "session.created", at), ("1.2", "session.running", at), then_drop=True),
        events(("1.2", "closing", {})),
        events(("1.3", "session.terminated", at | {"session_id": SESSION_ID})),
    )
    found = client.events()
    seen = [next(found) for _ in range(3)]
    found.close()
    assert [event.type for event in seen] == ["session.created", "session.running", "session.terminated"]
    assert server.asked("GET", "/v1/events")[1].headers["Last-Event-ID"] == "1.2"


def test_a_download_that_breaks_goes_on_with_a_range(
    server: ScriptedServer, client: moorage.Client, tmp_path: Path
) -> None:
    s, content = a_session(server, client), bytes(range(256)) * 40
    server.on("GET", f"{BASE}/files/out/a.bin", piece(content, break_after=5000), piece(content))
    server.on("POST", f"{BASE}/files/manage", says({"file": {"name": "a.bin", "type": "file", "size": 10240}}))
    assert s.files.download("out/a.bin", tmp_path) == tmp_path / "a.bin"
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    again = server.asked("GET", f"{BASE}/files/out/a.bin")[1]
    assert again.headers["Range"].startswith("bytes=")


def test_a_file_that_changed_in_between_is_not_glued_together(server: ScriptedServer, client: moorage.Client) -> None:
    s, content = a_session(server, client), b"x" * 10000
    server.on("GET", f"{BASE}/files/a", piece(content, break_after=5000), piece(content, etag='"2"'))
    with pytest.raises(errors.TransferFailed, match="changed"):
        s.files.read("a")


def test_an_archive_that_breaks_is_begun_anew(server: ScriptedServer, client: moorage.Client, tmp_path: Path) -> None:
    s, content = a_session(server, client), bytes(range(256)) * 40
    server.on("POST", f"{BASE}/files/archive", piece(content, break_after=5000), piece(content))
    seen: list[int] = []
    s.files.download(["a", "b"], tmp_path / "both.tar", on_progress=lambda fetched, total: seen.append(fetched))
    assert (tmp_path / "both.tar").read_bytes() == content
    assert (seen[-1], len(server.asked("POST", f"{BASE}/files/archive"))) == (10240, 2)


def test_an_upload_that_breaks_is_sent_again_whole(server: ScriptedServer, client: moorage.Client) -> None:
    s, content = a_session(server, client), b"0123456789" * 1000
    server.on("PUT", f"{BASE}/files/%2Ftmp/a%20b", drops, says({"name": "a b", "type": "file", "size": 10000}, 201))
    assert s.files.write("/tmp/a b", io.BytesIO(content)).size == 10000
    first, second = server.asked("PUT", f"{BASE}/files/%2Ftmp/a%20b")
    assert first.key == second.key
    assert second.body == content
    assert second.headers["X-Content-Sha256"] == hashlib.sha256(content).hexdigest()


def test_dots_in_paths_reach_the_server_as_they_are(server: ScriptedServer, client: moorage.Client) -> None:
    s = a_session(server, client)
    with pytest.raises(errors.RouteNotFound):
        s.files.read("../../v1/whoami")
    assert server.seen[-1].path == f"{BASE}/files/%2E%2E/%2E%2E/v1/whoami"


# -- sessions ---------------------------------------------------------------------------------------------------------
def test_a_session_is_destroyed_at_the_end_of_its_block(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", SESSIONS, says(session(), 201))
    server.on("DELETE", BASE, says(session(status="TERMINATED")))
    with pytest.raises(ZeroDivisionError), client.sessions.create() as s:
        assert s.status == "RUNNING"
        raise ZeroDivisionError
    assert s.status == "TERMINATED"


def test_a_session_that_ended_before_it_ran_says_why(server: ScriptedServer, client: moorage.Client) -> None:
    ended = session(status="ERROR", status_reason="the image could not be fetched")
    server.on("POST", SESSIONS, says(session(status="PENDING"), 201))
    server.on("GET", BASE, says(session(status="PULLING")), says(ended))
    with pytest.raises(errors.SessionEnded, match="could not be fetched"):
        client.sessions.create()


def test_a_session_that_was_not_waited_for_is_not_left_behind(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", SESSIONS, says(session(status="PENDING"), 201))
    server.on("GET", BASE, says(session(status="PENDING")))
    server.on("DELETE", BASE, says(session(status="CANCELLED")))
    with pytest.raises(errors.WaitTimeout, match="PENDING, not RUNNING"):
        client.sessions.create(wait=0.1)
    assert len(server.asked("DELETE", BASE)) == 1


def test_a_session_that_was_there_before_is_left_alone(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", SESSIONS, says(session(status="PENDING"), 200))
    server.on("GET", BASE, says(session(status="PENDING")))
    with pytest.raises(errors.WaitTimeout):
        client.sessions.ensure("demo", wait=0.1)
    assert server.asked("POST", SESSIONS)[0].json["reuse_if_exists"] is True
    assert not server.asked("DELETE", BASE)


def test_a_session_that_was_about_to_end_is_made_anew(server: ScriptedServer, client: moorage.Client) -> None:
    ending, ended = session(status="TERMINATING"), session(status="TERMINATED", status_reason="idle")
    server.on("POST", SESSIONS, says(ending, 200), says(session(), 201))
    server.on("GET", BASE, says(ending), says(ended))
    made = client.sessions.ensure("demo")
    assert (made.status, made.created) == ("RUNNING", True)
    first, second = server.asked("POST", SESSIONS)
    assert first.key != second.key
    assert first.json == second.json


def test_what_was_made_by_this_call_and_ended_is_not_made_again(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("POST", SESSIONS, says(session(status="PENDING"), 201))
    server.on("GET", BASE, says(session(status="ERROR", status_reason="the image could not be fetched")))
    with pytest.raises(errors.SessionEnded, match="could not be fetched"):
        client.sessions.ensure("demo")
    assert len(server.asked("POST", SESSIONS)) == 1


def test_an_unchanged_session_is_not_sent_again(server: ScriptedServer, client: moorage.Client) -> None:
    server.on("GET", f"{SESSIONS}/demo", says(session(), ETag='"7"'))
    server.on("GET", BASE, says(None, 304))
    s = client.sessions.get("demo").refresh()
    assert server.seen[-1].headers["If-None-Match"] == '"7"'
    server.on("PATCH", BASE, refuses(412, "precondition_failed"))
    with pytest.raises(errors.PreconditionFailed):
        s.modify(tag="x", if_unchanged=True)
    assert server.seen[-1].headers["If-Match"] == '"7"'


# -- the async side -----------------------------------------------------------------------------------------------------
async def test_the_async_side_does_the_same(server: ScriptedServer, aclient: aio.Client) -> None:
    server.on("POST", SESSIONS, drops, says(session(), 201))
    server.on("DELETE", BASE, says(session(status="TERMINATED")))
    server.on("POST", f"{BASE}/execute", lines(RUN, record(0, "a"), then_drop=True))
    server.on("GET", f"{BASE}/executions/r1", lines(record(1, "b"), done(2)))
    seen: list[str] = []

    async def on_stdout(text: str) -> None:
        seen.append(text)

    async with aclient.sessions.create("demo") as s:
        result = await s.run_code("work()", on_stdout=on_stdout)
        found: list[Record] = [record async for record in s.executions.get("r1").output(from_seq=1)]
    assert (result.stdout, seen) == ("ab", ["a", "b"])
    assert [item.kind for item in found] == ["stdout", "done"]
    assert s.status == "TERMINATED"


async def test_a_created_session_can_be_awaited_instead(server: ScriptedServer, aclient: aio.Client) -> None:
    server.on("POST", SESSIONS, says(session(), 201))
    s = await aclient.sessions.create("demo")
    assert s.name == "demo"
    assert not server.asked("DELETE", BASE)
