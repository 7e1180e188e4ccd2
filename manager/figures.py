"""The installation's figures beside this process's own, read when somebody scrapes and at most each few seconds."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from domain.session import FINAL, Status
from manager.metrics import Metrics
from repositories import figures
from repositories.database import Database

log = logging.getLogger("moorage.figures")
KEPT_SECONDS: Final = 1.0
_READ_SECONDS: Final = 3.0
ROLES: Final = ("api", "control", "proxy")
#: What agents tell with every sign of life: {disk: [free, size]} in bytes, by host.
Disks = Callable[[], Mapping[str, Mapping[str, Any]]]


class InstallationFigures:
    """`refresh` before the exposition. A database that does not answer leaves its own word and nothing else."""

    def __init__(self, database: Database, metrics: Metrics, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._read_at = -KEPT_SECONDS
        self._lock = asyncio.Lock()
        self.disks: Disks = dict
        self.data_dir: Path | None = None
        gauge = metrics.gauge
        self._up = gauge("moorage_database_up", "Whether the database answers this manager.")
        self._sessions = gauge("moorage_sessions", "Live sessions, by status.", "status")
        self._overdue = gauge("moorage_sessions_overdue", "Sessions in a status that should have passed 30 s ago.")
        self._oldest = gauge("moorage_queue_oldest_seconds", "How long the first session waits that may be placed.")
        self._intents = gauge(
            "moorage_intents_overdue", "Containers whose host was not told for 2 minutes what is wanted."
        )
        self._tasks = gauge("moorage_tasks_overdue", "Background tasks that no manager has worked on for 2 minutes.")
        self._audit = gauge(
            "moorage_audit_unchained_seconds", "How long the oldest row waits for its link in the chain."
        )
        self._events = gauge("moorage_events_unnumbered_seconds", "How long the oldest event waits for its number.")
        self._managers = gauge("moorage_managers", "Manager processes with a sign of life, by role.", "role")
        self._lost = gauge("moorage_agent_lost", "1 for a host that is not heard of any more.", "agent")
        self._free = gauge("moorage_disk_free_bytes", "Free on a disk of a host, or of this manager.", "agent", "disk")
        self._size = gauge("moorage_disk_size_bytes", "Size of that disk.", "agent", "disk")

    async def refresh(self) -> None:
        async with self._lock:  # many scrapers at once are one read
            if time.monotonic() - self._read_at < KEPT_SECONDS:
                return
            try:
                async with asyncio.timeout(_READ_SECONDS), self._database.reader() as connection:
                    self._show(await figures.read(connection, now=self._now()))
                self._up.set(1)
            except Exception as error:  # whatever it is, it is this that a scrape is to tell
                log.warning("the installation's figures cannot be read: %r", error)
                self._up.set(0)
            self._show_disks()
            self._read_at = time.monotonic()

    def _show(self, found: figures.Figures) -> None:
        for status in Status:
            if status not in FINAL:
                self._sessions.labels(str(status)).set(found.sessions.get(str(status), 0))
        self._overdue.set(found.overdue)
        self._oldest.set(found.oldest_seconds)
        self._intents.set(found.intents)
        self._tasks.set(found.tasks)
        self._audit.set(found.audit_seconds)
        self._events.set(found.events_seconds)
        for role in {*ROLES, *found.managers}:
            self._managers.labels(role).set(found.managers.get(role, 0))
        self._lost.clear()
        for agent, lost in found.lost.items():
            self._lost.labels(agent).set(int(lost))

    def _show_disks(self) -> None:
        self._free.clear()
        self._size.clear()
        for agent, disks in self.disks().items():
            for disk, (free, size) in disks.items():
                self._free.labels(agent, disk).set(free)
                self._size.labels(agent, disk).set(size)
        if self.data_dir is not None:
            usage = shutil.disk_usage(self.data_dir)
            self._free.labels("", "manager").set(usage.free)
            self._size.labels("", "manager").set(usage.total)
