"""A PostgreSQL of one's own to do harm to: killed, stopped, starved, promoted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from manager.postgres import EmbeddedPostgres


class Postgres(EmbeddedPostgres):
    """With what an administrator, or bad luck, does to it."""

    @property
    def socket_dir(self) -> Path:
        return self._socket_dir()

    def crash(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: an immediate shutdown; SIGKILL: as if the machine had. Back when the process is gone."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)
            while self.pid == pid:
                time.sleep(0.005)

    def processes(self) -> list[int]:
        """The server's, the postmaster first."""
        postmaster = self.pid
        if postmaster is None:
            return []
        found = [postmaster]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == postmaster:
                found.append(int(process.name))
        return found

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """All of its processes hang."""
        there = self.processes()
        for pid in there:
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in there:
                _signal(pid, signal.SIGCONT)

    async def terminate_backends(self, *, per_second: float, seconds: float) -> int:
        """One connection of the managers after the other; how many."""
        connection: asyncpg.Connection[Any] = await asyncpg.connect(self.dsn)
        try:
            number, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                number += bool(
                    await connection.fetchval(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                        "AND datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
                    )
                )
                await asyncio.sleep(1 / per_second)
            return number
        finally:
            await connection.close()

    def copy_to(self, other: Postgres) -> None:
        """A standby that follows this server."""
        other.data_dir.mkdir(parents=True, exist_ok=True)
        target = other.data_dir / "data"
        told = subprocess.run(
            self.command(
                "pg_basebackup", "-h", str(self.socket_dir), "-U", "moorage", "-D", str(target), "-R", "-c", "fast"
            ),
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        if told.returncode != 0:
            raise RuntimeError(told.stderr)
        # what -R has written there would be lost with the settings that are written at each start
        line = f"primary_conninfo = 'host={self.socket_dir} user=moorage application_name=standby'\n"
        with (target / "postgresql.conf").open("a") as file:
            file.write(line)

    def promote(self) -> None:
        subprocess.run(
            self.command("pg_ctl", "promote", "-D", str(self.data_dir / "data")),
            check=True,
            capture_output=True,
            cwd="/",
        )


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
