"""An installation of its own for tests that break or search it: a manager and an agent as processes, on a database of the
tests' server; everything in debug logging."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import moorage

from bench.installation import MOORAGE
from manager.bootstrap import Credentials

SECONDS = 60.0


@dataclass
class Own:
    folder: Path
    dsn: str  #: with a password, which the server of tests does not look at
    password: str
    engine_host: str
    port: int
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    join_token: str = ""

    @property
    def manager_dir(self) -> Path:
        return self.folder / "manager"

    @property
    def agent_dir(self) -> Path:
        return self.folder / "agent"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def client(self) -> moorage.Client:
        admin = Credentials.load(self.manager_dir)
        return moorage.Client(
            endpoint=f"http://127.0.0.1:{self.port}", access_key=admin.access_key, secret_key=admin.secret_key
        )

    def start(self, name: str, *words: str) -> None:
        environ = {**os.environ, "DOCKER_HOST": self.engine_host}
        environ.pop("DATABASE_URL", None)
        with self.log.open("ab") as log:
            self.children[name] = subprocess.Popen(
                [MOORAGE, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )

    def start_manager(self) -> None:
        self.start("manager", "manager", "--data-dir", str(self.manager_dir))
        self.until(self.is_ready)

    def start_agent(self) -> None:
        self.start("agent", "agent", "--data-dir", str(self.agent_dir), "--log-level", "DEBUG")

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        child = self.children.pop(name)
        child.send_signal(number)
        child.wait(30)

    def metrics(self) -> str:
        """As a Prometheus on this machine is given them. OSError when it is not."""
        status, body = self._get("/metrics")
        if status != 200:
            raise ConnectionError(f"/metrics is {status}")
        return body.decode()

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            with connection.getresponse() as answer:  # one that breaks off keeps its socket otherwise
                return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None
        finally:
            connection.close()

    def until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(self.log.read_text()[-3000:])
            time.sleep(0.05)  # other processes: nothing to wait on but asking again

    def is_ready(self) -> bool:
        return self._get("/readyz")[0] == 200

    def agent_is_there(self) -> bool:
        with self.client() as client:
            return any(agent.last_seen_at and not agent.lost for agent in client.agents.list())


@contextmanager
def installed(folder: Path, dsn: str, engine_host: str, image: str, *, small_disk: bool = False) -> Iterator[Own]:
    """`small_disk`: the manager's folder is on a disk of 16 MiB, where this may be done."""
    password = f"canary-{secrets.token_hex(12)}"
    port, control_port = _free_port(), _free_port()
    own = Own(folder, _with_password(dsn, password), password, engine_host, port)
    own.manager_dir.mkdir(mode=0o700)
    mounted = small_disk and os.geteuid() == 0
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "none", own.manager_dir], check=True)
    settings = own.manager_dir / "manager.toml"
    settings.touch(mode=0o600)
    settings.write_text(
        f'database_url = "{own.dsn}"\nport = {port}\nagent_control_port = {control_port}\nlog_level = "DEBUG"\n'
    )
    try:
        own.start_manager()
        with own.client() as client:
            own.join_token = client.agents.create_token()
            client.images.register(image, aliases=["python"])
        join = [MOORAGE, "agent", "join", "-", "--data-dir", str(own.agent_dir), "--name", "own", "--cpu", "64"]
        joined = subprocess.run(join, input=own.join_token, capture_output=True, text=True, check=False)
        assert joined.returncode == 0, joined.stderr
        own.start_agent()
        own.until(own.agent_is_there)
        yield own
    finally:
        for name in list(own.children):
            own.stop(name)
        if mounted:
            subprocess.run(["umount", own.manager_dir], check=True)


def _with_password(dsn: str, password: str) -> str:
    parts = urlsplit(dsn)
    if parts.password:
        return dsn
    user = parts.username or "moorage"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
