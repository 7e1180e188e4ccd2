"""Functions and commands of the real client that nobody uses every day, so that each of them has been asked once."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.compat.backendai.conftest import Installation

pytestmark = [pytest.mark.compat, pytest.mark.full]


def test_what_is_left(installation: Installation) -> None:
    told = installation.client("left.py", datetime.now(UTC).strftime("%Y%m"))
    assert told["match"] == [["left-over", "RUNNING"]]
    assert told["direct"] == {} or told["direct"]["session_type"] == "INTERACTIVE"
    assert told["single"] == [200, "alpha"]
    assert all("in the log" in log for log in [*told["logs"], told["kept"]])
    assert told["no task"] == [404, "No such session."]
    assert told["which task"][0] == 400
    assert told["stopped"][0] == 204
    assert told["task"] == ["bgtask_done", "server_close"]
    assert told["commit"] == [[told["commit"][0][0], "ready"], True]
    assert told["used"] is True


def test_commands_that_follow_a_session(installation: Installation) -> None:
    size = ("-r", "cpu=1", "-r", "mem=256")
    batch = ("--type", "batch", "-c", "echo out of a batch; sleep 2; exit 3", "--enqueue-only")
    made = installation.command("session", "create", "-t", "left-batch", *batch, *size, "python")
    assert made.returncode == 0, made.stdout + made.stderr
    session_id = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made.stdout + made.stderr)
    assert session_id is not None, made.stdout + made.stderr
    watched = installation.command("watch", "left-batch")
    assert watched.returncode == 3, watched.stdout + watched.stderr
    assert "session_failure" in watched.stdout + watched.stderr
    told = installation.command("events", session_id[0])
    names = [line.split()[0] for line in told.stdout.splitlines()]
    assert names[-4:] == ["session_failure", "kernel_terminated", "session_terminated", "server_close"], told
    log = installation.command("task-logs", session_id[0])
    assert "out of a batch" in log.stdout, log.stdout + log.stderr
    nothing = installation.command("task-logs", "nope")
    assert "No such session." in nothing.stdout + nothing.stderr


def test_the_commands_of_templates(installation: Installation, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        done = installation.command(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    (tmp_path / "one.yml").write_text(
        'api_version: "6"\nkind: taskTemplate\nmetadata: {name: by-command}\n'
        'spec: {kernel: {image: python, environ: {A: "1"}}, resources: {cpu: "1", mem: 256m}}\n'
    )
    said("session-template", "create", "-f", "one.yml")
    (listed,) = [line for line in said("session-template", "list").splitlines() if "by-command" in line]
    template = listed.split()[1]
    assert "taskTemplate" in said("session-template", "get", template)
    said("session-template", "update", template, "-f", "one.yml")
    made = said("session", "create-from-template", template, "-t", "left-template")
    assert "left-template" in made or "created and ready" in made
    said("rm", "left-template")
    said("session-template", "delete", "-f", template)
    assert "by-command" not in said("session-template", "list")
