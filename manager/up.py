"""`moorage up`: an embedded PostgreSQL, one manager and one agent on this machine, kept running; and how it is stopped."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from domain.doctor import Diagnosis, Level, bad
from manager.bootstrap import Credentials, bootstrap, new_join_token
from manager.config import ManagerConfig, default_data_dir
from manager.postgres import EmbeddedPostgres, PostgresFailed

log = logging.getLogger("moorage.up")
_READY_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30.0
_RESTART_PAUSE_SECONDS: Final = 1.0
_TIDY_SECONDS: Final = 60.0
_LOG_BYTES: Final = 20 << 20
_LOGS_KEPT: Final = 4


class CannotStart(Exception):
    """The installation does not come up; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A one-machine installation in its data dir."""

    data_dir: Path

    @classmethod
    def at(cls, data_dir: Path | None) -> Installation:
        return cls((data_dir or default_data_dir()).absolute())

    @property
    def lock_file(self) -> Path:
        return self.data_dir / "up.lock"

    @property
    def log_file(self) -> Path:
        return self.data_dir / "log" / "moorage.log"

    @property
    def agent_dir(self) -> Path:
        return self.data_dir / "agent"

    def summary(self) -> dict[str, Any]:
        """What `up --json` prints."""
        credentials, config = Credentials.load(self.data_dir), ManagerConfig.load(self.data_dir)
        return {
            "endpoint": config.endpoint,
            "access_key": credentials.access_key,
            "secret_key": credentials.secret_key,
            "data_dir": str(self.data_dir),
            "ssh_port": config.ssh_port,
            **({"fronts": config.front_names()} if config.fronts else {}),
            **({"grpc_port": config.grpc_port} if config.grpc_port else {}),
        }

    def runner_pid(self) -> int | None:
        """The process that holds the lock, or None when nothing runs here."""
        try:
            with self.lock_file.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except (FileNotFoundError, ValueError):
            pass
        return None

    def is_ready(self) -> bool:
        """Whether the API answers and an agent is connected."""
        try:
            config = ManagerConfig.load(self.data_dir)
            return _get(config, "/readyz")[0] == 200 and _agent_is_connected(config, self)
        except (OSError, ValueError, KeyError):
            return False

    def status(self) -> dict[str, Any]:
        """What `moorage status` prints."""
        running = self.runner_pid() is not None
        state: dict[str, Any] = {
            "running": running,
            "ready": running and self.is_ready(),
            "data_dir": str(self.data_dir),
        }
        if running:
            state["endpoint"] = ManagerConfig.load(self.data_dir).endpoint
            state["postgres"] = EmbeddedPostgres(self.data_dir / "postgres").pid is not None
            state["log"] = str(self.log_file)
        return state

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held for as long as the installation runs; the file names the process."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotStart(f"{self.data_dir} is in use by another 'moorage up'.") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def run(
    installation: Installation,
    *,
    port: int | None,
    fronts: Sequence[str] = (),
    agent_options: list[str],
    ready: Callable[[], None],
) -> None:
    """Bring everything up, say `ready`, keep it running until SIGTERM or SIGINT, and stop it in order."""
    with installation.locked():
        installation.log_file.parent.mkdir(mode=0o700, exist_ok=True)
        # Blocked from the beginning: a signal in mid-start is answered when the loop below is reached.
        stops = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, {*stops, signal.SIGCHLD})
        postgres = EmbeddedPostgres(installation.data_dir / "postgres")
        children: dict[str, subprocess.Popen[bytes]] = {}
        try:
            config = _prepare(installation, postgres, port, fronts)
            children["manager"] = _spawn(installation, *_words(installation, "manager"))
            _wait_for_http(config, children["manager"], installation)
            if not (installation.agent_dir / "agent.toml").exists():
                _join(installation, config, agent_options)
            children["agent"] = _spawn(installation, *_words(installation, "agent"))
            _wait_for_agent(config, installation, children["agent"])
            ready()
            _keep_running(installation, postgres, children, stops)
        finally:
            _stop(children)
            postgres.stop()


def _prepare(
    installation: Installation, postgres: EmbeddedPostgres, port: int | None, fronts: Sequence[str]
) -> ManagerConfig:
    try:
        dsn = postgres.start()
    except PostgresFailed as error:
        raise CannotStart(str(error)) from None
    stored = ManagerConfig.load(installation.data_dir, database_url=dsn, fronts=",".join(fronts) or None)
    config = replace(
        stored,
        port=_chosen_port(stored.port if port is None else port),
        agent_api_port=stored.agent_api_port or _chosen_port(0),
        agent_control_port=stored.agent_control_port or _chosen_port(0),
        proxy_port=stored.proxy_port or _chosen_port(0),
        ssh_port=stored.ssh_port or _chosen_port(0),
        grpc_port=stored.grpc_port or (_chosen_port(0) if "grpc" in stored.front_names() else 0),
    )
    config.save()
    _migrate(dsn)
    image = _ensure_image()
    asyncio.run(bootstrap(config, image=image, now=datetime.now(UTC)))
    return config


def _chosen_port(port: int) -> int:
    if port:
        return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _migrate(dsn: str) -> None:
    """In a process of its own: Alembic's memory goes with it."""
    done = subprocess.run(
        [sys.executable, "-m", "repositories.migrate"],
        env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
        input=dsn,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotStart(f"The database could not be brought to this version: {done.stderr.strip().splitlines()[-1:]}")


def _ensure_image() -> str:
    """The default kernel image, made when the engine has none. Says in one sentence when there is no engine."""
    done = subprocess.run(
        [sys.executable, "-m", "images.build"], stdout=subprocess.PIPE, stderr=None, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotStart(
            "No Docker engine answers; install Docker and start it, or set DOCKER_HOST ('docker version' must work)."
        )
    return done.stdout.strip().splitlines()[-1]


def examine_agent(installation: Installation) -> list[Diagnosis]:
    """What `moorage agent doctor` says of the host of this installation's agent."""
    words = ("agent", "doctor", "--json", "--data-dir", str(installation.agent_dir))
    done = subprocess.run([*moorage_command(), *words], capture_output=True, text=True, check=False)
    try:
        return [Diagnosis(**{**one, "level": Level(one["level"])}) for one in json.loads(done.stdout)]
    except ValueError:
        return [bad("agent", "cannot be looked at", done.stderr.strip()[-400:])]


def _words(installation: Installation, name: str) -> tuple[str, ...]:
    if name == "agent":
        return name, "--data-dir", str(installation.agent_dir)
    return name, "--data-dir", str(installation.data_dir), "--drain-seconds", "0"  # nobody else would serve meanwhile


def _spawn(installation: Installation, *words: str) -> subprocess.Popen[bytes]:
    with installation.log_file.open("ab") as log_file:
        return subprocess.Popen(
            [*moorage_command(), *words],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            preexec_fn=_unblock_signals,  # noqa: PLW1509 - no threads here
        )


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def moorage_command() -> list[str]:
    """The `moorage` of this very installation, so that processes show by that name."""
    beside = Path(sys.executable).parent / "moorage"
    found = str(beside) if beside.exists() else shutil.which("moorage")
    return [found] if found else [sys.executable, "-m", "moorage"]


def _join(installation: Installation, config: ManagerConfig, options: list[str]) -> None:
    expires_at = datetime.now(UTC) + timedelta(minutes=10)
    token = asyncio.run(new_join_token(config, expires_at=expires_at))
    done = subprocess.run(
        [
            *moorage_command(),
            "agent",
            "join",
            "-",
            "--data-dir",
            str(installation.agent_dir),
            "--volumes",
            str(installation.data_dir / "volumes"),
            *options,
        ],
        input=token,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_unblock_signals,
    )
    if done.returncode != 0:
        raise CannotStart(f"The agent could not join: {done.stderr.strip()[-400:]}")


def _wait_for_http(config: ManagerConfig, manager: subprocess.Popen[bytes], installation: Installation) -> None:
    _wait(lambda: _get(config, "/readyz")[0] == 200, manager, "manager", installation)


def _wait_for_agent(config: ManagerConfig, installation: Installation, agent: subprocess.Popen[bytes]) -> None:
    _wait(lambda: _agent_is_connected(config, installation), agent, "agent", installation)


def _agent_is_connected(config: ManagerConfig, installation: Installation) -> bool:
    credentials = Credentials.load(installation.data_dir)
    status, body = _get(config, "/v1/agents", f"{credentials.access_key}.{credentials.secret_key}")
    return status == 200 and any(item["last_seen_at"] and not item["lost"] for item in json.loads(body)["items"])


def _wait(done: Callable[[], bool], child: subprocess.Popen[bytes], name: str, installation: Installation) -> None:
    until = time.monotonic() + _READY_SECONDS
    while True:
        try:
            if done():
                return
        except OSError:
            pass
        if child.poll() is not None or time.monotonic() > until:
            raise CannotStart(f"The {name} does not come up; see {installation.log_file}.")
        time.sleep(0.03)


def _get(config: ManagerConfig, path: str, bearer: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(config.host, config.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _keep_running(
    installation: Installation,
    postgres: EmbeddedPostgres,
    children: dict[str, subprocess.Popen[bytes]],
    stops: set[signal.Signals],
) -> None:
    """Restart what dies. PostgreSQL is no child of ours, so it is looked at every second."""
    started: dict[str, float] = {}
    next_tidying = 0.0
    while True:
        got = signal.sigtimedwait({*stops, signal.SIGCHLD}, 1.0)
        if got is not None and got.si_signo in stops:
            return
        if time.monotonic() >= next_tidying:
            next_tidying = time.monotonic() + _TIDY_SECONDS
            rotate(installation.log_file)
            postgres.prune_logs()
        if postgres.pid is None:
            try:
                log.error("PostgreSQL is gone; starting it again")
                postgres.start()
            except (PostgresFailed, OSError) as error:  # a full disk, say: sessions go on, and so does this
                log.error("%s (trying on)", error)
        for name, child in children.items():
            if child.poll() is None:
                continue
            if time.monotonic() - started.get(name, 0.0) < _RESTART_PAUSE_SECONDS:
                continue  # it died right away: the next round is soon enough
            log.error("the %s ended with %s; starting it again", name, child.returncode)
            started[name] = time.monotonic()
            children[name] = _spawn(installation, *_words(installation, name))


def rotate(log_file: Path, *, most_bytes: int = _LOG_BYTES, kept: int = _LOGS_KEPT) -> bool:
    """Begin the log anew when it has grown too long: `moorage.log.1` is the one before. Its writers, who append, go on."""
    if not log_file.exists() or log_file.stat().st_size <= most_bytes:
        return False
    for number in range(kept, 1, -1):
        older = log_file.with_name(f"{log_file.name}.{number - 1}")
        if older.exists():
            older.replace(log_file.with_name(f"{log_file.name}.{number}"))
    shutil.copyfile(log_file, log_file.with_name(f"{log_file.name}.1"))
    os.truncate(log_file, 0)
    return True


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in reversed(children.values()):
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def down(installation: Installation, *, timeout_seconds: float = 90.0) -> bool:
    """Stop what `up` runs; False when nothing did. Sessions' containers go on, and `up` finds them again."""
    if (pid := installation.runner_pid()) is None:
        return False
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + timeout_seconds
    while installation.runner_pid() is not None:
        if time.monotonic() > until:
            raise CannotStart(f"Process {pid} does not stop; see {installation.log_file}.")
        time.sleep(0.05)
    return True
