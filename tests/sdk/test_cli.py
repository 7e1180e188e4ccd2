"""The `moorage` command as a shell sees it: output, sentences, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from aiohttp import web
from moorage.cli import cli, main

from agent.pki import ensure_authority
from tests.sdk.scripted import (
    BASE,
    RUN,
    ScriptedServer,
    done,
    lines,
    piece,
    record,
    refuses,
    says,
    session,
)

SDK = Path(__file__).resolve().parents[2] / "sdk"
EXECUTE = f"{BASE}/execute"

#: What they print is another program's; what is asked of the second is asked by ssh itself.
NO_JSON = (("ssh",), ("ssh-certificate",))


class Shell:
    """Runs the command against the scripted server."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(SDK),
            "MOORAGE_ENDPOINT": endpoint,
            "MOORAGE_ACCESS_KEY": "AKIA",
            "MOORAGE_SECRET_KEY": "secret",
            "COLUMNS": "120",
        }

    def start(self, *words: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moorage", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, env=self.environ, cwd=self.folder)

    def __call__(self, *words: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        """In a process of its own where standard input matters, else in this one, which is quicker."""
        if stdin is None:
            return self._here(*words)
        process = self.start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=20)
        return process.returncode, out.decode(), err.decode()

    def _here(self, *words: str) -> tuple[int, str, str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        with (
            Path(os.devnull).open() as nothing,
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(self.folder),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr(sys, "stdin", nothing)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            main(list(words))
        texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return int(ended.value.code or 0), texts[0], texts[1]


@pytest.fixture
def sh(server: ScriptedServer, tmp_path: Path) -> Shell:
    server.on("GET", "/v1/sessions/demo", says(session()))
    server.on("GET", "/v1/sessions", says({"items": [], "next_cursor": None}))
    return Shell(server.endpoint, tmp_path)


def leaves(group: click.Group, path: Sequence[str] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += leaves(command, (*path, name))
        else:
            found.append((*path, name))
    return found


def test_every_command_says_what_it_does_and_takes_json() -> None:
    for path in leaves(cli):
        command: click.Command | None = cli
        for name in path:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), name)
        assert command is not None
        assert command.help, path
        options = {option for parameter in command.params for option in parameter.opts}
        assert path in NO_JSON or "--json" in options, path
        assert [
            option.name for option in command.params if isinstance(option, click.Option) and not option.help
        ] == [], path


def test_help_needs_neither_http_nor_rich() -> None:
    script = (
        "import sys, moorage.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print(sorted({'httpx', 'rich', 'asyncio', 'moorage.sync'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(SDK)}
    )
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (422, "invalid_resources", 2),
        (400, "invalid_name", 2),
        (401, "unauthenticated", 4),
        (403, "permission_denied", 4),
        (404, "session_not_found", 3),
        (409, "wrong_status", 5),
        (412, "precondition_failed", 5),
        (422, "quota_exceeded", 1),
        (500, "internal", 1),
        (503, "storage_full", 6),
    ],
)
def test_scripts_can_tell_failures_apart(
    server: ScriptedServer, sh: Shell, status: int, code: str, expected: int
) -> None:
    server.on("GET", "/v1/sessions/demo", refuses(status, code, "That is how it is."))
    exit_code, out, err = sh("info", "demo")
    assert (exit_code, out) == (expected, "")
    assert err == "moorage: That is how it is." + (" (request req-1)\n" if status == 500 else "\n")


