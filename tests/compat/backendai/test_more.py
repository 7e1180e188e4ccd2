"""Lists, templates, numbers, services, terminals, tunnels and events, asked for by the real SDK and command."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.compat.backendai.conftest import Installation
from tests.compat.environments import client_python

pytestmark = pytest.mark.compat
MIB = 2**20


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def running(installation: Installation) -> Iterator[dict[str, Any]]:
    """A session of the administrator's: its name and id."""
    made = installation.client("more.py", "start", "looked-at")
    yield {"name": "looked-at", **made}
    installation.client("more.py", "end", "looked-at")


@pytest.mark.full
def test_ps_and_info(installation: Installation, running: dict[str, Any]) -> None:
    assert running["status"] == "RUNNING"
    assert "sshd" in running["apps"]
    listed = installation.command("ps")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert running["id"] in listed.stdout
    assert installation.admin.access_key in listed.stdout
    told = installation.command("--output", "json", "session", "info", running["id"])
    assert told.returncode == 0, told.stdout + told.stderr
    (session,) = json.loads(told.stdout)["items"]
    assert (session["name"], session["status"], session["occupying_slots"]["cpu"]) == ("looked-at", "RUNNING", "1")
    assert session["containers"][0]["cluster_hostname"] == "main1"


@pytest.mark.full
def test_lists_of_an_administrator(installation: Installation, running: dict[str, Any]) -> None:
    told = installation.client("more.py", "lists")
    assert told["me"]["is_admin"] is True
    assert told["me"]["secret_key"] is None
    assert told["sessions"]["count"] == 1
    assert told["sessions"]["items"][0]["id"] == running["id"]
    (agent,) = told["agents"]
    assert agent["status"] == "ALIVE"
    assert json.loads(agent["occupied_slots"])["mem"] == str(256 * MIB)
    assert told["agent"]["id"] == agent["id"]
    assert ("moorage/python", "3.11") in [(one["name"], one["tag"]) for one in told["images"]]
    assert told["keypairs"][1][0]["secret_key"] is None
    assert [one["access_key"] for one in told["keypairs of"]] == [installation.admin.access_key]
    assert told["users"][1][0]["email"] == "admin@localhost"
    assert told["user"]["role"] == "superadmin"
    assert told["domain"]["name"] == told["domains"][0]["name"] == "default"
    assert [one["name"] for one in told["groups"]] == [one["name"] for one in told["groups by name"]] == ["default"]
    assert told["scaling groups"][0]["wsproxy_addr"].startswith("http")
    assert told["policies"] == []
    assert told["folders"] == [0, []]
    assert told["nonsense"] == [400, "GraphQL-generated error", "Cannot query field 'nonsense' on type 'Queries'."]
    assert "moorage admin" in told["mutation"][2]
    assert told["filter"][0] == 400


@pytest.mark.full
def test_the_admin_commands(installation: Installation, running: dict[str, Any]) -> None:
    for words in (
        "session list",
        "agent list",
        "image list",
        "keypair list",
        "user list",
        "domain list",
        "group list",
        "scaling-group list",
        "resource query-slots",
        "manager status",
    ):
        done = installation.command("admin", *words.split())
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr, words
        assert done.stdout.strip(), words


@pytest.mark.full
def test_what_others_see(installation: Installation, running: dict[str, Any]) -> None:
    carol = installation.user("carol")
    told = installation.client("more.py", "others", installation.admin.access_key, keys=carol)
    assert told["sessions"] == [0, []]
    assert told["of another"][0] == 400
    assert told["agents"][2] == told["domains"][2]
    assert "not allowed" in told["agents"][2] or "Only" in told["agents"][2] or "may" in told["agents"][2]
    assert [one["email"] for one in told["users"][1]] == ["carol@example.org"]
    assert [one["access_key"] for one in told["keypairs"][1]] == [carol.access_key]
    assert told["recalculate"][:2] == [403, "Forbidden operation."]
    assert told["status"] == 0


@pytest.mark.full
def test_templates(installation: Installation) -> None:
    told = installation.client("more.py", "templates")
    assert told["listed"] == [["nightly", True, True]]
    assert told["json"]["spec"]["kernel"]["environ"] == {"FROM_TPL": "yes"}
    assert told["json"]["spec"]["resources"] == {"cpu": "1", "mem": str(256 * MIB)}
    assert told["again"][0] in (400, 409)
    assert told["put"] == {"success": True}
    assert told["status"] == "RUNNING"
    assert told["ran"] == [["stdout", "yes 1 booted\n"]]
    assert told["tag"] == "of-put"
    assert told["nothing"][0] == 400
    assert told["deleted"] == {"success": True}
    assert told["gone"][0] == 404


