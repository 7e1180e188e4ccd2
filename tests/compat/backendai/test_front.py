"""The session functions over a host in memory: shapes, hostile input, what is kept between requests."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from actions import SetSigningAction
from repositories.upkeep import stamp_events
from tests.compat.backendai.fakes import Fronted, alice, fronted, root  # noqa: F401  # fixtures
from tests.compat.backendai.signer import Answer, Signer
from tests.rest.conftest import RUNNING

pytestmark = pytest.mark.usefixtures("fronted")
WS = "/stream/session/train/execute"


async def kept(fronted: Fronted) -> int:  # noqa: F811
    async with fronted.database.reader() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM run_readers"))


# -- looked at and changed -----------------------------------------------------------------------------------------------
async def test_info_has_the_keys_that_the_client_knows(alice: Signer) -> None:  # noqa: F811
    info = (await alice.ask("GET", "/session/train")).json
    assert {
        "domainName", "groupId", "userId", "lang", "image", "architecture", "registry", "tag", "containerId",
        "occupiedSlots", "occupyingSlots", "requestedSlots", "occupiedShares", "environ", "resourceOpts", "status",
        "statusInfo", "statusData", "age", "creationTime", "terminationTime", "numQueriesExecuted", "lastStat",
        "idleChecks",
    } <= info.keys()  # fmt: skip
    assert info["requestedSlots"] == "{'cpu': Decimal('1.5'), 'mem': Decimal('536870912')}"
    assert (info["status"], info["environ"], info["userId"]) == ("RUNNING", "{}", str(UUID(int=1)))
    by_id = (await alice.ask("GET", f"/session/{RUNNING}")).json
    assert by_id["name"] == "train"


async def test_a_name_is_changed_and_a_bad_one_is_not(alice: Signer) -> None:  # noqa: F811
    assert (await alice.ask("POST", "/session/train/rename?name=x")).prob == "invalid-api-params"
    assert (await alice.ask("POST", "/session/train/rename")).prob == "invalid-api-params"
    assert (await alice.ask("POST", "/session/train/rename?name=waits")).prob == "session-already-exists"
    assert (await alice.ask("POST", "/session/train/rename?name=better")).status == 204
    assert (await alice.ask("GET", "/session/better")).status == 200


async def test_sessions_are_found_by_the_beginning_of_their_name(alice: Signer) -> None:  # noqa: F811
    found = (await alice.ask("GET", "/session/_/match?id=tra")).json
    assert found == {"matches": [{"id": str(RUNNING), "name": "train", "status": "RUNNING"}]}
    assert (await alice.ask("GET", "/session/_/match?id=nope")).json == {"matches": []}
    assert (await alice.ask("GET", "/session/_/match")).prob == "invalid-api-params"


async def test_the_end_comes_with_figures(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    stats = (await alice.ask("DELETE", "/session/train?forced=true")).json["stats"]
    assert stats["status"] == "terminated"
    assert stats["version"] == 2
    assert stats["cpu_used"]["current"] == "1500"
    assert stats["mem"]["unit_hint"] == "bytes"
    answer = await alice.ask("POST", "/session/train", {"mode": "query", "code": "print(1)"})
    assert answer.prob == "object-not-found"


# -- created -------------------------------------------------------------------------------------------------------------
def wanted(**changes: Any) -> dict[str, Any]:
    """As the SDK sends it."""
    config: Any = {
        "mounts": [], "environ": None, "resources": {"cpu": "1", "mem": "512m"}, "resource_opts": {},
        "scalingGroup": None, "mount_map": {}, "preopen_ports": None,
    }  # fmt: skip
    given = changes.pop("config", {})
    config = config | given if isinstance(given, dict) else given
    return {
        "tag": None, "name": "made", "config": config, "dependencies": None, "callback_url": None,
        "architecture": "x86_64", "clusterSize": 1, "clusterMode": "single-node", "starts_at": None,
        "bootstrap_script": None, "owner_access_key": None, "domain": "default", "group": "default",
        "type": "interactive", "enqueueOnly": True, "maxWaitSeconds": 0, "reuseIfExists": True,
        "startupCommand": None, "image": "python", **changes,
    }  # fmt: skip


async def test_one_that_waits_is_told_so(alice: Signer) -> None:  # noqa: F811
    config = {"environ": {"A": 1}, "resource_opts": {"shmem": "64m"}, "preopen_ports": ["8000"]}
    answer = await alice.ask("POST", "/session", wanted(config=config, tag="blue"))
    assert answer.status == 201, answer.body
    told = answer.json
    assert (told["sessionName"], told["status"], told["created"]) == ("made", "PENDING", True)
    assert {"name": "8000", "protocol": "preopen", "ports": [8000]} in told["servicePorts"]
    info = (await alice.ask("GET", f"/session/{told['sessionId']}")).json
    assert (info["tag"], info["environ"], info["resourceOpts"]) == ("blue", "{'A': '1'}", "{'shmem': '67108864'}")
    again = await alice.ask("POST", "/session", wanted())
    assert (again.json["created"], again.json["sessionId"]) == (False, told["sessionId"])
    waited = await alice.ask("POST", "/session", wanted(name="made-two", enqueueOnly=False, maxWaitSeconds=0.2))
    assert waited.json["status"] == "TIMEOUT"


async def test_a_name_that_is_taken_is_told_with_the_id(alice: Signer) -> None:  # noqa: F811
    answer = await alice.ask("POST", "/session", wanted(name="train", reuseIfExists=False))
    assert (answer.status, answer.prob) == (400, "session-already-exists")
    assert answer.json["data"] == {"existingSessionId": str(RUNNING)}


async def test_memory_is_read_as_the_client_writes_it(alice: Signer) -> None:  # noqa: F811
    half, whole = 512 << 20, 1 << 30
    for memory, slots in ("512m", half), (half, half), (str(half), half), ("1g", whole), ("512MiB", half):
        body = wanted(name=None, config={"resources": {"cpu": 1, "mem": memory}})
        made = (await alice.ask("POST", "/session", body)).json
        info = (await alice.ask("GET", f"/session/{made['sessionId']}")).json
        assert info["requestedSlots"] == f"{{'cpu': Decimal('1'), 'mem': Decimal('{slots}')}}", memory


IMPOSSIBLE: Any = [
    (wanted(type="nonsense"), 400, "invalid-api-params"),
    (wanted(image="nope/nope:1"), 404, "object-not-found"),
    (wanted(image=None), 400, "invalid-api-params"),
    (wanted(name="x"), 400, "invalid-api-params"),
    (wanted(name=5), 400, "invalid-api-params"),
    (wanted(config="all"), 400, "invalid-api-params"),
    (wanted(clusterSize=-1), 400, "invalid-api-params"),
    (wanted(clusterMode="both"), 400, "invalid-api-params"),
    (wanted(starts_at="tomorrow"), 400, "invalid-api-params"),
    (wanted(maxWaitSeconds="long"), 400, "invalid-api-params"),
    (wanted(dependencies="one"), 400, "invalid-api-params"),
    (wanted(dependencies=["no-such"]), 404, "object-not-found"),
    (wanted(type="batch"), 400, "invalid-api-params"),
    (wanted(group="nobodys"), 404, "object-not-found"),
    (wanted(domain="elsewhere"), 403, "generic-forbidden"),
    (wanted(owner_access_key="KEY-root"), 403, "generic-forbidden"),
    (wanted(config={"resources": {"cpu": "many"}}), 400, "invalid-api-params"),
    (wanted(config={"resources": {"cuda.shares": "0.5"}}), 400, "invalid-api-params"),
    (wanted(config={"resources": [1]}), 400, "invalid-api-params"),
    (wanted(config={"mounts": ["no-such"]}), 404, "object-not-found"),
    (wanted(config={"agentList": ["a", "b"]}), 400, "invalid-api-params"),
    (wanted(config={"environ": {"A B": "c"}}), 400, "invalid-api-params"),
    (wanted(config={"preopen_ports": ["http"]}), 400, "invalid-api-params"),
]


async def test_what_cannot_be_made_leaves_nothing(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    for body, status, prob in IMPOSSIBLE:
        answer = await alice.ask("POST", "/session", body)
        assert (answer.status, answer.prob) == (status, prob), (body, answer.body)
    async with fronted.database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 3


async def test_an_administrator_makes_one_for_somebody(root: Signer, alice: Signer) -> None:  # noqa: F811
    made = (await root.ask("POST", "/session", wanted(owner_access_key="KEY-alice"))).json
    assert (await alice.ask("GET", f"/session/{made['sessionId']}")).status == 200


# -- run -----------------------------------------------------------------------------------------------------------------
async def test_a_run_that_ends_at_once_leaves_nothing_behind(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    result = await alice.run(code="print(1)")
    assert (result["status"], result["console"], result["exitCode"], result["files"]) == (
        "finished",
        [["stdout", "1\n"]],
        0,
        [],
    )
    assert len(result["runId"]) == 16
    assert await kept(fronted) == 0


async def test_an_exception_is_told_on_stderr_and_is_no_failure(alice: Signer) -> None:  # noqa: F811
    result = await alice.run(code="error")
    assert (result["exitCode"], result["console"]) == (0, [["stderr", "ZeroDivisionError: division by zero\n"]])


async def test_a_picture_is_media(alice: Signer) -> None:  # noqa: F811
    assert (await alice.run(code="figure"))["console"] == [["media", ["image/png", "aGk="]]]


async def test_a_question_is_asked_and_answered(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    result = await alice.run(code="ask", runId="mine")
    assert (result["status"], result["options"], result["console"]) == (
        "waiting-input",
        {"is_password": False},
        [["stdout", "name? "]],
    )
    assert await kept(fronted) == 1
    result = await alice.run(mode="input", code="bob", runId="mine")
    assert (result["status"], result["console"]) == ("finished", [["stdout", "hello bob\n"]])
    assert await kept(fronted) == 0


async def test_the_same_request_twice_runs_once(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    for _ in range(2):
        assert (await alice.run(code="print(1)", runId="mine"))["console"] == [["stdout", "1\n"]]
    assert len(fronted.host.runs) == 1


async def test_a_long_run_is_told_in_pieces(
    alice: Signer,  # noqa: F811
    fronted: Fronted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("manager.compat.backendai.run_loop.FLUSH_SECONDS", 0.05)
    result = await alice.run(code="wait", runId="long")
    assert (result["status"], result["console"]) == ("continued", [])
    [run] = fronted.host.runs.values()
    run.say("stdout", b"one\n")
    run.say("stderr", b"two\n")
    result = await alice.run(mode="continue", runId="long")
    assert result["console"] == [["stdout", "one\n"], ["stderr", "two\n"]]
    assert (await alice.run(mode="continue", runId="long"))["console"] == []
    run.say("stdout", b"three\n")
    run.end()
    result = await alice.run(mode="continue", runId="long")
    assert (result["status"], result["console"], result["exitCode"]) == ("finished", [["stdout", "three\n"]], 0)
    answer = await alice.ask("POST", "/session/train", {"mode": "continue", "code": "", "runId": "long"})
    assert answer.prob == "object-not-found"


async def test_a_batch_goes_from_clean_to_build_to_exec(alice: Signer) -> None:  # noqa: F811
    options = {"clean": None, "build": "print(built)", "exec": "print(done)"}
    told = [await alice.run(mode="batch", runId="job", options=options)]
    while told[-1]["status"] != "finished":
        told.append(await alice.run(mode="continue", runId="job"))
    assert [(one["status"], one["exitCode"], one["console"]) for one in told] == [
        ("clean-finished", 0, []),
        ("build-finished", 0, [["stdout", "built\n"]]),
        ("finished", 0, [["stdout", "done\n"]]),
    ]


async def test_what_was_not_built_is_not_run(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    options = {"build": "wait", "exec": "print(done)"}
    assert (await alice.run(mode="batch", runId="job", options=options))["status"] == "clean-finished"
    building = asyncio.create_task(alice.run(mode="continue", runId="job"))
    await fronted.host.started.wait()
    [run] = fronted.host.runs.values()
    run.end(2)
    assert ((await building)["status"], (await building)["exitCode"]) == ("build-finished", 2)
    result = await alice.run(mode="continue", runId="job")
    assert (result["status"], result["exitCode"]) == ("finished", 2)
    assert len(fronted.host.runs) == 1


UNRUNNABLE: Any = [
    {"mode": "fly"},
    {"mode": "query", "code": 5},
    {"mode": "query", "runId": "x" * 200},
    {"mode": "query", "runId": 5},
    {"mode": "query", "runId": "a b"},
    {"mode": "batch", "options": "all"},
    {"mode": "batch", "options": {"exec": ["ls"]}},
    {"mode": "query", "code": "a\u0000b"},
    {"code": None, "options": {}},
    {"code": "x", "options": {"row": "first"}},
    {"code": "x", "options": {"row": -1}},
]


async def test_what_cannot_be_run(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    for body in UNRUNNABLE:
        answer = await alice.ask("POST", "/session/train", body)
        assert (answer.status, answer.prob) == (400, "invalid-api-params"), body
    assert fronted.host.runs == {}


async def test_a_session_that_waits_runs_nothing(alice: Signer) -> None:  # noqa: F811
    answer = await alice.ask("POST", "/session/waits", {"mode": "query", "code": "print(1)"})
    assert (answer.status, answer.prob) == (409, "session-not-ready")


async def test_completion(alice: Signer) -> None:  # noqa: F811
    body = {"code": "pri", "options": {"row": 0, "col": 3, "line": "pri", "post": ""}}
    for path in ("/session/train/complete", "/session/train"):
        assert (await alice.ask("POST", path, body)).json["result"]["completions"] == ["print"]


# -- streamed ------------------------------------------------------------------------------------------------------------
def opened(who: Signer, path: str = WS) -> Any:
    headers = who.signed("GET", path, "application/octet-stream")
    del headers["Content-Type"]
    return who.http.ws_connect(who.url(path), headers=headers)


async def test_a_stream_asks_and_ends(alice: Signer) -> None:  # noqa: F811
    async with opened(alice) as ws:
        await ws.send_json({"code": "ask", "mode": "query", "options": {}})
        asked = await ws.receive_json()
        assert (asked["status"], asked["options"]) == ("waiting-input", {"is_password": False})
        await ws.send_str("bob")
        told = await ws.receive_json()
        assert (told["status"], told["console"], told["exitCode"]) == ("finished", [["stdout", "hello bob\n"]], 0)
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_what_cannot_be_streamed_is_told_as_the_end(alice: Signer) -> None:  # noqa: F811
    hostile = ("{", "[]", '{"mode": "fly"}', '{"mode": "query", "code": 5}', '{"mode": "batch", "options": 1}')
    for message in hostile:
        async with opened(alice) as ws:
            await ws.send_str(message)
            told = await ws.receive_json()
            assert (told["status"], told["exitCode"], told["console"][0][0]) == ("finished", 1, "stderr"), message


async def test_a_client_that_vanishes_leaves_its_run_alone(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    async with opened(alice) as ws:
        await ws.send_json({"code": "ask", "mode": "query", "options": {}})
        await ws.receive_json()
    [run] = fronted.host.runs.values()
    assert run.done is None
    assert (await alice.ask("GET", "/session/train")).status == 200


async def test_a_stream_ends_when_its_keypair_may_sign_no_longer(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    async with opened(alice) as ws:
        await ws.send_json({"code": "ask", "mode": "query", "options": {}})
        await ws.receive_json()
        by = await fronted.world.identities.of_access_key("KEY-alice")
        await fronted.world.processor.run(SetSigningAction(keypair="KEY-alice", on=False), by=by)
        message = await ws.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.POLICY_VIOLATION)


async def test_pages_of_other_sites_open_no_stream(alice: Signer) -> None:  # noqa: F811
    headers = {**alice.signed("GET", WS, "application/octet-stream"), "Origin": "https://evil.example"}
    del headers["Content-Type"]
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await alice.http.ws_connect(alice.url(WS), headers=headers)


# -- files ---------------------------------------------------------------------------------------------------------------
async def upload(who: Signer, *files: tuple[str, bytes]) -> Answer:
    lines = b"".join(
        b'--xx\r\nContent-Type: application/octet-stream\r\nContent-Disposition: form-data; name="src"; filename="'
        + name.encode()
        + b'"\r\n\r\n'
        + content
        + b"\r\n"
        for name, content in files
    )
    headers = who.signed("POST", "/session/train/upload", "multipart/form-data")
    headers["Content-Type"] = "multipart/form-data; boundary=xx"
    return await who.send("POST", "/session/train/upload", headers, lines + b"--xx--\r\n")


async def test_files_go_where_their_names_say(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    answer = await upload(alice, ("a.txt", b"alpha"), ("sub%2Fb.bin", b"\0\1"), ("100%25%20%C3%A4.txt", b"x"))
    assert answer.status == 204, answer.body
    assert {name: content for name, (content, _) in fronted.host.files.items()} == {
        "/home/work/a.txt": b"alpha",
        "/home/work/sub/b.bin": b"\0\1",
        "/home/work/100% ä.txt": b"x",
    }
    listed = (await alice.ask("GET", "/session/train/files", {"path": "sub"})).json
    assert (listed["errors"], listed["abspath"]) == ("", "/home/work/sub")
    [one] = json.loads(listed["files"])
    assert (one["filename"], one["size"], one["mode"]) == ("b.bin", 2, "-rw-r--r--")
    async with alice.http.get(
        alice.url("/session/train/download_single?file=a.txt"),
        headers=alice.signed("GET", "/session/train/download_single?file=a.txt"),
    ) as response:
        assert (response.headers["Content-Type"], await response.read()) == ("application/octet-stream", b"alpha")


async def test_each_file_comes_down_as_a_tar(alice: Signer) -> None:  # noqa: F811
    await upload(alice, ("a.txt", b"alpha"), ("b.txt", b"\r\n--\r\n" * 1000))
    headers = alice.signed("GET", "/session/train/download", "application/json")
    found = {}
    async with alice.http.get(
        alice.url("/session/train/download"), headers=headers, data=b'{"files": ["a.txt", "b.txt"]}'
    ) as response:
        assert response.headers["Content-Type"].startswith("multipart/mixed; boundary=")
        reader = aiohttp.MultipartReader.from_response(response)
        while (part := await reader.next()) is not None:
            assert isinstance(part, aiohttp.BodyPartReader)
            assert part.headers["Content-Encoding"] == "identity"
            with tarfile.open(fileobj=io.BytesIO(bytes(await part.read()))) as tar:
                for member in tar.getmembers():
                    content = tar.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read()
    assert found == {"a.txt": b"alpha", "b.txt": b"\r\n--\r\n" * 1000}


async def test_hostile_names_are_refused(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    for name in "..%2F..%2Fetc%2Fpasswd", "a%2F..%2F..%2Fx", "a%00b", "%FF":
        assert (await upload(alice, (name, b"x"))).prob == "invalid-api-params", name
    assert fronted.host.files == {}


async def test_forms_that_are_none(alice: Signer, fronted: Fronted) -> None:  # noqa: F811
    for body in b"", b"--xx", b"--xx\r\n\r\nno name\r\n--xx--\r\n", b"nonsense" * 1000, b"--xx--\r\n":
        headers = alice.signed("POST", "/session/train/upload", "multipart/form-data")
        headers["Content-Type"] = "multipart/form-data; boundary=xx"
        answer = await alice.send("POST", "/session/train/upload", headers, body)
        assert (answer.status, answer.prob) == (400, "invalid-api-params"), body
    assert fronted.host.files == {}


async def test_downloads_of_nothing(alice: Signer) -> None:  # noqa: F811
    for files in [], "a.txt", [5], [""], None, ["a"] * 2000:
        answer = await alice.ask("GET", "/session/train/download", {"files": files})
        assert (answer.status, answer.prob) == (400, "invalid-api-params"), files


async def test_a_missing_file_is_told_before_anything_is_sent(alice: Signer) -> None:  # noqa: F811
    answer = await alice.ask("GET", "/session/train/download", {"files": ["nope.txt"]})
    assert (answer.status, answer.prob) == (404, "object-not-found")
    await upload(alice, ("a.txt", b"alpha"))
    answer = await alice.ask("GET", "/session/train/download", {"files": ["a.txt", "nope.txt"]})
    assert (answer.status, answer.prob) == (404, "object-not-found")


# -- events --------------------------------------------------------------------------------------------------------------
async def test_events_of_nothing(alice: Signer) -> None:  # noqa: F811
    for path, status in (
        ("/events/session?sessionName=train&scope=all", 400),
        ("/events/session?sessionId=11111111-0000-7000-8000-00000000ffff", 404),
        ("/events/background-task", 400),
        ("/events/background-task?task_id=x", 400),
        ("/events/background-task?task_id=11111111-0000-7000-8000-00000000ffff", 404),
    ):
        assert (await alice.ask("GET", path)).status == status, path


async def test_events_begin_with_what_there_was_and_end_with_the_session(
    alice: Signer,  # noqa: F811
    fronted: Fronted,  # noqa: F811
) -> None:
    path = f"/events/session?sessionId={RUNNING}&scope=*"
    await alice.ask("DELETE", "/session/train?forced=true")
    async with fronted.database.transaction() as connection:
        await stamp_events(connection)
    headers = alice.signed("GET", path, "application/octet-stream")
    del headers["Content-Type"]
    answer = await alice.send("GET", path, headers)
    assert answer.headers["Content-Type"] == "text/event-stream"
    lines = answer.body.decode().splitlines()
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event: ")] == [
        "kernel_terminated",
        "session_terminated",
        "server_close",
    ]
    told = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
    assert (told["sessionName"], told["sessionId"], told["clusterRole"]) == ("train", str(RUNNING), "main")
    assert told["reason"] == "destroyed by its owner"
