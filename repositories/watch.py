"""Thresholds that administrators have set, figures of sessions under watch, warnings and exemptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from domain.ids import SessionId
from domain.session import Session
from domain.watch import SETTINGS, Settings, Watched, Window, windows_of, with_changes
from repositories.database import Connection
from repositories.metrics import KernelRow, MetricsRepository, Used

_MIB = 1024.0 * 1024.0
Stored = Mapping[str, Settings]


class WatchRepository:
    """Of one unit of work."""

    def __init__(self, connection: Connection, *, now: datetime) -> None:
        self._connection = connection
        self._now = now

    # -- thresholds ------------------------------------------------------------------------------------------------------
    async def stored(self) -> Stored:
        """By scope ('' is the installation, else a project's id): what differs from the declared settings."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for row in await self._connection.fetch("SELECT scope, name, settings FROM watch_rules"):
            found.setdefault(row["scope"], {})[row["name"]] = row["settings"]
        return found

    async def settings(self, project_id: UUID | None) -> dict[str, dict[str, float]]:
        return settings_of(await self.stored(), project_id)

    async def change(self, project_id: UUID | None, changes: Settings) -> None:
        for name, values in changes.items():
            await self._connection.execute(
                """
                INSERT INTO watch_rules AS w (scope, name, settings, changed_at) VALUES ($1, $2, $3, $4)
                ON CONFLICT (scope, name) DO UPDATE SET settings = w.settings || excluded.settings, changed_at = $4
                """,
                str(project_id or ""),
                name,
                dict(values),
                self._now,
            )

    async def reset(self, project_id: UUID | None) -> None:
        """Back to what is declared, or for a project to what holds for all."""
        await self._connection.execute("DELETE FROM watch_rules WHERE scope = $1", str(project_id or ""))

    # -- figures ---------------------------------------------------------------------------------------------------------
    async def watched(self, sessions: Sequence[Session]) -> list[tuple[Session, Watched, dict[str, dict[str, float]]]]:
        """Each with its figures, over the windows that its own settings ask for, up to now or to its end."""
        projects = await self._projects([session.id for session in sessions])
        stored = await self.stored()
        rules = {session.id: settings_of(stored, projects.get(session.id)) for session in sessions}
        kernels = await MetricsRepository(self._connection).kernels([s.id for s in sessions], present_only=True)
        found = []
        for until, members in _by_end(sessions, self._now).items():
            lengths = sorted(set().union(*(windows_of(rules[session.id]) for session in members)))
            ids = {session.id for session in members}
            of_these = [kernel for kernel in kernels if kernel.session_id in ids]
            sums = {
                length: await MetricsRepository(self._connection).sums(
                    [kernel.id for kernel in of_these], since=until - timedelta(seconds=length), until=until
                )
                for length in lengths
            }
            for session in members:
                own = [kernel for kernel in of_these if kernel.session_id == session.id]
                windows = {length: window(own, sums[length], length, until) for length in lengths}
                found.append((session, _watched(session, own, windows, until), rules[session.id]))
        return found

    async def _projects(self, sessions: Sequence[SessionId]) -> dict[SessionId, UUID]:
        rows = await self._connection.fetch("SELECT id, project_id FROM sessions WHERE id = ANY($1::uuid[])", sessions)
        return {SessionId(row["id"]): row["project_id"] for row in rows}

    # -- exemptions ------------------------------------------------------------------------------------------------------
    async def exempt(self, session_id: SessionId, *, reason: str, by: str) -> None:
        await self._connection.execute(
            """
            INSERT INTO idle_exemptions (session_id, reason, by_access_key, created_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (session_id) DO UPDATE SET reason = excluded.reason, by_access_key = excluded.by_access_key
            """,
            session_id,
            reason,
            by,
            self._now,
        )
        await self._connection.execute("DELETE FROM idle_warnings WHERE session_id = $1", session_id)

    async def watch_again(self, session_id: SessionId) -> None:
        await self._connection.execute("DELETE FROM idle_exemptions WHERE session_id = $1", session_id)


def settings_of(stored: Stored, project_id: UUID | None) -> dict[str, dict[str, float]]:
    """The declared ones, changed by the installation's, changed by the project's."""
    return with_changes(with_changes(SETTINGS, stored.get("", {})), stored.get(str(project_id or "-"), {}))


def window(kernels: Sequence[KernelRow], used: Mapping[UUID, Used], length: float, until: datetime) -> Window:
    """A session's containers together."""
    found = [used[kernel.id] for kernel in kernels if kernel.id in used]
    covered = min((one.seconds for one in found), default=0.0) if len(found) == len(kernels) else 0.0
    return Window(
        since=until - timedelta(seconds=length),
        until=until,
        covered=min(1.0, covered / length),
        cpu=sum(one.cpu_seconds / one.seconds for one in found if one.seconds),
        mem_max=sum(one.mem_max_bytes for one in found) / _MIB,
        tx_bytes=sum(one.net_tx_bytes for one in found),
        processes=max((one.pids for one in found), default=0),
        forks_refused=sum(one.forks_refused for one in found),
        oom_kills=sum(one.oom_kills for one in found),
        gpu=sum(one.gpu_seconds / one.seconds for one in found if one.seconds),
        gpus_seen=sum(one.gpus for one in found),
    )


def _watched(session: Session, kernels: Sequence[KernelRow], windows: Any, until: datetime) -> Watched:
    def held(name: str) -> float:
        return float(sum(kernel.slots.get(name, 0) for kernel in kernels))

    started = session.started_at
    return Watched(
        held_cpu=held("cpu") / 1000,
        held_mem=held("mem"),
        held_gpus=float(sum(kernel.gpus for kernel in kernels)),
        running_seconds=0.0 if started is None else max(0.0, (until - started).total_seconds()),
        windows=windows,
    )


def _by_end(sessions: Sequence[Session], now: datetime) -> dict[datetime, list[Session]]:
    found: dict[datetime, list[Session]] = {}
    for session in sessions:
        found.setdefault(min(session.ended_at or now, now), []).append(session)
    return found