@pytest.mark.full
def test_numbers(installation: Installation, running: dict[str, Any]) -> None:
    told = installation.client("more.py", "resources", datetime.now(UTC).strftime("%Y%m"))
    assert told["presets"] == {"presets": []}
    assert told["slots"] == {"cpu": "count", "mem": "bytes", "cuda.device": "count", "cuda.mem": "bytes"}
    assert told["check"]["keypair_limits"] == {"cpu": "Infinity", "mem": "Infinity"}
    assert told["check"]["keypair_using"] == {"cpu": "1", "mem": str(256 * MIB)}
    assert told["check"]["scaling_groups"]["default"]["using"]["cpu"] == "1"
    (group,) = told["month"]
    assert (group["g_name"], running["name"] in [one["name"] for one in group["c_infos"]]) == ("default", True)
    assert told["status"]["active_sessions"] == 1
    assert told["announcement"] == {"enabled": False, "message": ""}
    assert told["freeze"][0] == 400


@pytest.mark.full
def test_folders_are_volumes(installation: Installation) -> None:
    told = installation.client("more.py", "folders")
    assert told["hosts"]["default"] in told["hosts"]["allowed"]
    assert told["types"] == ["user"]
    assert told["made"]["name"] == "data"
    assert told["again"][0] >= 400
    assert told["ran"] == [["stdout", "3\n"]]
    assert sorted(told["files"]) == [["b", "DIRECTORY", 4096], ["three.txt", "FILE", 3]]
    assert told["listed"] == [["data", True, "wd"]]
    assert told["info"]["id"] == told["made"]["id"]
    assert told["left"] == ["b"]
    assert told["in use"][0] == 409
    assert told["group"][0] == told["transfer"][0] == 400
    assert told["after"] == []


@pytest.mark.full
def test_services_and_tunnels(installation: Installation, running: dict[str, Any]) -> None:
    told = installation.client("more.py", "services", running["name"])
    assert told["unknown"][0] == 400
    assert told["page"] == "path /"
    assert told["token"] is True
    told = installation.client("more.py", "tunnel", running["name"])
    assert told["pages"] == [f"path /{number}" for number in range(5)]


@pytest.mark.full
def test_a_terminal(installation: Installation) -> None:
    made = installation.client("more.py", "start", "terminals")
    assert made["status"] == "RUNNING"
    told = installation.client("more.py", "terminal", "terminals")
    assert "pty-42" in told["first"]
    assert "31 101" in told["first"]
    assert "ping or restart" in told["error"]
    assert "kept" in told["second"]
    assert "/home/work" in told["second"]
    assert "still-3" in told["second"]
    installation.client("more.py", "end", "terminals")


@pytest.mark.full
def test_events(installation: Installation) -> None:
    seen = installation.client("more.py", "events", "told-of")["seen"]
    assert "session_started" in seen
    assert seen[-1] == "session_terminated"
    assert seen.index("kernel_started") < seen.index("session_started")


@pytest.mark.full
def test_ssh_and_scp(installation: Installation, running: dict[str, Any], tmp_path: Path) -> None:
    (installation.folder / "home").mkdir(exist_ok=True)
    (installation.folder / "home" / ".ssh").mkdir(mode=0o700, exist_ok=True)

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        """The client ends its own tunnel by SIGINT, which is ignored by what a shell starts in the background."""
        program = client_python("backendai").parent / "backend.ai"
        return subprocess.run(
            [str(program), *words],
            capture_output=True,
            text=True,
            env=installation.environ(),
            cwd=tmp_path,
            input="",
            timeout=120,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    done = command("ssh", running["name"], "-p", free_port(), "echo in-$(hostname); exit 3")
    assert (done.returncode, "in-looked-at" in done.stdout) == (3, True), done.stdout + done.stderr
    (tmp_path / "there.txt").write_text("over ssh\n")
    done = command("scp", "-p", free_port(), running["name"], "there.txt", "work@localhost:/home/work/")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = installation.command("session", "ls", running["name"])
    assert "there.txt" in listed.stdout
    assert "id_container" not in listed.stdout


@pytest.mark.full
def test_the_app_command(installation: Installation, running: dict[str, Any]) -> None:
    """A local port that leads to a program in the session."""
    installation.client("more.py", "services", running["name"])
    program = client_python("backendai").parent / "backend.ai"
    environ, port = {**installation.environ(), "PYTHONUNBUFFERED": "1"}, free_port()
    with subprocess.Popen(
        [str(program), "app", running["name"], "http", "-b", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
        cwd=installation.folder,
    ) as proxy:
        try:
            assert proxy.stdout is not None
            for line in proxy.stdout:
                if port in line:
                    break
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/deep/er", timeout=60) as answer:
                assert answer.read() == b"path /deep/er"
        finally:
            proxy.terminate()
            proxy.wait(30)
