"""The real SDK and `backend.ai` command of Backend.AI do what they do elsewhere, with real containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compat.backendai.conftest import Installation, Keys

pytestmark = pytest.mark.compat


def test_a_day_with_the_sdk_and_a_line_with_the_command(installation: Installation) -> None:
    told = installation.client("short.py")
    assert told["made"] == ["RUNNING", True]
    assert (told["run"]["status"], told["run"]["console"], told["run"]["exitCode"]) == (
        "finished",
        [["stdout", "42\n"]],
        0,
    )
    assert told["upload"] == 204
    assert told["files"] == ["a 100%.txt", "sub"]
    assert told["download"] == ["a 100%.txt", "sub/b.bin"]
    assert told["same"] is True
    assert "42\n" in told["logs"]
    assert told["info"]["occupiedSlots"] == "{'cpu': Decimal('1'), 'mem': Decimal('268435456')}"
    assert told["info"]["numQueriesExecuted"] == 1
    assert told["end"] == "terminated"
    assert told["over"] == [404, "https://api.backend.ai/probs/object-not-found", "No such session."]
    said = installation.command("run", "--rm", "-t", "daily-two", "python", "-r", "mem=256", "-c", "print(6 * 7)")
    assert said.stdout.splitlines()[0] == "42", said.stderr
    assert "Cleaned up the session" in said.stderr


@pytest.mark.full
def test_every_session_function_of_the_sdk(installation: Installation) -> None:
    told = installation.client("whole.py")
    assert told["versions"] == {"version": "v7.20230615", "manager": "23.09.10"}
    assert told["made"][:2] == ["RUNNING", True]
    assert told["again"] == ["RUNNING", False, True]
    assert told["taken"] == [400, "session-already-exists", {"existingSessionId": told["made"][2]}]
    assert told["nonsense"][:2] == [400, "invalid-api-params"]
    assert told["no image"][:2] == [404, "object-not-found"]
    assert told["late"] == ["PENDING", "TIMEOUT"]
    assert told["graph"] == ["KernelStatus.PENDING", ["whole-late"]]
    assert told["late end"] == "cancelled"
    info = told["info"]
    assert (info["environ"], info["tag"], info["resourceOpts"]) == ("{'PROBE': 'v1'}", "blue", "{'shmem': '33554432'}")
    assert told["raised"]["exitCode"] == 0
    assert told["raised"]["console"][0][0] == "stderr"
    assert "ZeroDivisionError" in told["raised"]["console"][0][1]
    assert told["rich"]["console"] == [["html", "<b>x</b>"]]
    assert len(told["loop"]) >= 2
    assert "".join(text for one in told["loop"] for _, text in one["console"]) == "0\n1\n2\n3\n4\n"
    asked, answered = told["asked"]
    assert (asked["status"], asked["options"]) == ("waiting-input", {"is_password": False})
    assert answered["console"] == [["stdout", "hi bob\n"]]
    assert told["password"] == [{"is_password": True}, [["stdout", "6\n"]]]
    assert told["interrupted"]["status"] == "finished"
    assert told["after"] == [["stdout", "2\n"]]
    assert told["upload"] == 204
    assert told["listed"]["sub"].startswith("drwx")
    assert {"booted.txt", "main.py"} <= told["listed"].keys()
    assert "nope" in told["nowhere"]
    assert told["batch"] == [
        ["clean-finished", 0, []],
        ["build-finished", 0, [["stdout", "built\n"]]],
        ["finished", 3, [["stdout", "batch ok\n"]]],
    ]
    assert told["download"] == ["sub", "sub/b.bin", "main.py"]
    assert told["same"] is True
    assert told["missing"][:2] == [404, "object-not-found"]
    assert told["complete"] == ["import"]
    assert {"pending", "preparing", "running"} <= set(told["history"])
    assert told["report"] == {}
    assert "jupyter" in told["apps"]
    assert told["restarted"] == [["stdout", "True v1\n"]]
    assert told["commit"] == ["bgtask_id", "kernel", "path"]
    assert told["logs"]
    assert (told["stats"]["status"], told["stats"]["mem"]["unit_hint"]) == ("terminated", "bytes")
    assert told["gone"][:2] == told["never"][:2] == [404, "object-not-found"]
    assert told["pair"] == [["stdout", "2\n"]]


@pytest.mark.full
def test_streams_and_events_of_the_sdk(installation: Installation) -> None:
    told = installation.client("streams.py")
    assert _marks(told["asked"]) == ["waiting-input", "finished"]
    assert _printed(told["asked"]) == "one\ntwozed\n"
    assert _marks(told["batch"]) == ["clean-finished", "build-finished", "finished"]
    assert (_printed(told["batch"]), told["batch"][-1]["exitCode"]) == ("built\n1\n2\n", 3)
    assert told["raised"][-1]["exitCode"] == 0
    assert told["task"][-2:] == ["bgtask_done", "server_close"]
    names = [name for name, _ in told["events"]]
    assert names == [
        "session_scheduled",
        "kernel_preparing",
        "kernel_creating",
        "kernel_started",
        "session_started",
        "session_terminating",
        "kernel_terminating",
        "kernel_terminated",
        "session_terminated",
        "server_close",
    ]
    assert told["ended"][-3:] == [["session_failure", 4], ["session_terminated", 4], ["server_close", None]]


def _marks(frames: list[dict[str, Any]]) -> list[str]:
    """Without those that only bring output."""
    return [frame["status"] for frame in frames if frame["status"] != "continued"]


def _printed(frames: list[dict[str, Any]]) -> str:
    return "".join(text for frame in frames for _, text in frame["console"])


@pytest.mark.full
def test_a_day_with_the_command(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt").write_text("x\n")
    (tmp_path / "main.py").write_text("import sys; print('main'); sys.exit(2)")

    def said(*words: str, stdin: str = "") -> str:
        done = installation.command(*words, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    made = said("session", "create", "-t", "cmd-one-x", "python", "-r", "cpu=1", "-r", "mem=256")
    assert "is created and ready" in made
    assert "hi bob" in said("run", "-t", "cmd-one-x", "python", "-c", "print('hi', input())", stdin="bob\n")
    ran = said("run", "-t", "cmd-one-x", "python", "--build", "echo built", "--exec", "python3 main.py", "main.py")
    assert "built\n" in ran
    assert "Execution finished. (exit code = 2)" in ran
    assert "Uploaded" in said("session", "upload", "cmd-one-x", "sub/x.txt")
    listed = said("session", "ls", "cmd-one-x", "sub")
    assert "x.txt" in listed
    assert "-rw-r--r--" in listed
    said("session", "download", "cmd-one-x", "sub/x.txt", "--dest", "back")
    assert (tmp_path / "back" / "sub" / "x.txt").read_text() == "x\n"
    assert "main" in said("session", "logs", "cmd-one-x")
    assert "Actual Resource Allocation Time" in said("session", "status-history", "cmd-one-x")
    assert '("RUNNING"' in said("session", "show-graph", "cmd-one-x")
    assert "KernelStatus.RUNNING" in said("session", "show-graph", "-t", "cmd-one-x")
    assert "{}" in said("session", "abuse-history", "cmd-one-x")
    assert "jupyter" in said("apps", "-l", "cmd-one-x")
    assert "renamed to cmd-two-x" in said("session", "rename", "cmd-one-x", "cmd-two-x")
    assert "Done" in said("session", "restart", "cmd-two-x")
    assert "Request to commit" in said("session", "commit", "cmd-two-x")
    ended = said("rm", "-s", "cmd-two-x")
    assert "Done" in ended
    assert "cpu_used" in ended
    refused = installation.command("rm", "cmd-two-x")
    assert refused.returncode == 1
    assert "No such session." in refused.stdout + refused.stderr


@pytest.mark.full
def test_the_command_acts_for_others_only_as_an_administrator(installation: Installation) -> None:
    bob, eve = installation.user("bob"), installation.user("eve")
    made = installation.command("session", "create", "-t", "bobs-one", "python", "-r", "mem=256", keys=bob)
    assert made.returncode == 0, made.stderr
    for keys, words in ((eve, ()), (eve, ("-o", bob.access_key)), (None, ())):
        refused = installation.command("rm", *words, "bobs-one", keys=keys)
        assert refused.returncode == 1, refused.stdout
    ended = installation.command("rm", "-o", bob.access_key, "bobs-one")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.full
def test_a_wrong_secret_and_one_that_was_switched_off(installation: Installation) -> None:
    zoe = installation.user("zoe")
    wrong = Keys(zoe.access_key, zoe.secret_key + "x")
    refused = installation.command("session", "logs", "none-such", keys=wrong)
    assert "Credential/signature mismatch." in refused.stdout + refused.stderr
    good = installation.command("session", "logs", "none-such", keys=zoe)
    assert "No such session." in good.stdout + good.stderr
    assert installation.run("admin", "keypair", "signing", zoe.access_key, "off").returncode == 0
    off = installation.command("session", "logs", "none-such", keys=zoe)
    assert "Credential/signature mismatch." in off.stdout + off.stderr
