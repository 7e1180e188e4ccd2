"""Runs: delivered at most once, followed to their end, told until a manager has written it down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agent.rings import RingReader, RunnerError, whole
from agent.runner_link import RunnerLink, Tail
from agent.store import Store
from agent.wire import RunDone, RunRead, decode_records

log = logging.getLogger("moorage.agent.runs")
#: Between two batches of ends: the first of a burst is told at once.
_GATHER_SECONDS: Final = 0.05
#: No run has so many records: waiting for what comes after this one is waiting for the run's end.
_NEVER: Final = 1 << 60
_LONG_SECONDS: Final = 3600.0
_LATEST_SECONDS: Final = 4e9


class Runs:
    """All runs of this host. `changed` is set when there is an end to tell."""

    def __init__(self, store: Store, changed: asyncio.Event) -> None:
        self._store = store
        self._changed = changed
        self._untold: dict[str, RunDone] = {}
        self._ended: list[RunDone] = []
        self._writing: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        self._untold = {run.run_id: run for run in await self._store.untold_runs()}

    async def tell_again(self) -> None:
        """Of every run that is kept, how it ended."""
        await self._store.tell_runs_again()
        self._untold |= {run.run_id: run for run in await self._store.untold_runs()}

    async def begin(self, run_id: str, kernel_id: str, attempt: int) -> bool:
        """On disk when this returns. False when it was begun before."""
        return await self._store.begin_run(run_id, kernel_id, attempt)

    async def refused(self, run_id: str) -> None:
        await self._store.refuse_run(run_id)

    async def finished(self, run_id: str, kernel_id: str, attempt: int, done: dict[str, Any], last_seq: int) -> None:
        """`done` comes from a container: it may hold anything."""
        run = RunDone(
            run_id=run_id,
            kernel_id=kernel_id,
            attempt=attempt,
            started_at=_number(done.get("started_at")),
            finished_at=_number(done.get("finished_at")) or 0.0,
            exit_code=_whole(done.get("exit_code")),
            signal=_whole(done.get("signal")),
            reason=_text(done.get("reason") or "finished"),
            last_seq=last_seq,
            output_bytes=_whole(done.get("bytes")) or 0,
        )
        self._ended.append(run)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="ends of runs")

    async def _write(self) -> None:
        """Ends of a moment together. What a crash loses here is found again in the rings."""
        while self._ended:
            ended = self._ended[:]
            try:
                new = await self._store.finish_runs(ended)
            except sqlite3.Error:
                log.exception("the ends of %d runs could not be written; trying again", len(ended))
                await asyncio.sleep(1.0)
                continue
            del self._ended[: len(ended)]
            self._untold |= {run.run_id: run for run in new}
            self._changed.set()
            await asyncio.sleep(_GATHER_SECONDS)
        self._writing = None

    def pending(self) -> Sequence[RunDone]:
        return list(self._untold.values())

    def acknowledged(self, runs: Iterable[RunDone]) -> None:
        told = [run.run_id for run in runs if self._untold.pop(run.run_id, None)]
        if told:
            task = asyncio.create_task(self._store.runs_told(told), name="runs told")
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def unfinished(self, kernel_id: str) -> list[tuple[str, int]]:
        """(run id, attempt) of what was begun and has no known end."""
        return [(run, attempt) for run, kernel, attempt in await self._store.unfinished_runs() if kernel == kernel_id]

    async def close(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=2.0)
        await asyncio.gather(*self._background, return_exceptions=True)


async def follow(link: RunnerLink, run_id: str) -> Tail:
    """Until the run has ended. Raises RunnerError when the runner is lost before."""
    while True:
        tail = await link.wait_tail(run_id, _NEVER, _LONG_SECONDS)
        if tail.done:
            return tail


class Rings:
    """The output of one kernel, with or without a container."""

    def __init__(self, link_dir: Path) -> None:
        self._link_dir = link_dir
        self._reader: RingReader | None = None
        self._statuses: dict[str, str] = {}

    async def read(
        self, link: RunnerLink | None, run_id: str, *, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        """Records from `from_seq` on; waits for the first when the runner can still write one."""
        try:
            return await self._read(link, run_id, from_seq, max_bytes, wait_seconds)
        finally:
            if link is None:  # its container is gone: thousands of such kernels are kept, and none holds a descriptor
                self.close()

    async def _read(
        self, link: RunnerLink | None, run_id: str, from_seq: int, max_bytes: int, wait_seconds: float
    ) -> RunRead:
        chunk = self.reader.read(run_id, from_seq, max_bytes)
        if not chunk.records and chunk.done is None and (done := self.done(run_id)) is not None:
            # asked beyond the end, or the end came in between
            chunk = self.reader.read(run_id, from_seq, max_bytes)
            if not chunk.records:
                chunk = replace(chunk, done=done)
        elif not chunk.records and chunk.done is None and wait_seconds > 0 and link is not None:
            # when the runner is lost meanwhile: what it left is the answer
            with contextlib.suppress(RunnerError):
                self.saw(await link.wait_tail(run_id, max(from_seq - 1, 0), wait_seconds))
            chunk = self.reader.read(run_id, from_seq, max_bytes)
        if chunk.status is not None:
            self._statuses[run_id] = chunk.status
        if chunk.done is not None:
            self._statuses.pop(run_id, None)
        return RunRead(
            run_id=run_id,
            records=chunk.records,
            next_seq=chunk.next_seq,
            gap=chunk.gap,
            status="done" if chunk.done is not None else self._statuses.get(run_id, "running"),
            done=None if chunk.done is None else sane(chunk.done),
        )

    def whole(self, tail: Tail) -> RunRead | None:
        """A short run's output out of the answer itself, which spares the way over the disk."""
        chunk = whole(tail.records, tail.seq) if tail.done and tail.records else None
        if chunk is None:
            return None
        return RunRead(
            run_id=tail.run,
            records=chunk.records,
            next_seq=chunk.next_seq,
            gap=None,
            status="done",
            done=sane(chunk.done or {}),
        )

    def saw(self, tail: Tail) -> None:
        """A status that the records may not say."""
        if tail.done:
            self._statuses.pop(tail.run, None)
        else:
            self._statuses[tail.run] = tail.status

    def end(self, run_id: str) -> tuple[dict[str, Any], int] | None:
        """How a run ended, and its last record. Reads all of its output: for runs whose runner is gone."""
        seq = 1
        while True:
            try:
                chunk = self.reader.read(run_id, seq, 8 << 20)
            except RunnerError:
                return None
            if chunk.done is not None:
                return chunk.done, chunk.next_seq - 1
            if not chunk.records:
                return None
            seq = chunk.next_seq

    def done(self, run_id: str) -> dict[str, Any] | None:
        with contextlib.suppress(RunnerError):
            return self.reader.done(run_id)
        return None

    def text(self, run_id: str, last_bytes: int) -> str:
        """The end of a run's output, as text."""
        pieces, seq = b"", 1
        with contextlib.suppress(RunnerError):
            while (chunk := self.reader.read(run_id, seq, 1 << 20)).records:
                output = [r.payload for r in decode_records(chunk.records) if r.kind in ("stdout", "stderr")]
                pieces = (pieces + b"".join(output))[-last_bytes:]
                seq = chunk.next_seq
        return pieces.decode("utf-8", "replace").replace("\x00", "\ufffd")

    @property
    def reader(self) -> RingReader:
        if self._reader is None:
            self._reader = RingReader(self._link_dir)
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def sane(done: dict[str, Any]) -> dict[str, Any]:
    """How a run ended, as its container says it, with nothing in it that cannot be passed on."""
    return {
        "exit_code": _whole(done.get("exit_code")),
        "signal": _whole(done.get("signal")),
        "reason": _text(done.get("reason") or "finished"),
        "namespace_lost": done.get("namespace_lost") is True,
        "started_at": _number(done.get("started_at")),
        "finished_at": _number(done.get("finished_at")),
        "bytes": _whole(done.get("bytes")) or 0,
    }


def _number(value: object) -> float | None:
    """Unix seconds, or what can be: JSON says Infinity and 1e999 as well."""
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST_SECONDS
    return float(value) if sane and isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62 else None


def _text(value: object) -> str:
    """JSON says half of a character as well, which neither SQLite nor msgpack take."""
    return str(value)[:64].encode("utf-8", "replace").decode()
