"""Sessions by the stock OpenSSH client: commands, copies, rsync, forwarding, and who is kept out or thrown out."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import moorage
import pytest

from manager.config import ManagerConfig
from tests.product.conftest import Installation

MISSING = [name for name in ("ssh", "scp", "sftp", "ssh-keygen", "rsync") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.containers,
    pytest.mark.skipif(bool(MISSING), reason=f"the OpenSSH client and rsync are not here: {', '.join(MISSING)}"),
]
HOSTILE = [
    "-rf",
    "a b'c\"d",
    "tab\there",
    "new\nline",
    "$(touch pwned)",
    "..dots..",
    "ünïcode",
    "x" * 255,
    "*",
    "~",
    ";x",
]


@dataclass
class Ssh:
    """A client with a key of its own."""

    folder: Path
    port: int
    host_key: str
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def options(self) -> list[str]:
        settings = {
            "Port": self.port, "HostKeyAlias": "gateway", "UserKnownHostsFile": self.folder / "known_hosts",
            "IdentityFile": self.key, "IdentitiesOnly": "yes", "BatchMode": "yes", "StrictHostKeyChecking": "yes",
        }  # fmt: skip
        return ["-F", "/dev/null", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]

    def run(
        self, *words: str, program: str = "ssh", data: bytes = b"", **more: object
    ) -> subprocess.CompletedProcess[bytes]:
        command = [program, *self.options, *words]
        return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False, **more)  # type: ignore[call-overload,no-any-return]

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """What stays open."""
        command = ["ssh", *self.options, *words]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self.running.append(process)
        return process


@pytest.fixture
def make_ssh(installation: Installation, tmp_path: Path) -> Iterator[Callable[[str], Ssh]]:
    made: list[Ssh] = []
    port = ManagerConfig.load(installation.data_dir).ssh_port
    pub = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(installation.data_dir / "pki/ssh_host_key")],
        capture_output=True,
        text=True,
        check=True,
    )

    def make(name: str) -> Ssh:
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / "key"], check=True)
        (folder / "known_hosts").write_text(f"gateway {pub.stdout}")
        made.append(Ssh(folder, port, pub.stdout))
        return made[-1]

    yield make
    for ssh in made:
        for process in ssh.running:
            process.kill()
            process.communicate()


@pytest.fixture
def ssh(make_ssh: Callable[[str], Ssh], client: moorage.Client) -> Iterator[Ssh]:
    """One whose key is registered."""
    made = make_ssh("mine")
    added = client.ssh_keys.add((made.folder / "key.pub").read_text())
    yield made
    if any(key.id == added.id for key in client.ssh_keys.list()):
        client.ssh_keys.remove(added.id)


def test_a_command_has_its_streams_and_its_exit_code(ssh: Ssh, session: moorage.Session) -> None:
    data = os.urandom(1 << 20)
    done = ssh.run(f"{session.name}@127.0.0.1", "cat; echo oops >&2; exit 5", data=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (5, True, b"oops\n")
    assert ssh.run(f"{session.id}@127.0.0.1", "id -u; pwd").stdout == b"1000\n/home/work\n"
    on_terminal = ssh.run("-tt", f"{session.name}@127.0.0.1", "tty; echo $TERM", env={**os.environ, "TERM": "vt100"})
    assert b"/dev/pts/" in on_terminal.stdout
    assert b"vt100" in on_terminal.stdout
    shell = ssh.run(f"{session.name}@127.0.0.1", data=b"x=41\necho $((x + 1))\nexit 3\n")
    assert (shell.returncode, shell.stdout) == (3, b"42\n"), shell.stderr
    killed = ssh.run(f"{session.name}@127.0.0.1", "kill -TERM $$; sleep 9")
    assert killed.returncode in (143, 255)


def test_scp_sftp_and_rsync_keep_every_byte_and_name(ssh: Ssh, session: moorage.Session, tmp_path: Path) -> None:
    there = f"{session.name}@127.0.0.1"
    big = tmp_path / "big"
    big.write_bytes(os.urandom(8 << 20))
    assert ssh.run("-q", str(big), f"{there}:big", program="scp").returncode == 0
    told = ssh.run(there, "sha256sum big").stdout.split()[0].decode()
    assert told == hashlib.sha256(big.read_bytes()).hexdigest()
    assert ssh.run("-q", f"{there}:big", str(tmp_path / "back"), program="scp").returncode == 0
    assert (tmp_path / "back").read_bytes() == big.read_bytes()

    tree = tmp_path / "tree"
    tree.mkdir()
    for number, name in enumerate(HOSTILE):
        (tree / name).write_text(str(number))
    for program, up, down in (
        ("scp", ["-q", "-r", "--", f"{tree}", f"{there}:by-scp"], ["-q", "-r", "--", f"{there}:by-scp", "scp-back"]),
        ("rsync", ["-a", f"{tree}/", f"{there}:by-rsync/"], ["-a", f"{there}:by-rsync/", "rsync-back/"]),
    ):
        for words in (up, down):
            if program == "rsync":
                command = ["rsync", "-e", " ".join(["ssh", *ssh.options]), *words]
                done = subprocess.run(command, capture_output=True, timeout=30, check=False, cwd=tmp_path)
            else:
                done = ssh.run(*words, program=program, cwd=tmp_path)
            assert done.returncode == 0, (program, done.stderr)
        back = tmp_path / f"{program}-back"
        assert {p.name: p.read_text() for p in back.iterdir()} == {n: str(i) for i, n in enumerate(HOSTILE)}
    assert ssh.run(there, "ls pwned */pwned").returncode != 0

    batch = (
        "mkdir d\nput big d/one\nrename d/one d/two\nln -s two d/link\nls -l d\nget d/link fetched\nchmod 600 d/two\n"
        "rm d/link\n-get /etc/shadow\n-put big /etc/passwd\n-get ../../../../proc/1/environ e\nrm d/two\nrmdir d\n"
    )
    done = ssh.run("-b", "-", there, program="sftp", data=batch.encode(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fetched").read_bytes() == big.read_bytes()
    assert not (tmp_path / "shadow").exists()
    assert done.stderr.count(b"ermission denied") == 2, done.stderr


def test_ports_are_forwarded_one_way_and_agents_are_not(ssh: Ssh, session: moorage.Session) -> None:
    there = f"{session.name}@127.0.0.1"
    server = session.commands.start("echo it works > index.html; exec python3 -u -m http.server 8000 --bind 127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ssh.begin("-N", "-L", f"{port}:localhost:8000", "-o", "ExitOnForwardFailure=yes", there)
    assert _patiently(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()) == b"it works\n"
    server.kill()
    elsewhere = ssh.run("-W", "169.254.169.254:80", there)
    assert elsewhere.returncode != 0
    assert b"only ports of the session itself" in elsewhere.stderr
    nothing = ssh.run("-W", "localhost:8001", there)
    assert b"Nothing listens on port 8001" in nothing.stderr
    back = ssh.run("-o", "ExitOnForwardFailure=yes", "-R", "9999:localhost:22", there, "true")
    assert back.returncode != 0
    assert b"remote port forwarding failed" in back.stderr
    assert ssh.run("-A", there, "echo [$SSH_AUTH_SOCK]").stdout == b"[]\n"


def test_certificates_need_no_key_to_be_registered(
    installation: Installation, session: moorage.Session, tmp_path: Path
) -> None:
    done = installation.run("ssh", session.name, "--", "echo by certificate; exit 4")
    assert (done.returncode, done.stdout) == (4, "by certificate\n"), done.stderr
    settings = tmp_path / "ssh_config"
    settings.write_text("Host elsewhere\n    Port 1\n")
    for _ in range(2):  # the second time changes nothing
        assert installation.run("config-ssh", "--ssh-config", str(settings)).returncode == 0
    assert settings.read_text().count("Include") == 1
    command = ["ssh", "-F", str(settings), "-o", "BatchMode=yes", f"{session.name}.moorage", "hostname"]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (plain.returncode, plain.stdout.strip()) == (0, session.name), plain.stderr
    unknown = subprocess.run(
        [*command[:-2], "no-such-thing.moorage"], capture_output=True, text=True, timeout=30, check=False
    )
    assert "no such session" in unknown.stderr
    assert installation.run("config-ssh", "--ssh-config", str(settings), "--remove").returncode == 0
    assert settings.read_text() == "Host elsewhere\n    Port 1\n"


def test_strangers_are_kept_out(
    make_ssh: Callable[[str], Ssh], session: moorage.Session, user: Callable[[str], moorage.Client], ssh: Ssh
) -> None:
    stranger = make_ssh("stranger")
    done = stranger.run(f"{session.name}@127.0.0.1", "id")
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr
    with user("eve-ssh") as eve:
        other = make_ssh("eve")
        eve.ssh_keys.add((other.folder / "key.pub").read_text())
        for name in (session.name, session.id, f"{session.name}.main1"):
            refused = other.run(f"{name}@127.0.0.1", "id")
            assert refused.returncode == 255
            assert b"no such session" in refused.stderr
        with pytest.raises(moorage.errors.SshKeyTaken):
            eve.ssh_keys.add((ssh.folder / "key.pub").read_text())
        with pytest.raises(moorage.errors.SessionNotFound):
            eve.sessions.get(session.id)


def test_what_is_open_ends_with_the_right_to_it(
    installation: Installation,
    make_ssh: Callable[[str], Ssh],
    user: Callable[[str], moorage.Client],
) -> None:
    with user("leaver") as leaver:
        with leaver.sessions.create(cpu=1, mem="256m") as session, leaver.sessions.create(cpu=1, mem="256m") as second:
            mine = make_ssh("leaver")
            added = leaver.ssh_keys.add((mine.folder / "key.pub").read_text())

            def opened(name: str) -> subprocess.Popen[bytes]:
                process = mine.begin(f"{name}@127.0.0.1", "echo up; cat")
                assert process.stdout is not None
                assert process.stdout.read(3) == b"up\n"
                return process

            ends = opened(second.name)
            second.destroy(wait=False)
            _ended(ends, b"")
            removed = opened(session.name)
            leaver.ssh_keys.remove(added.id)
            _ended(removed, b"revoked")
            leaver.ssh_keys.add((mine.folder / "key.pub").read_text())
            disabled = opened(session.name)
            installation.run("admin", "user", "edit", "leaver@example.org", "--inactive")
            _ended(disabled, b"revoked")
            assert mine.run(f"{session.name}@127.0.0.1", "id").returncode == 255
            installation.run("admin", "user", "edit", "leaver@example.org", "--active")


def _ended(process: subprocess.Popen[bytes], said: bytes) -> None:
    began = time.monotonic()
    process.wait(timeout=10)
    assert process.stderr is not None
    err = process.stderr.read()
    assert time.monotonic() - began < 2.0
    assert process.returncode == 255, err
    assert said in err


def _patiently(attempt: Callable[[], bytes]) -> bytes:
    until = time.monotonic() + 10
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
