"""Sessions that wait for others, and what batch sessions leave."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import httpx

from moorage import _wire
from moorage._models import DependencyGraph
from moorage.aio import _io
from moorage.aio._transport import Transport
from moorage.aio.files import LocalPath, OnProgress, _arriving, _unpack, fetch_whole


class Named(Protocol):
    """A session."""

    @property
    def id(self) -> str: ...


#: One session or several, each as itself, by name, or by id.
Sessions = str | Named | Iterable[str | Named]


def dependencies(on_success: Sessions = (), on_any_end: Sessions = ()) -> list[dict[str, str]] | None:
    """As the server takes them; None when there are none."""
    found = [{"session": name, "condition": "success"} for name in names(on_success)]
    found += [{"session": name, "condition": "end"} for name in names(on_any_end)]
    return found or None


def names(sessions: Sessions) -> list[str]:
    if isinstance(sessions, str):
        return [sessions]
    if not isinstance(sessions, Iterable):
        return [sessions.id]
    return [one if isinstance(one, str) else one.id for one in sessions]


def moment(at: datetime | str | None) -> str | None:
    """In ISO 8601; a time without a zone is local."""
    if at is None or isinstance(at, str):
        return at
    return at.astimezone(UTC).isoformat()


class SessionBatch:
    """Of one session; part of `Session`."""

    _transport: Transport
    _base: str
    _owner: dict[str, str]

    if TYPE_CHECKING:

        def _take(self, answer: httpx.Response) -> Self: ...

    async def dependency_graph(self) -> DependencyGraph:
        """Everything that it waits for or that waits for it, directly or through others, and how each stands."""
        return DependencyGraph.from_json(await self._transport.get(f"{self._base}/dependency-graph", **self._owner))

    async def draw_dependencies(self, format: str = "svg") -> str:
        """The same as a picture (`svg`), or as a text for Graphviz (`dot`)."""
        params = {**self._owner, "format": format}
        return (await self._transport.request("GET", f"{self._base}/dependency-graph", params=params)).text

    async def add_dependencies(self, on_success: Sessions = (), *, on_any_end: Sessions = ()) -> Self:
        """Let it wait for further sessions, while it is PENDING. Raises `DependencyCycle` for one that waits for it."""
        fields = {"add_dependencies": dependencies(on_success, on_any_end) or []}
        return self._take(await self._transport.request("PATCH", self._base, params=self._owner, json=fields))

    async def remove_dependencies(self, sessions: Sessions) -> Self:
        """Let it wait for these no longer, while it is PENDING."""
        fields = {"remove_dependencies": names(sessions)}
        return self._take(await self._transport.request("PATCH", self._base, params=self._owner, json=fields))

    async def reschedule(
        self,
        *,
        starts_at: datetime | str | None = None,
        batch_timeout: float | None = None,
        max_retries: int | None = None,
    ) -> Self:
        """Change when it starts, while it is PENDING; how long its work may take; how often it is tried again."""
        fields = _wire.body(starts_at=moment(starts_at), batch_timeout=batch_timeout, max_retries=max_retries)
        return self._take(await self._transport.request("PATCH", self._base, params=self._owner, json=fields))

    async def download_results(
        self, local: LocalPath | None = None, *, attempt: int | None = None, on_progress: OnProgress | None = None
    ) -> Path:
        """Fetch what a batch session left in the places named by its `outputs`, once it has ended.

        Unpacked into the folder `local` (by default `results`), or kept as an archive when that ends in `.tar`.
        """
        target = Path(local) if local is not None else Path("results")
        if target.suffix == ".tar":
            with _arriving(target) as file:
                await self._fetch_results(file, attempt, on_progress)
            return target
        with tempfile.TemporaryFile() as file:
            await self._fetch_results(file, attempt, on_progress)
            await _io.in_thread(_unpack, file, target, ["", ""])
        return target

    async def _fetch_results(self, file: IO[Any], attempt: int | None, on_progress: OnProgress | None) -> None:
        params = {**self._owner, **_wire.query(attempt=attempt)}
        await fetch_whole(
            lambda: self._transport.stream("GET", f"{self._base}/results", params=params), file, on_progress
        )
