"""Secrets are planted wherever Moorage is given or makes one, the main job is done, and then they are looked for everywhere:
none is found anywhere but in its own file, or as what it was hashed or sealed to."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
import moorage
import pytest
from moorage import errors

from manager.bootstrap import Credentials
from manager.postgres import wheel_binaries
from tests.trust.own import Own

#: Files that hold a secret by design, each readable by its owner only.
OWN_FILES = frozenset(
    {"manager.toml", "admin.json", "ca.key", "manager.key", "agent.key", "ssh_ca", "ssh_host_key", "direct.pem"}
)
REGISTRY = "registry.invalid:5000"


@contextmanager
def a_receiver() -> Iterator[str]:
    """Takes a session's webhooks."""

    class Taker(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(500)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    finally:
        server.shutdown()
        server.server_close()


def forms(secret: str) -> list[bytes]:
    """How it may be written: as it is, in base64 as a whole, in hexadecimal as PostgreSQL shows bytes."""
    raw = secret.encode()
    return [raw, base64.b64encode(raw).rstrip(b"=")[:-1], raw.hex().encode()]


def key_in(path: Path) -> str:
    """The middle of a PEM file's key."""
    lines = [line for line in path.read_text().splitlines() if "-----" not in line]
    return max(lines, key=len)


def found_in(where: Mapping[str, bytes], planted: Mapping[str, str]) -> list[str]:
    return [
        f"{name} in {place}"
        for place, content in where.items()
        for name, secret in planted.items()
        if any(form in content for form in forms(secret))
    ]


def processes() -> dict[str, bytes]:
    """Arguments and environment of everything that runs here, containers too, but for this test itself."""
    seen = {}
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        for what in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                seen[f"{process}/{what} ({process.name})"] = (process / what).read_bytes()
    return seen


def files_below(folder: Path) -> dict[str, bytes]:
    seen = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name not in OWN_FILES:
            seen[str(path)] = path.read_bytes()
    return seen


def container(engine: docker.DockerClient, session: moorage.Session) -> dict[str, bytes]:
    """What Docker tells of it, and every file in it that is not the image's."""
    [found] = engine.containers.list(filters={"label": f"moorage.session={session.id}"})
    seen = {"docker inspect": json.dumps(found.attrs).encode(), "docker logs": found.logs()}
    for folder in ("/home", "/etc", "/run", "/tmp", "/moorage", "/var/tmp", "/root"):
        with contextlib.suppress(docker.errors.NotFound):
            chunks, _ = found.get_archive(folder)
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                for member in archive:
                    if member.isfile() and (file := archive.extractfile(member)) is not None:
                        seen[f"{folder}:{member.name} in the container"] = file.read()
    return seen


def dump(dsn: str) -> bytes:
    if not (folders := wheel_binaries()):
        pytest.skip("no pg_dump here")
    for folder in folders:  # one of them is of the server's version
        done = subprocess.run([folder / "pg_dump", dsn], capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout
    raise AssertionError(done.stderr)


@pytest.mark.long
def test_no_secret_is_found_outside_of_its_own_place(own: Own, engine: docker.DockerClient) -> None:
    planted: dict[str, str] = {
        "the database's password": own.password,
        "a registry's password": "canary-of-a-registry-5e1f",
    }
    planted["the join token's secret"] = json.loads(base64.urlsafe_b64decode(own.join_token[4:] + "==="))[2]
    planted["the administrator's secret key"] = Credentials.load(own.manager_dir).secret_key
    for path in [*sorted((own.manager_dir / "pki").glob("*.key")), own.agent_dir / "pki" / "agent.key"]:
        planted[f"the key in {path.name}"] = key_in(path)
    told = io.StringIO()
    with own.client() as client, a_receiver() as hook:
        planted["a token"] = str(client.tokens.create("canary").token)
        planted["the webhooks' secret"] = client.webhooks.create_secret()
        user = client.users.create("canary@example.org")
        pair = client.keypairs.create(user=user.email)
        planted["a keypair's secret key"] = str(pair.secret_key)
        client.registries.set(REGISTRY, "somebody", planted["a registry's password"])
        with client.sessions.create(image="python", cpu=1, mem="256m", callback_url=hook) as session:
            assert session.run_code("import os; print(sorted(os.environ))").stdout
            session.commands.run("cat /proc/*/environ /proc/*/cmdline > /home/work/seen 2>/dev/null; true")
            session.files.write("/home/work/a file", b"x")
            job = session.executions.start("import time; time.sleep(60)")
            session.services.start("web", command=["python3", "-m", "http.server", "8000"], port=8000)
            session.services.open("web")
            _provoke(own, client, session, planted, told)
            places = {**processes(), **container(engine, session)}
            job.kill()
        events = json.dumps([event.to_json() for event in client.events(follow=False)])
        places["events"] = events.encode()
        places["the audit"] = json.dumps([one.to_json() for one in client.audit.list()]).encode()
        places["what was refused"] = told.getvalue().encode()
    dumped = dump(own.dsn)
    places |= {"the database's dump": dumped, "the logs": own.log.read_bytes()}
    places |= files_below(own.manager_dir) | files_below(own.agent_dir)
    assert b"canary@example.org" in dumped  # what is looked for can be found
    assert b"DEBUG" in places["the logs"]
    assert found_in({"here": base64.b64encode(b"xx" + b"canary")}, {"it": "xxcanary"}) == ["it in here"]
    assert found_in(places, planted) == []
    for path in [*own.manager_dir.rglob("*"), *own.agent_dir.joinpath("pki").iterdir()]:
        if path.is_file() and path.name in OWN_FILES:
            assert path.stat().st_mode & 0o077 == 0, path
    assert session.status is not None


def _provoke(
    own: Own, client: moorage.Client, session: moorage.Session, planted: Mapping[str, str], told: io.StringIO
) -> None:
    """Errors of every kind in which a secret could be repeated."""

    def with_a_wrong_key() -> None:
        with moorage.Client(
            endpoint=f"http://127.0.0.1:{own.port}", access_key="NOBODY", secret_key=planted["a token"]
        ) as nobody:
            nobody.whoami()

    wrong: list[Callable[[], object]] = [
        with_a_wrong_key,
        lambda: client.images.pull(f"{REGISTRY}/a:1").wait(timeout=60),
        lambda: session.to_image(f"{REGISTRY}/b:1").wait(timeout=60),
        lambda: client.registries.set("not a host", "u", planted["a registry's password"]),
    ]  # fmt: skip
    for one in wrong:
        with pytest.raises(errors.MoorageError) as refused:
            one()
        told.write(f"{refused.value!r} {refused.value}\n")
    again = subprocess.run(
        [Path(os.sys.executable).parent / "moorage", "agent", "join", "-", "--data-dir", own.folder / "again"],  # type: ignore[attr-defined]
        input=own.join_token, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode != 0
    assert re.search("used already", again.stderr)
    told.write(again.stdout + again.stderr)
