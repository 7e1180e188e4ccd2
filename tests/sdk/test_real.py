"""The SDK and the command on real containers, by one installation that `moorage up` brings up for this module."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import moorage
import pytest
from moorage import aio, errors

pytestmark = pytest.mark.containers
MOORAGE = [sys.executable, "-m", "moorage"]
SDK = Path(__file__).resolve().parents[2] / "sdk"


class Installation:
    def __init__(self, folder: Path, engine_host: str) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "DOCKER_HOST": engine_host,
            "MOORAGE_CONFIG": str(folder / "config.toml"),
            "PYTHONPATH": os.pathsep.join([str(SDK.parent), str(SDK)]),
        }
        self.up: dict[str, Any] = {}

    def __call__(self, *words: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [*MOORAGE, *words]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=self.environ, cwd=self.folder, timeout=timeout
        )

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(engine_host: str, kernel_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("sdk"), engine_host)
    data_dir = str(installation.folder / "data")
    up = installation("up", "--data-dir", data_dir, "--port", "0", "--detach", "--json", "--cpu", "64")
    try:
        assert up.returncode == 0, up.stderr
        installation.up = json.loads(up.stdout)
        yield installation
        left = installation("ps", "-q").stdout.split()
        if left:
            installation("rm", *left)
    finally:
        installation("down", "--data-dir", data_dir)


@pytest.fixture
def client(here: Installation) -> Iterator[moorage.Client]:
    with moorage.Client(config=here.environ["MOORAGE_CONFIG"]) as found:
        yield found


@pytest.fixture(scope="module")
def s(here: Installation) -> Iterator[moorage.Session]:
    """One session for all tests that leave it as it was."""
    with moorage.Client(config=here.environ["MOORAGE_CONFIG"]) as client:
        with client.sessions.create("shared-one", image="python", cpu=1, mem="256m") as session:
            yield session


# -- the SDK ----------------------------------------------------------------------------------------------------------
@pytest.mark.long
def test_the_example_of_the_documentation(client: moorage.Client, tmp_path: Path) -> None:
    with client.sessions.create(image="python", cpu=1, mem="256m", gpu=0, timeout=3600) as s:
        assert s.status == "RUNNING"
        r = s.run_code("print(1 + 1)")
        assert (r.stdout, r.stderr, r.error, r.exit_code) == ("2\n", "", None, 0)
        seen: list[str] = []
        assert s.commands.run("echo out; echo err >&2; exit 3", on_stdout=seen.append).exit_code == 3
        assert seen == ["out\n"]
        h = s.commands.start("read line; echo got $line")
        h.send_stdin("a line\n")
        assert s.executions.get(h.run_id).wait(timeout=60).stdout == "got a line\n"
        s.files.write("a.txt", "hi")
        assert s.files.read("a.txt") == "hi"
        assert "a.txt" in [stat.name for stat in s.files.list(".")]
        s.files.mkdir("out/sub", parents=True)
        s.files.write("out/sub/b", b"\x00\xff")
        assert s.files.download("out", tmp_path / "out.tar") == tmp_path / "out.tar"
        with tarfile.open(tmp_path / "out.tar") as archive:
            assert "out/sub/b" in archive.getnames()
    assert s.status == "TERMINATED"


def test_variables_stay_and_results_are_rich(s: moorage.Session) -> None:
    s.run_code("x = 41", check=True)
    assert s.run_code("x + 1").text == "42"
    bad = s.run_code("print('before'); 1 / 0")
    assert (bad.stdout, bad.error and bad.error.ename, bad.ok) == ("before\n", "ZeroDivisionError", False)
    with pytest.raises(errors.CommandFailed, match="ZeroDivisionError"):
        bad.check()
    assert s.run_code("input('name? ')", on_input=lambda asked: asked.prompt.upper()).text == "'NAME? '"


def test_a_timeout_keeps_what_was_printed(s: moorage.Session) -> None:
    stopped = s.run_code("print('before', flush=True)\nwhile True: pass", timeout=1)
    assert (stopped.stdout, stopped.reason) == ("before\n", "timeout")
    assert s.run_code("'alive'").text == "'alive'"


def test_output_is_read_again_from_any_place(s: moorage.Session) -> None:
    h = s.commands.start("for i in 1 2 3; do echo $i; sleep 0.05; done")
    assert h.wait(60).stdout == "1\n2\n3\n"
    records = list(h.output())
    assert records[-1].kind == "done"
    assert [r.seq for r in records] == list(range(records[0].seq, records[0].seq + len(records)))
    again = list(h.output(from_seq=records[1].seq))
    assert [r.seq for r in again] == [r.seq for r in records[1:]]
    assert [r.seq for r in h.output(follow=False)] == [r.seq for r in records]
    assert h.run_id in [run.run_id for run in s.executions.list()]
    assert (h.info().status, h.info().exit_code) == ("done", 0)


def test_a_run_is_interrupted_and_killed(s: moorage.Session) -> None:
    ready = threading.Event()
    h = s.executions.start("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    threading.Thread(target=lambda: ready.wait(30) and h.interrupt()).start()
    interrupted = h.wait(60, on_stdout=lambda text: ready.set())
    assert interrupted.error is not None
    assert interrupted.error.ename == "KeyboardInterrupt"
    h = s.commands.start("sleep 60")
    assert h.kill()
    assert h.wait(60).signal == 9
    assert not h.kill()


def test_the_same_key_runs_once(s: moorage.Session) -> None:
    runs = [s.commands.run("echo x >> once; wc -l < once", idempotency_key="my-key") for _ in "12"]
    assert [run.stdout for run in runs] == ["1\n", "1\n"]
    assert runs[0].run_id == runs[1].run_id


def test_files_keep_their_bytes_and_modes(s: moorage.Session, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/ünï code.bin").write_bytes(content)
    (tmp_path / "tree/run.sh").write_text("#!/bin/sh\necho ran")
    (tmp_path / "tree/run.sh").chmod(0o755)
    assert len(s.files.upload(tmp_path / "tree", "copied")) == 2
    assert s.commands.run("copied/run.sh").stdout == "ran\n"
    s.files.download("copied", tmp_path / "back")
    assert (tmp_path / "back/sub/ünï code.bin").read_bytes() == content
    assert s.files.read_bytes("copied/sub/ünï code.bin", offset=1000, length=50) == content[1000:1050]
    s.files.write("manage", "a name like an address")
    assert s.files.read("manage") == "a name like an address"
    with pytest.raises(errors.FileExists):
        s.files.write("manage", "again", overwrite=False)
    s.files.move("manage", "moved")
    assert not s.files.exists("manage")
    s.files.remove("copied", recursive=True)
    with pytest.raises(errors.FileNotFound):
        s.files.read("copied/run.sh")
    with pytest.raises(errors.InvalidPath):
        s.files.read("../../etc/passwd")
    s.run_code("import pathlib; pathlib.Path('many').mkdir(); [pathlib.Path(f'many/{i}').touch() for i in range(1500)]")
    assert len(s.files.list("many")) == 1500
    assert len(s.files.list("many", limit=3)) == 3


def test_a_session_changes_and_remembers(client: moorage.Client) -> None:
    with client.sessions.create("changing", image="python", cpu=1, mem="256m", tag="one") as s:
        s.rename("changed").modify(tag="two", if_unchanged=True)
        assert client.sessions.get("changed").info.tag == "two"
        assert [found.name for found in client.sessions.match("chang*")] == ["changed"]
        with pytest.raises(errors.NameTaken):
            client.sessions.create("changed", image="python", cpu=1, mem="256m")
        assert client.sessions.ensure("changed", image="python", cpu=1, mem="256m").id == s.id
        s.files.write("kept", "kept")
        s.restart()
        assert s.files.read("kept") == "kept"
        s.run_code("verbose_name = 1")
        assert "verbose_name" in " ".join(s.complete("verbose_n").suggestions)
    assert [entry.status for entry in s.history()][-1] == "TERMINATED"
    assert s.history()[0].status == "PENDING"
    with pytest.raises(errors.MoorageError):
        s.run_code("1")
    assert client.sessions.list(status="TERMINATED")
    assert "changed" not in [found.name for found in client.sessions.list()]


def test_what_cannot_be_is_refused_with_a_class_of_its_own(client: moorage.Client) -> None:
    with pytest.raises(errors.ImageNotFound):
        client.sessions.create(image="no-such-image", cpu=1)
    with pytest.raises(errors.ResourcesImpossible):
        client.sessions.create(image="python", cpu=10_000)
    with pytest.raises(errors.InvalidName):
        client.sessions.create("x", image="python")
    with pytest.raises(errors.SessionNotFound):
        client.sessions.get("not-there")
    with (
        moorage.Client(client.config.endpoint, "WRONG", "keys") as stranger,
        pytest.raises(errors.Unauthenticated),
    ):
        stranger.sessions.list()


def test_events_tell_the_story_of_a_session(client: moorage.Client) -> None:
    told: list[str] = []
    listening, over = threading.Event(), threading.Event()

    def listen() -> None:
        for event in client.events(after="0.0"):
            listening.set()
            if event.name == "eventful":
                told.append(event.type)
                if event.type == "session.terminated":
                    over.set()
                    return

    threading.Thread(target=listen, daemon=True).start()
    with client.sessions.create("eventful", image="python", cpu=1, mem="256m"):
        pass
    assert over.wait(30), told
    assert told.index("session.running") < told.index("session.terminated")


async def test_the_async_side(here: Installation) -> None:
    async with aio.Client(config=here.environ["MOORAGE_CONFIG"]) as client:
        async with client.sessions.create(image="python", cpu=1, mem="256m") as s:
            assert (await s.run_code("6 * 7")).text == "42"
            await s.files.write("a", "b")
            assert await s.files.read("a") == "b"
            h = await s.commands.start("echo 1; echo 2")
            assert "".join([r.text async for r in h.output()]) == "1\n2\n"
            assert s.name in [found.name async for found in client.sessions.iterate()]


def test_ensure_finds_the_session_or_makes_it_anew(client: moorage.Client) -> None:
    small: Any = {"cpu": 0.1, "mem": "128m"}
    with client.sessions.ensure("of-many", **small) as first:
        with ThreadPoolExecutor() as threads:
            others = list(threads.map(lambda _: client.sessions.ensure("of-many", **small), range(4)))
        assert {other.id for other in others} == {first.id}
        assert [first.created, *(other.created for other in others)] == [True, False, False, False, False]
        first.destroy(wait=False)
        with client.sessions.ensure("of-many", **small) as second:  # its name is free when the first has gone
            assert (second.created, second.status) == (True, "RUNNING")
            assert second.id != first.id


def squared(number: int) -> dict[str, int]:
    import os

    if number == 3:
        raise ValueError("three")
    if number == 5:
        os._exit(1)
    print("at", number)
    return {"square": number * number}


def test_work_is_spread_over_sessions_and_told_in_order(client: moorage.Client) -> None:
    before = [session.id for session in client.sessions.list()]
    found = list(client.map(squared, range(9), sessions=3, cpu=0.1, mem="128m"))
    assert [outcome.input for outcome in found] == list(range(9))
    assert [outcome.value["square"] for outcome in found if outcome.ok] == [0, 1, 4, 16, 36, 49, 64]
    with pytest.raises(errors.CommandFailed, match="three"):
        found[3].check()
    with pytest.raises(errors.CommandFailed, match="crashed"):
        found[5].check()
    assert found[1].run is not None
    assert found[1].run.stdout == "at 1\n"
    endless = client.map("result = item + offset", count(), sessions=2, setup="offset = 10", cpu=0.1, mem="128m")
    assert [next(endless).check() for _ in range(10)] == list(range(10, 20))
    endless.close()
    assert [session.id for session in client.sessions.list()] == before


def test_work_on_a_session_of_ones_own_leaves_it(client: moorage.Client, s: moorage.Session) -> None:
    def prepare(session: moorage.Session) -> None:
        session.files.write("factor.txt", "3")

    work = "result = item * int(open('factor.txt').read())"
    assert [one.check() for one in client.map(work, [1, 2], sessions=[s], setup=prepare)] == [3, 6]
    bad = list(client.map("result = item", [object(), 1], sessions=[s]))
    assert isinstance(bad[0].error, errors.InvalidRequest)
    assert bad[1].value == 1
    slow = client.map("import time; time.sleep(item); result = item", [0, 600, 600], sessions=[s])
    assert next(slow).ok
    slow.close()  # what ran is ended
    assert s.run_code("'alive'").text == "'alive'"
    with pytest.raises(errors.CommandFailed, match="ZeroDivisionError"):
        next(client.map("result = 1", [1], sessions=[s], setup="1 / 0"))
    with pytest.raises(TypeError, match="uses variables from around it"):
        client.map(lambda_of(1), [1])


def lambda_of(number: int) -> Any:
    def inner(item: int) -> int:
        return item + number

    return inner


async def test_mapping_is_called_off_with_its_task(here: Installation) -> None:
    async with aio.Client(config=here.environ["MOORAGE_CONFIG"]) as client:
        begun = asyncio.Event()

        async def work() -> None:
            async for outcome in client.map(WAITS, [0, 600], sessions=1, name="called-off", cpu=0.1, mem="128m"):
                assert outcome.ok
                begun.set()

        task = asyncio.create_task(work())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.sessions.match("called-off") == []


WAITS = "import time; time.sleep(item); result = item"


# -- the command ------------------------------------------------------------------------------------------------------
def test_run_from_nothing_to_nothing(here: Installation) -> None:
    done = here("run", "--rm", "--cpu", "1", "--mem", "256m", "-c", "print('hello')\n1 + 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n2\n", "")
    done = here("run", "--rm", "--cpu", "1", "--mem", "256m", "--", "sh", "-c", "cat; exit 7", stdin="fed")
    assert (done.returncode, done.stdout) == (7, "fed")


def test_a_session_by_the_command(here: Installation) -> None:
    assert here("create", "by-hand", "--cpu", "1", "--mem", "256m").stdout == "by-hand\n"
    try:
        (here.folder / "in.txt").write_text("content")
        assert here("cp", "in.txt", "by-hand:").returncode == 0
        assert here("exec", "by-hand", "--", "cat in.txt | tr a-z A-Z").stdout == "CONTENT"
        assert here("ls", "by-hand").stdout.split() == ["in.txt"]
        assert here("cp", "by-hand:in.txt", "-").stdout == "content"
        assert here.json("info", "by-hand")["occupied_slots"] == {"cpu": 1, "mem": 256}
        assert here("wait", "by-hand").stdout == "RUNNING\n"
        assert here("complete", "by-hand", "import o").stdout
        run_id = here("exec", "by-hand", "-d", "--", "echo later; exit 4").stdout.strip()
        attached = here("exec", "by-hand", "--attach", run_id)
        assert (attached.returncode, attached.stdout) == (4, "later\n")
        assert here("rename", "by-hand", "by-hand2").stdout == "by-hand2\n"
        assert here("logs", "by-hand2").returncode == 0
        assert "by-hand2" in here("ps").stdout
    finally:
        assert here("rm", "by-hand2").returncode == 0
    assert here.json("info", "by-hand2")["status"] == "TERMINATED"
    assert here("exec", "by-hand2", "-c", "1").returncode == 3
    assert "TERMINATED" in here("ps", "-a").stdout


def test_ctrl_c_stops_what_runs_there(here: Installation, s: moorage.Session) -> None:
    command = [*MOORAGE, "exec", s.name, "--no-stdin", "-c", "import time\nprint('ready', flush=True)\ntime.sleep(60)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=here.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in err
    assert process.returncode != 0
    assert s.run_code("'alive'").text == "'alive'"


@pytest.mark.parametrize(
    ("trap", "signals", "exit_code"),
    [("echo heard; exit 9", [signal.SIGTERM], 9), ("echo heard", [signal.SIGINT, signal.SIGINT], 137)],
)
def test_signals_go_to_what_runs_there(
    here: Installation, trap: str, signals: list[signal.Signals], exit_code: int
) -> None:
    script = f"trap '{trap}' TERM INT; echo ready; while true; do sleep 60 & wait; done"
    run = [*MOORAGE, "run", "--rm", "--name", "signalled", "--cpu", "0.1", "--mem", "128m", "--", script]
    process = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here.environ)
    assert process.stdout is not None
    for number, before in zip(signals, [b"ready\n", b"heard\n"], strict=False):
        assert process.stdout.readline() == before
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "signalled" not in here("ps", "-q").stdout


def test_whoever_is_told_to_end_leaves_no_session_behind(here: Installation) -> None:
    with moorage.Client(config=here.environ["MOORAGE_CONFIG"]) as client:
        run = [*MOORAGE, "run", "--name", "not-yet", "--starts-at", "+90m", "-c", "1", "--json"]
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=here.environ)
        assert any(event.name == "not-yet" for event in client.events(after="0.0"))
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == 143
        assert client.sessions.match("not-yet") == []


@pytest.mark.long
def test_administration(here: Installation) -> None:
    made = here.json("admin", "user", "add", "ada@example.com", "--keypair")
    keys = made["keypair"]
    with moorage.Client(here.up["endpoint"], keys["access_key"], keys["secret_key"]) as ada:
        assert ada.whoami().access_key == keys["access_key"]
        with pytest.raises(errors.PermissionDenied):
            ada.users.list()
        assert ada.sessions.list() == []
        with ada.sessions.create("of-ada", image="python", cpu=1, mem="256m"):
            assert here("info", "of-ada").returncode == 3
            assert "of-ada" in here("admin", "session", "ls").stdout
            assert here("admin", "session", "rm", "of-ada").returncode == 0
    assert here("admin", "keypair", "edit", keys["access_key"], "--inactive").returncode == 0
    here.json("admin", "project", "add", "vision", "--member", "ada@example.com")
    assert here.json("admin", "project", "edit", "vision", "--remove-member", "ada@example.com")["members"] == []
    assert here("admin", "project", "rm", "vision").returncode == 0
    agents = here.json("admin", "agent", "ls")
    assert agents[0]["capacity"]["cpu"] == 64
    assert here.json("admin", "agent", "cordon", agents[0]["id"])["schedulable"] is False
    assert here.json("admin", "agent", "uncordon", agents[0]["id"])["schedulable"] is True
    assert here("admin", "agent", "token").stdout.strip()
    assert here("admin", "image", "ls").stdout
    assert here("admin", "user", "rm", "ada@example.com").returncode == 5  # her sessions are on record
    assert here.json("admin", "user", "edit", "ada@example.com", "--inactive")["active"] is False
    here.json("admin", "user", "add", "bob@example.com")
    assert here("admin", "user", "rm", "bob@example.com").stdout == "bob@example.com\n"
