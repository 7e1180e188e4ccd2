"""An app deployed, loaded and called in real containers; and each way in which its session ends."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation

APP = """
import asyncio, os
import moorage_session

class Counter:
    async def setup(self):
        self.number = 0
        print("loaded from", os.getcwd())

    async def run(self, input):
        self.number += 1
        print("call", self.number)
        return {"number": self.number, "input": input}

    async def count(self, input):
        for number in range(input):
            yield number

    async def wait(self, input):
        await asyncio.sleep(input)

    async def fail(self, input):
        raise ValueError("no good")

    async def crash(self, input):
        os._exit(3)

    async def bye(self, input):
        moorage_session.end()
        return "bye"
"""
SMALL: dict[str, Any] = {"cpu": 0.5, "mem": "256m"}


@pytest.fixture
def app(client: moorage.Client, tmp_path: Path) -> moorage.AppInfo:
    (tmp_path / "counter.py").write_text(APP)
    return client.apps.deploy(tmp_path, name="counter", entry="counter:Counter", **SMALL)


def test_an_app_from_its_deployment_to_its_expiry(
    client: moorage.Client, installation: Installation, app: moorage.AppInfo
) -> None:
    with client.sessions.create(app="counter", idle_timeout=30) as session:
        assert [session.call("run", value) for value in ("ä", [None, 1.5])] == [
            {"number": 1, "input": "ä"},
            {"number": 2, "input": [None, 1.5]},
        ]
        partials: list[int] = []
        session.call("count", 3, on_partial=partials.append)
        assert partials == [0, 1, 2]
        with pytest.raises(moorage.CallFailed, match="ValueError: no good"):
            session.call("fail")
        waiting = session.calls.start("wait", 60)
        behind = session.calls.start("run")
        assert [call.refresh().status for call in (waiting, behind)] == ["running", "queued"]
        assert session.refresh().info.expires_at is None
        waiting.cancel()
        with pytest.raises(moorage.CallCancelled):
            waiting.output(30)
        assert behind.output(30) == {"number": 3, "input": None}
        assert behind.logs() == "call 3\n"
        assert [call.status for call in session.calls.list()] == [
            "completed", "cancelled", "failed", "completed", "completed", "completed",
        ]  # fmt: skip
        info = session.keep_alive().info
        assert (info.call_count, info.open_calls, info.app and info.app.name) == (5, 0, "counter")
        assert info.expires_at is not None
        said = installation.run("call", "start", session.name, "run", "--input", '{"x": 1}')
        assert (json.loads(said.stdout), said.stderr) == ({"number": 4, "input": {"x": 1}}, "call 4\n")
        session.modify(idle_timeout=1)
        session.wait_until("TERMINATED", timeout=30)
        assert (session.info.end_reason, session.info.status_reason) == (
            "expired",
            "nobody called it for its idle_timeout of 1 s",
        )
        with pytest.raises(errors.SessionExpired) as gone:
            session.call("run")
        assert gone.value.http_status == 410
        assert behind.refresh().output == {"number": 3, "input": None}


def test_a_crash_loses_the_session_and_the_app_may_end_it(client: moorage.Client, app: moorage.AppInfo) -> None:
    with client.sessions.create(app=app.name) as ending, client.sessions.create(app=app.name) as crashing:
        assert ending.call("bye") == "bye"
        call = crashing.calls.start("crash")
        behind = crashing.calls.start("run")
        with pytest.raises(moorage.CallFailed) as lost:
            call.output(30)
        assert lost.value.error["code"] == "runner_lost"
        with pytest.raises(moorage.CallFailed):
            behind.output(30)
        crashing.wait_until("ERROR", timeout=30)
        ending.wait_until("TERMINATED", timeout=30)
        assert (ending.info.end_reason, crashing.info.end_reason) == ("ended", "lost")
        for session in (ending, crashing):
            with pytest.raises(errors.SessionEnded):
                session.call("run")


def test_what_cannot_be_loaded_says_why(client: moorage.Client, app: moorage.AppInfo, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.tar"
    with tarfile.open(hostile, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../../etc/passwd"), io.BytesIO())
    client.apps.deploy(hostile, name="hostile", entry="counter:Counter", **SMALL)
    client.apps.deploy(tmp_path, name="nosuch", entry="counter:NoSuch", **SMALL)
    calls = [client.apps.start(name) for name in ("hostile", "nosuch", "counter")]
    said = [call.wait(60) for call in calls]
    assert [info.status for info in said] == ["failed", "failed", "completed"]
    assert [(info.error or {}).get("ename") for info in said[:2]] == ["ArchiveRefused", "AppError"]
    assert said[2].output == {"number": 1, "input": None}
    for call in calls[1:]:
        session = client.sessions.get(call.info.session_id)
        session.wait_until("TERMINATED", "ERROR", timeout=30)
    assert session.info.end_reason == "expired"
    with pytest.raises(errors.InputTooLarge):
        client.apps.start("counter", input="x" * (4 * 1024 * 1024))
