"""The main job on real containers, through REST and the SDK, and what is said when it goes wrong."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation

PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 2, 4]); None"


# -- running -----------------------------------------------------------------------------------------------------------
def test_a_session_runs_code_keeps_its_namespace_and_ends(client: moorage.Client) -> None:
    with client.sessions.create(name="main-job", image="python", cpu=1, mem="512m", tag="test") as session:
        assert session.status == "RUNNING"
        assert session.run_code("x = 40; print('hi')").stdout == "hi\n"
        assert session.run_code("x + 2").text == "42"
        info = session.refresh().info
        assert info.tag == "test"
        assert info.occupied_slots == {"cpu": 1, "mem": 512}
    assert client.sessions.get(session.id).status == "TERMINATED"
    with pytest.raises(errors.SessionNotFound):
        client.sessions.get("main-job")


def test_results_are_mime_bundles_and_figures_are_pictures(session: moorage.Session) -> None:
    shown = session.run_code("class A:\n  def _repr_html_(self): return '<b>x</b>'\nA()")
    assert shown.results[-1]["text/html"] == "<b>x</b>"
    figure = session.run_code(PLOT)
    assert base64.b64decode(figure.results[-1]["image/png"]).startswith(b"\x89PNG")


def test_exit_codes_signals_and_errors_are_the_true_ones(session: moorage.Session) -> None:
    assert session.commands.run("exit 7").exit_code == 7
    killed = session.commands.run("kill -TERM $$")
    assert killed.signal == signal.SIGTERM
    failed = session.run_code("1/0")
    assert failed.error is not None
    assert failed.error.ename == "ZeroDivisionError"
    assert failed.exit_code == 1


def test_input_is_asked_for_and_answered(session: moorage.Session) -> None:
    told = session.run_code(
        "name = input('who? '); print('hello', name)", on_input=lambda asked: f"<{asked.prompt.strip()}>"
    )
    assert told.stdout.endswith("hello <who?>\n")


def test_completion_knows_the_live_namespace(session: moorage.Session) -> None:
    session.run_code("elephant = {'trunk': 1}")
    assert "elephant" in " ".join(session.complete("eleph", col=5).suggestions)


def test_an_interrupt_stops_the_code_and_keeps_the_variables(session: moorage.Session) -> None:
    session.run_code("kept = 'yes'")
    handle = session.executions.start("print('on', flush=True)\nwhile True: pass")
    for _ in handle.output():
        break
    assert session.interrupt()
    assert handle.wait(timeout=20).reason == "interrupted"
    assert session.run_code("kept").text == "'yes'"


# -- code that misbehaves ------------------------------------------------------------------------------------------------
def test_code_that_never_ends_is_stopped_and_the_session_goes_on(session: moorage.Session) -> None:
    stopped = session.run_code("print('begun', flush=True)\nwhile True: pass", timeout=1)
    assert stopped.reason == "timeout"
    assert stopped.stdout == "begun\n"
    assert session.run_code("print(1)").stdout == "1\n"


def test_code_that_kills_its_own_worker(session: moorage.Session) -> None:
    crashed = session.run_code("print('last words', flush=True)\nimport os; os.kill(os.getpid(), 9)")
    assert crashed.reason in ("crashed", "killed")
    assert crashed.stdout == "last words\n"
    assert session.run_code("print(1)").stdout == "1\n"


def test_code_that_eats_memory_is_told_so(session: moorage.Session) -> None:
    eaten = session.run_code("hog = [bytearray(1 << 20) for _ in range(4096)]")
    assert eaten.reason == "out_of_memory"
    assert "memory" in eaten.trouble
    assert session.run_code("print(1)").stdout == "1\n"


def test_a_gigabyte_of_output_is_bounded_and_the_gap_is_named(session: moorage.Session) -> None:
    handle = session.commands.start("head -c 1073741824 /dev/zero | tr '\\0' x; echo; echo end")
    seen, gaps, last = 0, 0, ""
    for record in handle.output():
        seen += len(record.text or "")
        gaps += record.kind == "gap"
        last = record.text or last
    assert last.endswith("end\n")
    later = list(handle.output(from_seq=0))
    assert any(record.kind == "gap" for record in later)
    assert sum(len(record.text or "") for record in later) < 80 << 20


# -- files ---------------------------------------------------------------------------------------------------------------
def test_files_go_up_and_down_unchanged(session: moorage.Session, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(content)
    session.files.upload(tmp_path / "up", "data/raw.bin")
    session.files.download("data/raw.bin", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content
    assert session.files.read_bytes("data/raw.bin", offset=1000, length=50) == content[1000:1050]
    listed = {file.name: file for file in session.files.list("data")}
    assert listed["raw.bin"].size == len(content)
    owner = session.commands.run("stat -c %u data/raw.bin").stdout
    assert owner == "1000\n"


def test_files_are_managed(session: moorage.Session) -> None:
    session.files.write("a.txt", "hi")
    session.files.mkdir("deep/er", parents=True)
    session.files.move("a.txt", "deep/er/b.txt")
    session.files.copy("deep/er/b.txt", "c.txt")
    session.files.chmod("c.txt", 0o600)
    assert session.files.stat("c.txt").mode in ("0600", 0o600)
    assert session.files.read("deep/er/b.txt") == "hi"
    session.files.remove("deep", recursive=True)
    assert not session.files.exists("deep/er/b.txt")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../../etc/passwd", errors.InvalidPath),
        ("/etc/passwd", errors.InvalidPath),
        ("link", errors.InvalidPath),
        ("nothing", errors.FileNotFound),
        ("pipe", errors.NotARegularFile),
    ],
)
def test_paths_that_lead_astray_are_refused(session: moorage.Session, path: str, error: type[Exception]) -> None:
    session.commands.run("ln -s /etc/passwd link; mkfifo pipe")
    with pytest.raises(error):
        session.files.read(path)


# -- what is refused -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"image": "nosuch"}, 404, "image_not_found"),
        ({"image": "python", "resource_slots": {"cpu": 10_000, "mem": 512}}, 422, "resources_impossible"),
        ({"image": "python", "resource_slots": {"cpu": -1, "mem": 512}}, 422, "invalid_resources"),
        ({"image": "python", "resource_slots": {"cpu": 1, "mem": 1e300}}, 422, "invalid_resources"),
        ({"image": "python", "name": "a\0b"}, 400, "invalid_request"),
        ({"image": "python", "name": "x" * 300}, 400, "invalid_name"),
        ({"image": "python", "name": "../../etc"}, 400, "invalid_name"),
        ({"image": "python", "name": "match"}, 400, "invalid_name"),
        ({"image": 5}, 400, "invalid_request"),
        ({"image": "python", "colour": "red"}, 400, "invalid_request"),
        ([1, 2], 400, "invalid_request"),
    ],
)
def test_bad_creations_get_one_clear_sentence(installation: Installation, body: Any, status: int, code: str) -> None:
    answered, said = post(installation, "/v1/sessions", body)
    assert (answered, said["code"]) == (status, code)
    assert re.search(r"[.;]$", said["detail"])


def post(installation: Installation, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        installation.endpoint + path,
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {installation.access_key}.{installation.secret_key}",
        },
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_stranger_sees_nothing(session: moorage.Session, user: Callable[[str], moorage.Client]) -> None:
    with user("stranger") as stranger:
        with pytest.raises(errors.SessionNotFound):
            stranger.sessions.get(session.id)
        assert list(stranger.sessions.list()) == []


def test_what_does_not_fit_waits_and_gives_up_in_time(client: moorage.Client) -> None:
    with client.sessions.create(image="python", cpu=60, mem="256m"):
        waiting = client.sessions.create(image="python", cpu=60, mem="256m", max_wait=1, wait=False)
        ended = waiting.wait_until("CANCELLED", timeout=20)
        assert "resource" in (ended.info.status_reason or "")


def test_the_lifetime_counts_from_running(client: moorage.Client) -> None:
    session = client.sessions.create(image="python", cpu=1, mem="256m", timeout=1)
    session.wait_until("TERMINATED", timeout=30)


def test_a_batch_session_ends_with_its_work(client: moorage.Client) -> None:
    session = client.sessions.create(
        image="python", cpu=1, mem="256m", session_type="batch", startup_command="echo working; exit 3", wait=False
    )
    session.wait_until("TERMINATED", timeout=30)
    assert (session.info.result, session.info.exit_code) == ("FAILURE", 3)
    assert "working" in session.logs()


def test_a_failing_bootstrap_script_is_a_notice_unless_it_is_required(client: moorage.Client) -> None:
    with client.sessions.create(image="python", cpu=1, mem="256m", bootstrap_script="echo oh; exit 4") as session:
        notice = session.info.notices[0]
        assert notice.kind == "bootstrap_failed"
        assert "oh" in (notice.log_tail or "")
    failed = client.sessions.create(
        image="python", cpu=1, mem="256m", bootstrap_script="exit 4", bootstrap_required=True, wait=False
    )
    failed.wait_until("ERROR", timeout=30)
    assert "bootstrap" in (failed.info.status_reason or "")


# -- crashes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("daemon", ["manager", "agent"])
def test_a_running_execution_outlives_its_daemons(
    installation: Installation, session: moorage.Session, daemon: str
) -> None:
    handle = session.commands.start("for i in $(seq 1 3000); do echo line $i; sleep 0.001; done")
    for _ in handle.output():
        break
    for process in installation.processes(daemon):
        os.kill(process, signal.SIGKILL)
    done = handle.wait(timeout=60)
    assert done.exit_code == 0
    assert [int(n) for n in re.findall(r"line (\d+)\n", done.stdout)] == list(range(1, 3001))


def test_restart_keeps_the_files_and_gives_a_new_container(session: moorage.Session) -> None:
    session.files.write("kept.txt", "still here")
    session.run_code("x = 1")
    session.restart()
    assert session.files.read("kept.txt") == "still here"
    assert session.run_code("x").error is not None


def test_the_same_key_runs_once(installation: Installation, session: moorage.Session) -> None:
    outputs = set()
    for _ in range(3):
        request = urllib.request.Request(
            f"{installation.endpoint}/v1/sessions/{session.id}/execute",
            json.dumps({"code": "import os; print(os.urandom(8).hex())", "mode": "query"}).encode(),
            {
                "Content-Type": "application/json",
                "Idempotency-Key": "once-only",
                "Authorization": f"Bearer {installation.access_key}.{installation.secret_key}",
            },
        )
        with urllib.request.urlopen(request) as answer:
            outputs.add(json.load(answer)["stdout"])
    assert len(outputs) == 1


def test_activity_is_counted(session: moorage.Session) -> None:
    session.run_code("print(1)")
    session.files.write("a", "12345")
    for _ in range(100):
        info = session.refresh().info
        if info.execution_count == 1 and info.bytes_in == 5:
            return
        time.sleep(0.05)
    pytest.fail(f"{info.execution_count} executions and {info.bytes_in} bytes in were counted")
