"""Batch sessions on real containers: pipelines, time limits that outlive the daemons, retries, and what is left."""

from __future__ import annotations

import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation

SMALL = {"cpu": 0.5, "mem": "128m", "wait": False}


def submit(client: moorage.Client, name: str, command: str, **more: object) -> moorage.Session:
    return client.sessions.create(name, session_type="batch", startup_command=command, **{**SMALL, **more})  # type: ignore[arg-type]


def ended(session: moorage.Session, seconds: float = 60) -> moorage.Session:
    return session.wait_until("TERMINATED", "CANCELLED", "ERROR", timeout=seconds)


def test_a_pipeline_of_five_with_one_that_fails(client: moorage.Client, tmp_path: Path) -> None:
    fetch = submit(client, "fetch", "mkdir -p outputs && echo 1,2,3 > outputs/data.csv && sleep 1")
    train = submit(client, "train", "echo trained", depends_on=fetch)
    broken = submit(client, "broken", "echo oops >&2; exit 3", depends_on="fetch")
    report = submit(client, "report", "echo reported", depends_on=train, depends_on_any=broken)
    publish = submit(client, "publish", "echo published", depends_on=[report, broken])
    assert (train.status, train.info.waits_for) == ("PENDING", ["fetch"])
    last = [ended(one) for one in (fetch, train, broken, report, publish)]
    assert [one.info.result for one in last] == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "FAILURE"]
    assert [one.status for one in last] == ["TERMINATED"] * 4 + ["CANCELLED"]
    assert publish.info.status_reason == "dependency_failed: 'broken' ended with exit code 3"
    assert "oops" in broken.logs()

    graph = report.dependency_graph()
    looks = {node.name: node.look for node in graph.nodes}
    assert looks == {
        "fetch": "succeeded", "train": "succeeded", "broken": "failed", "report": "succeeded", "publish": "skipped",
    }  # fmt: skip
    assert len(graph.edges) == 6
    picture = ET.fromstring(report.draw_dependencies())
    assert {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")} > set(looks)
    assert report.draw_dependencies("dot").startswith("digraph")

    fetch.download_results(tmp_path / "results")
    assert (tmp_path / "results/outputs/data.csv").read_text() == "1,2,3\n"
    with pytest.raises(errors.ResultsNotFound):
        train.download_results(tmp_path / "nothing")


def test_a_time_limit_outlives_manager_and_agent(installation: Installation, client: moorage.Client) -> None:
    slow = submit(client, "too-slow", "echo begun; sleep 600", batch_timeout=5)
    slow.wait_until("RUNNING", timeout=30)
    for daemon in ("manager", "agent"):
        for process in installation.processes(daemon):
            os.kill(process, signal.SIGKILL)
    ended(slow)
    assert slow.info.result == "FAILURE"
    assert slow.info.status_reason == "batch_timeout: its work was not done within 5 s"
    assert slow.info.ended_at is not None
    assert slow.info.started_at is not None
    assert 5 <= (slow.info.ended_at - slow.info.started_at).total_seconds() < 30
    assert "begun" in slow.logs()


def test_work_that_fails_is_tried_again_and_each_try_is_kept(client: moorage.Client, tmp_path: Path) -> None:
    """The second try succeeds; both outputs stay readable, and so does what each has left."""
    command = "mkdir outputs; date +%s%N | tee outputs/when; test $(($(cat outputs/when) / 1000000)) -gt LATER"
    later = int((time.time() + 3) * 1000)
    flaky = submit(client, "flaky", command.replace("LATER", str(later)), max_retries=8, retry_delay=1)
    ended(flaky)
    assert (flaky.info.result, flaky.info.exit_code) == ("SUCCESS", 0)
    tries = flaky.info.retries + 1
    assert 2 <= tries <= 5
    assert [entry.event for entry in flaky.history()].count("retry") == tries - 1
    runs = flaky.executions.list()
    assert [run.exit_code for run in runs] == [0] + [1] * (tries - 1)
    for attempt, run in enumerate(reversed(runs), 1):
        printed = flaky.executions.get(run.run_id).wait(timeout=10).stdout
        flaky.download_results(tmp_path / str(attempt), attempt=attempt)
        assert (tmp_path / str(attempt) / "outputs/when").read_text() == printed


def test_the_command_line_follows_a_batch_to_its_end(installation: Installation) -> None:
    done = installation.run(
        "run", "--name", "cli-batch", "--cpu", "0.5", "--mem", "128m", "--retries", "1", "--retry-delay", "0",
        "--", "echo one try; exit 5",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "one try\none try\n")
    assert "try 1 of 2 failed (exit code 5)" in installation.run("history", "cli-batch").stdout
    drawn = installation.run("graph", "cli-batch")
    assert drawn.stdout == "cli-batch  ✗ failed, exit code 5, try 2\n"


def test_a_session_starts_at_its_time(client: moorage.Client) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    later = submit(client, "later", "true", starts_at=at)
    assert later.info.status_reason is not None
    assert later.info.status_reason.startswith("starts at")
    ended(later)
    placed = next(entry.timestamp for entry in later.history() if entry.status == "SCHEDULED")
    assert timedelta(0) <= placed - at < timedelta(seconds=5)


def test_a_circle_and_anothers_sessions_are_refused(
    client: moorage.Client, user: Callable[[str], moorage.Client]
) -> None:
    first = submit(client, "first", "true", starts_at=datetime.now(UTC) + timedelta(hours=1))
    second = submit(client, "second", "true", depends_on=first)
    with pytest.raises(errors.DependencyCycle):
        first.add_dependencies(second)
    with user("carol") as carol, pytest.raises(errors.DependencyNotFound):
        submit(carol, "third", "true", depends_on=first.id)
    first.destroy(recursive=True)
    assert second.refresh().status == "CANCELLED"