def test_an_error_is_json_too(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/sessions/demo", refuses(404, "session_not_found", "Not there.", hint=1))
    exit_code, out, err = sh("info", "demo", "--json")
    assert (exit_code, out) == (3, "")
    error = {"code": "session_not_found", "message": "Not there.", "request_id": "req-1", "facts": {"hint": 1}}
    assert json.loads(err) == {"error": error}


def test_nobody_there_is_exit_code_6(tmp_path: Path) -> None:
    exit_code, _, err = Shell("http://127.0.0.1:9", tmp_path)("ps")
    assert exit_code == 6
    assert "moorage status" in err


def test_no_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    sh = Shell("", tmp_path)
    exit_code, _, err = sh("ps")
    assert exit_code == 2
    assert "moorage up" in err


@pytest.mark.parametrize(
    "words", [["sp"], ["exec", "demo"], ["run", "-c", "1", "--", "ls"], ["cp", "a", "b"], ["ps", "-x"]]
)
def test_mistakes_in_typing_are_exit_code_2(sh: Shell, words: list[str]) -> None:
    exit_code, _, err = sh(*words)
    assert (exit_code, err.count("\n")) == (2, 1)
    assert err.startswith("moorage: ")
    assert err.endswith("--help'.\n")
    told = json.loads(sh(*words[:1], "--json", *words[1:])[2])
    assert (told["error"]["code"], told["error"]["facts"]["help"][-6:]) == ("usage", "--help")


def test_a_command_that_is_nearly_right_is_offered(sh: Shell) -> None:
    failed = sh("agent", "--data-dir", "nosuch")
    assert failed[0] == 1
    assert failed[2].endswith("/nosuch'.\n")
    assert "--help" not in failed[2]
    assert sh("voluem")[2] == "moorage: There is no command 'voluem'; did you mean 'volume'? See 'moorage --help'.\n"


def test_ps_is_a_table_for_people_and_a_list_for_programs(server: ScriptedServer, sh: Shell) -> None:
    slots = {"cpu": 2, "mem": 4096, "gpu": 1}
    found = [session(requested_slots=slots), session(name="other", status="PENDING", status_reason="no free GPU")]
    server.on("GET", "/v1/sessions", says({"items": found, "next_cursor": None}))
    _, out, _ = sh("ps")
    assert [line.split() for line in out.splitlines()] == [
        ["NAME", "STATUS", "IMAGE", "CPU", "MEM", "GPU", "AGE", "NOTE"],
        ["demo", "RUNNING", "python", "2", "4g", "1"],
        ["other", "PENDING", "python", "no", "free", "GPU"],
    ]
    assert [item["name"] for item in json.loads(sh("ps", "--json")[1])] == ["demo", "other"]
    assert sh("ps", "-q")[1] == "demo\nother\n"
    assert "status" not in server.seen[-1].query
    sh("ps", "-a")
    assert server.seen[-1].query["status"] == "all"


@pytest.mark.parametrize("exit_code", [0, 1, 42])
def test_exec_ends_with_the_programs_exit_code(server: ScriptedServer, sh: Shell, exit_code: int) -> None:
    out, err = record(0, "to out\n"), record(1, "to err\n", kind="stderr")
    server.on("POST", EXECUTE, lines(RUN, out, err, done(2, exit_code)))
    assert sh("exec", "demo", "--no-stdin", "--", "sh", "-c", "exit 42") == (exit_code, "to out\n", "to err\n")
    asked = server.asked("POST", EXECUTE)[0].json
    assert asked == {"code": "sh -c 'exit 42'", "mode": "batch", "opts": {"stdin": False}}


def test_a_signal_is_told_as_shells_do(server: ScriptedServer, sh: Shell) -> None:
    killed = record(0, kind="done", exit_code=None, signal=9, reason="out_of_memory")
    server.on("POST", EXECUTE, lines(RUN, killed))
    assert sh("exec", "demo", "-c", "eat()") == (
        137,
        "",
        "moorage: It needed more memory than the session has, and was stopped.\n",
    )


def test_bytes_come_out_as_they_went_in(server: ScriptedServer, sh: Shell) -> None:
    binary = {**record(0, "��"), "base64": "/wCA/w=="}
    server.on("POST", EXECUTE, lines(RUN, binary, done(1)))
    process = sh.start("exec", "demo", "--", "cat", "x")
    assert process.communicate(timeout=20)[0] == b"\xff\x00\x80\xff"
    assert server.asked("POST", EXECUTE)[0].query["binary"] == "true"


def test_standard_input_is_the_programs(server: ScriptedServer, sh: Shell) -> None:
    fed = says({"run_id": "r1", "status": "running"})
    server.on("POST", EXECUTE, lines(RUN, record(0, "waits")), fed)

    async def ends_with_its_input(request: web.Request) -> web.StreamResponse:
        await asyncio.to_thread(server.until, "POST", EXECUTE, lambda fed: "opts" in fed.json)
        return await lines(RUN, done(1))(request)

    server.on("GET", f"{BASE}/executions/r1", ends_with_its_input)
    assert sh("exec", "demo", "--", "cat", stdin="grün\n".encode())[0] == 0
    bodies = [request.json for request in server.asked("POST", EXECUTE)[1:]]
    assert "".join(body["code"] for body in bodies) == "grün\n"
    assert bodies[-1]["opts"] == {"eof": True}


def test_ctrl_c_interrupts_what_runs_and_its_end_is_waited_for(server: ScriptedServer, sh: Shell) -> None:
    server.on("POST", EXECUTE, lines(RUN, record(0, "ready\n")))
    server.on("POST", f"{BASE}/interrupt", says({"interrupted": True}))
    server.on("GET", f"{BASE}/executions/r1", lines(RUN))
    process = sh.start("exec", "demo", "--no-stdin", "-c", "while True: pass")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    server.until("POST", f"{BASE}/interrupt")
    server.on("GET", f"{BASE}/executions/r1", lines(record(1, kind="error", ename="KeyboardInterrupt"), done(2, 130)))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"KeyboardInterrupt" in err
    assert server.asked("POST", f"{BASE}/interrupt")[0].json == {"run_id": "r1"}


def test_run_makes_a_session_and_ends_it(server: ScriptedServer, sh: Shell) -> None:
    server.on("POST", "/v1/sessions", says(session(status="PENDING"), 201))
    server.on("GET", BASE, says(session(status="PREPARING")), says(session()))
    server.on("DELETE", BASE, says(session(status="TERMINATED")))
    server.on("POST", EXECUTE, lines(RUN, record(0, kind="result", **{"text/plain": "2"}), done(1, 3)))
    assert sh("run", "--rm", "--cpu", "2", "--mem", "4g", "-e", "A=b=c", "-c", "1 + 1") == (3, "2\n", "")
    asked = server.asked("POST", "/v1/sessions")[0].json
    assert asked == {"image": "python", "resource_slots": {"cpu": 2.0, "mem": "4g"}, "environ": {"A": "b=c"}}


def test_run_without_rm_says_that_the_session_goes_on(server: ScriptedServer, sh: Shell) -> None:
    server.on("POST", "/v1/sessions", says(session(), 201))
    server.on("POST", EXECUTE, lines(RUN, done(0)))
    exit_code, _, err = sh("run", "-c", "pass")
    assert exit_code == 0
    assert err == "moorage: the session demo goes on; 'moorage rm demo' ends it.\n"


def test_cp_goes_both_ways(server: ScriptedServer, sh: Shell) -> None:
    (sh.folder / "a.txt").write_text("hello")
    stat = {"name": "a.txt", "type": "file", "size": 5, "mode": "0644"}
    server.on("PUT", f"{BASE}/files/a.txt", says(stat, 201))
    server.on("POST", f"{BASE}/files/manage", says({"file": stat}))
    server.on("GET", f"{BASE}/files/a.txt", piece(b"hello"))
    assert sh("cp", "a.txt", "demo:") == (0, "", "")
    assert server.asked("PUT", f"{BASE}/files/a.txt")[0].body == b"hello"
    assert sh("cp", "demo:a.txt", "b.txt") == (0, "", "")
    assert (sh.folder / "b.txt").read_text() == "hello"
    assert sh("cp", "demo:a.txt", "-")[1] == "hello"
    assert sh("cp", "missing", "demo:") == (1, "", "moorage: missing: there is no such file here.\n")


def test_names_of_others_cannot_write_to_our_terminal(server: ScriptedServer, sh: Shell) -> None:
    stat = {"name": "evil\x1b[2Jname", "type": "file", "size": 1}
    server.on("GET", f"{BASE}/files", says({"items": [stat], "next_cursor": None}))
    assert "\x1b" not in sh("ls", "demo")[1]


def test_looking_back_finds_what_has_ended(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/sessions/gone", refuses(404, "session_not_found", "There is no such session."))
    others = [session(name="gone-too", status="ERROR"), session(name="gone", status="TERMINATED")]
    server.on("GET", "/v1/sessions", says({"items": others, "next_cursor": None}))
    assert json.loads(sh("info", "gone", "--json")[1])["status"] == "TERMINATED"
    assert server.seen[-1].query == {"status": "CANCELLED,ERROR,TERMINATED", "name": "gone"}
    gone = session(name="gone", status="TERMINATED")
    server.on("GET", BASE, says(gone))  # by its id from here on
    assert sh("wait", "gone", "end") == (0, "TERMINATED\n", "")
    server.on("GET", "/v1/sessions", says({"items": [], "next_cursor": None}))
    assert sh("info", "gone") == (3, "", "moorage: There is no such session.\n")


def test_rm_ends_all_it_can(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/sessions/gone", refuses(404, "session_not_found", "There is no such session."))
    server.on("DELETE", BASE, says(session(status="TERMINATED")))
    assert sh("rm", "gone", "demo") == (3, "demo\n", "moorage: gone: There is no such session.\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_session_names(server: ScriptedServer, sh: Shell, shell: str) -> None:
    server.on("GET", "/v1/sessions", says({"items": [session()], "next_cursor": None}))
    assert "_MOORAGE_COMPLETE" in sh("completion", shell)[1]
    at = "de" if shell == "fish" else "2"
    sh.environ |= {"_MOORAGE_COMPLETE": f"{shell}_complete", "COMP_WORDS": "moorage info de", "COMP_CWORD": at}
    assert "demo" in sh()[1]


def test_what_goes_elsewhere_is_told_as_json(server: ScriptedServer, sh: Shell, tmp_path: Path) -> None:
    script = json.loads(sh("completion", "zsh", "--json")[1])
    assert (script["shell"], "_MOORAGE_COMPLETE" in script["script"]) == ("zsh", True)

    sh.environ["MOORAGE_CONFIG"] = str(tmp_path / "config.toml")
    settings, includes = str(tmp_path / "ssh_config"), str(tmp_path / "ssh/config")
    asked = ("config-ssh", "--ssh-config", settings, "--json")
    assert json.loads(sh(*asked)[1]) == {"ssh_config": settings, "includes": includes}
    assert json.loads(sh(*asked, "--remove")[1]) == {"ssh_config": settings, "includes": None}
    assert f'"{tmp_path}/ssh/hosts/*.conf"' in json.loads(sh(*asked, "--print")[1])["settings"]

    head = {"seq": 1, "chain": "ab"}
    server.on("GET", "/v1/audit/export", lines({"seq": 1}, {"head": head}))
    export = ("admin", "audit", "export", "--json")
    kept = str(tmp_path / "audit.jsonl")
    assert json.loads(sh(*export, "-o", kept)[1]) == {"output": kept, "rows": 1, "head": head}
    assert [json.loads(line) for line in sh(*export)[1].splitlines()] == [{"seq": 1}, {"head": head}]

    nowhere = str(tmp_path / "nowhere")
    assert json.loads(sh("down", "--data-dir", nowhere, "--json")[1]) == {"stopped": False, "data_dir": nowhere}


def test_how_far_a_change_of_authority_is(sh: Shell, tmp_path: Path) -> None:
    ensure_authority(tmp_path / "pki")
    asked = ("--data-dir", str(tmp_path), "--json")
    for step, state in (("show", "settled"), ("begin", "begun"), ("switch", "switched"), ("finish", "settled")):
        assert json.loads(sh("manager", "authority", step, *asked)[1])["state"] == state


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cp de", "plain,demo:"),
        ("ls demo:su", "plain,demo:sub/"),
        ("cp demo:sub/x", "plain,demo:sub/x.txt"),
        ("run --image py", "plain,python"),
        ("create --template tr", "plain,train"),
        ("volume show da", "plain,data"),
    ],
)
def test_shells_complete_what_is_there(server: ScriptedServer, sh: Shell, typed: str, offered: str) -> None:
    def pages(*items: dict[str, Any]) -> Any:
        return says({"items": list(items), "next_cursor": None})

    server.on("GET", "/v1/sessions", pages(session()))
    server.on("GET", BASE, says(session()))
    here = {"sub": [{"name": "x.txt", "type": "file"}], ".": [{"name": "sub", "type": "directory"}]}
    server.on("GET", f"{BASE}/files", pages(*here["sub" if "/" in typed else "."]))
    server.on("GET", "/v1/images", pages({"name": "moorage/python:3", "aliases": ["python"]}))
    server.on("GET", "/v1/templates", pages({"id": "t1", "name": "train", "version": 1}))
    server.on("GET", "/v1/volumes", pages({"id": "v1", "name": "data"}))
    words = f"moorage {typed}"
    sh.environ |= {"_MOORAGE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(typed.count(" ") + 1)}
    assert sh()[1].splitlines() == [offered]


def test_bash_takes_a_place_for_one_word(server: ScriptedServer, sh: Shell) -> None:
    server.on("GET", "/v1/sessions", says({"items": [session()], "next_cursor": None}))
    script = sh("completion", "bash")[1]
    typed = 'COMP_WORDS=(moorage info de); COMP_CWORD=2; _moorage_completion moorage; echo "${COMPREPLY[@]}"'
    called = script.replace(
        "_MOORAGE_COMPLETE=bash_complete $1", f"_MOORAGE_COMPLETE=bash_complete {sys.executable} -m moorage"
    )
    told = subprocess.run(["bash", "-c", f"{called}\n{typed}"], capture_output=True, text=True, env=sh.environ)
    assert told.stdout.split() == ["demo"], told.stderr
    assert "COMP_WORDBREAKS" in script


# -- signing in ----------------------------------------------------------------------------------------------------------
def test_login_and_logout(server: ScriptedServer, sh: Shell) -> None:
    made = {"id": "t1", "name": "sign-in", "user": "a@b", "kind": "sign_in", "expires_at": "2999-01-01T00:00:00Z"}
    server.on("POST", "/v1/sign-in", says({**made, "token": "mot_x"}, 201))
    server.on("POST", "/v1/sign-out", says({}, 200))
    server.on("GET", "/v1/whoami", says({"access_key": "AKIA", "role": "user"}))
    config = sh.folder / "mine.toml"
    for name in ("MOORAGE_ACCESS_KEY", "MOORAGE_SECRET_KEY"):
        sh.environ.pop(name)
    code, out, err = sh("--config", str(config), "login", "a@b", "--stdin", stdin=b"a long password\n")
    sh.environ["MOORAGE_CONFIG"] = str(config)
    assert (code, err.count("moorage logout")) == (0, 1)
    assert out.startswith("You are a@b at http")
    [asked] = server.asked("POST", "/v1/sign-in")
    assert json.loads(asked.body) == {"email": "a@b", "password": "a long password"}
    assert "mot_x" in config.read_text()
    assert sh("whoami", stdin=b"")[0] == 0
    assert server.asked("GET", "/v1/whoami")[-1].headers["Authorization"] == "Bearer mot_x"
    assert sh("logout", stdin=b"")[:2] == (0, "You have signed out.\n")
    assert "mot_x" not in config.read_text()
    assert sh("logout", stdin=b"")[0] == 1
