"""Output rings: append-only segment files, bounded per run and per session, that the agent reads on the host.

The writer's side, and the constants of the format (docs/runner.md).
"""

from __future__ import annotations

import json
import os
import re
import struct
import threading
import time
from collections import deque
from typing import Any

#: payload length, sequence number, kind, unix time
RECORD = struct.Struct("!IQBd")
STDOUT, STDERR, RESULT, ERROR, INPUT_REQUEST, STATUS, DONE = range(1, 8)
KINDS = {
    STDOUT: "stdout",
    STDERR: "stderr",
    RESULT: "result",
    ERROR: "error",
    INPUT_REQUEST: "input_request",
    STATUS: "status",
    DONE: "done",
}
MAX_OUTPUT_BYTES = 64 << 10  #: payload of one stdout or stderr record
MAX_JSON_BYTES = 4 << 20  #: payload of one record of another kind
DONE_RECORD_BYTES = 512  #: always, so that the end of a ring tells whether its run is done

HEAD_BYTES = 1 << 20  #: the first segment, kept for as long as the run is
SEGMENT_BYTES = 4 << 20
RUN_BYTES = 64 << 20
LOG_BYTES = 16 << 20
SESSION_BYTES = 512 << 20
RECENT_BYTES = 8 << 10  #: of a short run's records, which go with the answer
#: Each takes about 12 KiB of its session's memory, for pages and inodes above all. More than may wait (serving.MAX_QUEUED), so that
#: a manager that was away for a while finds them all.
MAX_RUNS = 2_000
LOG_RUN = "log"
SPARE_PREFIX = ".spare-"  #: no run id begins so
SPARES = 8

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
SEGMENT_NAME = re.compile(r"[0-9]{16}", re.ASCII)


def segment_name(first_seq: int) -> str:
    return f"{first_seq:016d}"


def done_payload(fields: dict[str, Any]) -> bytes:
    """The JSON of a done record, padded to its fixed size."""
    return json.dumps(fields, separators=(",", ":")).encode().ljust(DONE_RECORD_BYTES - RECORD.size)


def worker_lost(now: float) -> dict[str, Any]:
    """The end of a run whose runner is gone."""
    return {
        "exit_code": None,
        "signal": None,
        "reason": "worker_lost",
        "namespace_lost": True,
        "started_at": None,
        "finished_at": now,
        "bytes": 0,
    }


class Ring:
    """The output of one run. Writing never fails: what the disk does not take is lost and seen as a gap."""

    def __init__(self, folder: str, *, limit: int = RUN_BYTES, last_seq: int = 0) -> None:
        self.folder = folder
        self.seq = last_seq
        self.size = 0
        self.finished = False
        self._limit = limit
        self._fd = -1
        self._room = 0  #: bytes that the open segment still takes
        self._segments: list[tuple[int, int]] = []  #: closed ones and their sizes, oldest first
        self._first = 0
        self._open_size = 0
        self.recent: bytearray | None = bytearray() if not last_seq else None  #: all records, while they are few

    @classmethod
    def create(cls, folder: str, *, limit: int = RUN_BYTES) -> Ring:
        """A new run's ring; FileExistsError when there was such a run."""
        os.mkdir(folder, 0o755)
        return cls(folder, limit=limit)

    @classmethod
    def load(cls, folder: str, *, limit: int = RUN_BYTES) -> Ring:
        """What an earlier runner left. Appending goes on in a new segment."""
        ring = cls(folder, limit=limit)
        ring.recent = None
        names = sorted(name for name in os.listdir(folder) if SEGMENT_NAME.fullmatch(name))
        for name in names:
            size = os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
            ring._segments.append((int(name), size))
            ring.size += size
        if names:
            ring.seq, ring.finished = _end_of(os.path.join(folder, names[-1]), int(names[-1]))
        return ring

    def append(self, kind: int, payload: bytes | memoryview, now: float | None = None) -> int:
        """Write one record; its sequence number."""
        self.seq += 1
        length = len(payload)
        total = RECORD.size + length
        try:
            if self._room <= 0 or self._fd < 0:
                self._roll()
            head = RECORD.pack(length, self.seq, kind, time.time() if now is None else now)
            written = os.writev(self._fd, (head, payload))
            if written != total:  # the disk is full in mid-record: take it back whole
                os.ftruncate(self._fd, self._open_size)
                raise OSError("short write")
        except OSError:
            self.recent = None
            self._end_segment()  # the next record starts a segment of its own, so that the gap shows
        else:
            self._room -= total
            self._open_size += total
            self.size += total
            if self.recent is not None:
                self._remember(head, payload)
        return self.seq

    def _remember(self, head: bytes, payload: bytes | memoryview) -> None:
        assert self.recent is not None
        if len(self.recent) + len(head) + len(payload) > RECENT_BYTES:
            self.recent = None
        else:
            self.recent += head
            self.recent += payload

    def open_head(self) -> None:
        self.seq = 1
        self._roll()
        self.seq = 0

    def close(self) -> None:
        """Append no more."""
        self._end_segment()

    def finish(self, fields: dict[str, Any], now: float) -> None:
        self.append(DONE, done_payload(fields), now)
        self.finished = True
        self._end_segment()

    def forget(self) -> None:
        """The answer has gone out, or nobody waits for it."""
        self.recent = None

    def drop_tail(self) -> None:
        """Keep the head and the end of a finished run."""
        for first, size in self._segments[1:-1]:
            self._unlink(first, size)
        del self._segments[1:-1]

    def remove(self) -> None:
        for first, size in self._segments:
            self._unlink(first, size)
        self._segments.clear()
        try:
            os.rmdir(self.folder)
        except OSError:
            pass  # the user put something there; it is theirs

    def _roll(self) -> None:
        self._end_segment()
        while len(self._segments) > 1 and self.size > self._limit - SEGMENT_BYTES:
            self._unlink(*self._segments.pop(1))
        self._first = self.seq
        self._open_size = 0
        self._room = SEGMENT_BYTES if self._segments else min(HEAD_BYTES, self._limit // 2)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(os.path.join(self.folder, segment_name(self._first)), flags, 0o644)

    def _end_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._segments.append((self._first, self._open_size))

    def _unlink(self, first: int, size: int) -> None:
        self.size -= size
        try:
            os.unlink(os.path.join(self.folder, segment_name(first)))
        except OSError:
            pass  # gone already


class Rings:
    """All rings of the session, kept within its budget."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._kept: dict[str, Ring] = {}  #: oldest first
        self._spares: deque[Ring] = deque()  #: filled by a thread of their own
        self._refill = threading.Semaphore(0)
        self._refilling = False
        for name in self._left_by_others():
            try:
                ring = Ring.load(os.path.join(folder, name))
                if not ring.finished:
                    now = time.time()
                    ring.finish(worker_lost(now), now)
                self._kept[name] = ring
            except OSError:
                continue  # not ours, or the user's doing
        log = os.path.join(folder, LOG_RUN)
        self.log = Ring.load(log, limit=LOG_BYTES) if os.path.isdir(log) else Ring.create(log, limit=LOG_BYTES)

    def _left_by_others(self) -> list[str]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith(SPARE_PREFIX) and entry.is_dir(follow_symlinks=False):
                    Ring.load(entry.path).remove()
                if entry.name != LOG_RUN and RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        head = os.stat(os.path.join(entry.path, segment_name(1)), follow_symlinks=False)
                    except OSError:
                        head = entry.stat(follow_symlinks=False)
                    found.append((head.st_mtime_ns, entry.name))
        return [name for _, name in sorted(found)]

    def create(self, run: str) -> Ring:
        """FileExistsError when there was such a run."""
        folder = os.path.join(self._folder, run)
        ring = self._spares.popleft() if self._spares and not os.path.lexists(folder) else None
        if ring is not None:
            try:
                os.rename(ring.folder, folder)
                ring.folder = folder
            except OSError:  # the user took the spare away
                ring.close()
                ring = None
        if ring is None:
            ring = Ring.create(folder)
        self._kept[run] = ring
        return ring

    def start_preparing(self) -> None:
        """From now on a thread makes the next runs' folders and files: on a busy disk that takes longer than a short run."""
        try:
            threading.Thread(target=self._keep_spares, daemon=True).start()
            self.prepare()
        except RuntimeError:
            pass  # no thread to be had: then each run makes its own

    def prepare(self) -> None:
        """Have spares made when they run low. Does not wait."""
        if len(self._spares) < SPARES // 2 and not self._refilling:
            self._refilling = True
            self._refill.release()

    def _keep_spares(self) -> None:
        while self._refill.acquire():
            try:
                while len(self._spares) < SPARES:
                    ring = Ring.create(os.path.join(self._folder, f"{SPARE_PREFIX}{time.monotonic_ns()}"))
                    ring.open_head()
                    self._spares.append(ring)
            except OSError:
                pass  # the disk is full, or the folder gone
            self._refilling = False

    def get(self, run: str) -> Ring | None:
        return self.log if run == LOG_RUN else self._kept.get(run)

    @property
    def size(self) -> int:
        return self.log.size + sum(ring.size for ring in self._kept.values())

    def trim(self) -> None:
        """Keep to the budget: first the tails of the oldest finished runs go, then these runs."""
        excess = self.size - SESSION_BYTES
        if excess <= 0 and len(self._kept) <= MAX_RUNS:
            return
        finished = [(run, ring) for run, ring in self._kept.items() if ring.finished]
        for _, ring in finished:
            if excess <= 0:
                break
            before = ring.size
            ring.drop_tail()
            excess -= before - ring.size
        for run, ring in finished:
            if excess <= 0 and len(self._kept) <= MAX_RUNS:
                break
            excess -= ring.size
            ring.remove()
            del self._kept[run]


def _end_of(path: str, first_seq: int) -> tuple[int, bool]:
    """The last whole record's sequence number in a segment, and whether it says that the run is done."""
    last, done = first_seq - 1, False
    with open(path, "rb") as segment:
        data = segment.read(SEGMENT_BYTES + MAX_JSON_BYTES + RECORD.size)
    at = 0
    while at + RECORD.size <= len(data):
        length, seq, kind, _ = RECORD.unpack_from(data, at)
        at += RECORD.size + length
        if at > len(data) or seq <= last:
            break
        last, done = seq, kind == DONE
    return last, done
