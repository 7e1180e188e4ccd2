"""Reads output rings on the host: what a container's runner wrote, without trusting a byte of it.

The format is described in docs/runner.md. Everything below the link directory belongs to the session's user, who may
replace, damage or remove it: nothing here follows a link, blocks, reads without a bound, or raises anything but
`RunnerError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import ring

#: The run id of the container's log.
LOG_RUN = ring.LOG_RUN
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_ENTRIES = 20_000  #: of any folder here; the runner keeps far fewer
_REMEMBERED = 256  #: positions of readers
_LARGEST = ring.RECORD.size + ring.MAX_JSON_BYTES


class RunnerError(Exception):
    """What went wrong in or with a runner: `code` is one of domain.errors, `message` one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class RingChunk:
    """A contiguous piece of one run's output."""

    records: bytes  #: raw records, `!IQBd` header (payload length, seq, kind, time) and payload; see `agent.wire`
    first_seq: int  #: of `records`; equals next_seq when there are none
    next_seq: int  #: read on from here
    gap: tuple[int, int] | None  #: [first, last] sequence numbers that are no longer kept, before `records`
    status: str | None  #: running or waiting_input as the records of this chunk say it, done at the end, None: unsaid
    #: {exit_code, signal, reason, namespace_lost, started_at, finished_at, bytes} once `records` hold the end
    done: dict[str, Any] | None


class _Dropped(Exception):
    """A segment went between the listing and the reading: the runner keeps to its bounds."""


class RingReader:
    """Reads the rings of one kernel. Methods are synchronous and bounded by `max_bytes` (about 30 µs for a short run)."""

    def __init__(self, link_dir: Path | str) -> None:
        """`link_dir` is the directory that is mounted at /moorage/link; rings are read without a running container."""
        try:
            self._link = os.open(link_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RunnerError("run_not_found", f"No output is kept here: {error.strerror}.") from None
        #: where the record after the last one read begins: {run: (seq, segment, offset)}
        self._positions: OrderedDict[tuple[str, int], tuple[int, int]] = OrderedDict()

    def read(self, run: str, from_seq: int = 0, max_bytes: int = 1 << 20) -> RingChunk:
        """Records from `from_seq` on, whole ones, at most `max_bytes` but at least one if there is one.

        Never waits. A run that was never started here: RunnerError("run_not_found").
        """
        wanted = max(1, from_seq)
        max_bytes = max(1, min(max_bytes, 8 << 20))
        for _ in range(10):
            with contextlib.suppress(_Dropped):
                return self._read(run, wanted, max_bytes)
        raise RunnerError("output_damaged", "The output is dropped faster than it can be read.")

    def _read(self, run: str, wanted: int, max_bytes: int) -> RingChunk:
        with self._run(run) as folder:
            segments = _segments(folder)
            pieces: list[bytes] = []
            size, following, gap = 0, wanted, None
            first: int | None = None
            status: str | None = None
            done: dict[str, Any] | None = None
            index = max(0, bisect_right(segments, wanted) - 1)
            while index < len(segments) and size < max_bytes and done is None:
                segment = segments[index]
                upper = segments[index + 1] if index + 1 < len(segments) else None
                if first is not None and segment != following:
                    break  # a gap begins here: the next read tells it
                try:
                    part = self._read_segment(run, folder, segment, following, max_bytes - size, any_size=first is None)
                except _Dropped:
                    if first is None:
                        raise  # look again at what there is
                    break
                index += 1
                if part is None:
                    if upper is not None and first is None:
                        continue
                    break
                if first is None:
                    first = part.first
                    if first > wanted:
                        gap = (wanted, first - 1)
                pieces.append(part.data)
                size += len(part.data)
                following, status = part.last + 1, part.status or status
                done = part.done
                if not part.whole:
                    break
            if first is None and segments and wanted < segments[-1]:
                raise _damaged()
        return RingChunk(b"".join(pieces), first or wanted, following, gap, "done" if done else status, done)

    def done(self, run: str) -> dict[str, Any] | None:
        """How the run ended, None while it goes on; looks at the end of the ring only."""
        with self._run(run) as folder:
            return _end(folder)

    def runs(self) -> list[str]:
        """Ids of the runs kept here, oldest first, without the log."""
        with self._ring() as folder:
            found = []
            for name in _names(folder):
                if name != LOG_RUN and ring.RUN_ID.fullmatch(name):
                    with contextlib.suppress(OSError):
                        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        if not stat.S_ISDIR(facts.st_mode):
                            continue
                        with contextlib.suppress(OSError):  # a folder's own time changes when segments are dropped
                            facts = os.stat(f"{name}/{ring.segment_name(1)}", dir_fd=folder, follow_symlinks=False)
                        found.append((facts.st_mtime_ns, name))
        return [name for _, name in sorted(found)]

    def size(self) -> int:
        """Bytes on disk that the rings take."""
        total = 0
        for run in [*self.runs(), LOG_RUN]:
            with contextlib.suppress(RunnerError), self._run(run) as folder:
                for segment in _segments(folder):
                    with contextlib.suppress(OSError):
                        name = ring.segment_name(segment)
                        total += os.stat(name, dir_fd=folder, follow_symlinks=False).st_blocks * 512
        return total

    def purge(self, older_than: float) -> int:
        """Remove finished runs that ended before this unix time; how many were removed. Never the log."""
        removed = 0
        for run in self.runs():
            with contextlib.suppress(RunnerError):
                with self._run(run) as folder:
                    newest = max(
                        (os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime for name in _names(folder)),
                        default=0.0,
                    )
                    if newest >= older_than or _end(folder) is None:
                        continue
                    for segment in _segments(folder):
                        os.unlink(ring.segment_name(segment), dir_fd=folder)
                with self._ring() as above:
                    os.rmdir(run, dir_fd=above)
                removed += 1
        return removed

    def close(self) -> None:
        """Give up the directory's descriptor."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def _read_segment(
        self, run: str, folder: int, segment: int, from_seq: int, max_bytes: int, *, any_size: bool
    ) -> _Part | None:
        """Records from `from_seq` on in one segment file; None when there are none."""
        known, offset = self._positions.get((run, segment), (segment, 0))
        if known > from_seq:
            known, offset = segment, 0
        with _open(folder, ring.segment_name(segment)) as (fd, file_size):
            while True:
                data = os.pread(fd, min(max_bytes + ring.RECORD.size, file_size - offset), offset)
                part = _take(data, known, from_seq, max_bytes)
                if part.skipped < 0:
                    # not even one whole record: it is larger than the bound, or still being written
                    if not any_size and part.count == 0:
                        return None
                    length = -part.skipped
                    if offset + length > file_size:
                        return None
                    data = os.pread(fd, length, offset)
                    part = _take(data, known, from_seq, length)
                    if part.skipped < 0:
                        return None
                if part.count or part.skipped == 0:
                    break
                known, offset = part.expected, offset + part.skipped  # all of it lay before `from_seq`
        if not part.count:
            return None
        end = offset + part.skipped + len(part.data)
        self._positions[run, segment] = (part.last + 1, end)
        self._positions.move_to_end((run, segment))
        if len(self._positions) > _REMEMBERED:
            self._positions.popitem(last=False)
        part.whole = file_size - end < ring.RECORD.size
        return part

    @contextlib.contextmanager
    def _ring(self) -> Iterator[int]:
        with _folder("ring", self._link) as folder:
            yield folder

    @contextlib.contextmanager
    def _run(self, run: str) -> Iterator[int]:
        if not ring.RUN_ID.fullmatch(run):
            raise RunnerError("run_not_found", "A run id has 1 to 64 letters, digits, '-' or '_'.")
        with self._ring() as above, _folder(run, above) as folder:
            yield folder


@dataclass(slots=True)
class _Part:
    """Records taken from one read of a segment."""

    data: bytes = b""
    count: int = 0
    first: int = 0
    last: int = 0
    expected: int = 0  #: the sequence number after the last record looked at
    skipped: int = 0  #: bytes before `data`; negative: so many bytes are needed for one record
    status: str | None = None
    done: dict[str, Any] | None = None
    whole: bool = False  #: nothing is left in the segment


def _take(data: bytes, expected: int, from_seq: int, max_bytes: int) -> _Part:
    """The whole records in `data` from `from_seq` on. `expected` is the first record's sequence number."""
    part = _Part(expected=expected)
    at, start, size = 0, 0, len(data)
    header, unpack = ring.RECORD.size, ring.RECORD.unpack_from
    while at + header <= size:
        length, seq, kind, _ = unpack(data, at)
        if seq != expected or length > (ring.MAX_OUTPUT_BYTES if kind <= ring.STDERR else ring.MAX_JSON_BYTES):
            raise _damaged()
        end = at + header + length
        if end > size or (part.count and end - start > max_bytes):
            if not part.count and not start:
                part.skipped = -(header + length)
                return part
            break
        if seq < from_seq:
            start = end
        else:
            if not part.count:
                part.first = seq
            part.count += 1
            part.last = seq
            if kind > ring.ERROR:
                if kind == ring.INPUT_REQUEST:
                    part.status = "waiting_input"
                elif kind == ring.DONE:
                    part.done = _object(data[at + header : end])
                elif kind == ring.STATUS:
                    part.status = str(_object(data[at + header : end]).get("status"))[:32]
                else:
                    raise _damaged()
        at, expected = end, expected + 1
        if part.done is not None:
            break
    part.expected = expected
    part.skipped = start
    part.data = data[start:at]
    return part


def whole(records: bytes, last_seq: int) -> RingChunk | None:
    """What a runner sent along of a finished run; None when these are not all of its records, as a ring holds them."""
    try:
        part = _take(records, 1, 1, len(records))
    except RunnerError:
        return None
    if part.last != last_seq or part.done is None or len(part.data) != len(records):
        return None
    return RingChunk(records, 1, last_seq + 1, None, "done", part.done)


def close_unfinished(link_dir: Path | str, *, now: float, uid: int = -1, gid: int = -1) -> list[str]:
    """Write the end `done {reason: worker_lost}` to runs whose runner is gone. Only call it when no runner is alive there.

    Returns the ids of the runs that were closed. `uid` and `gid`: whose files these shall be.
    """
    closed: list[str] = []
    try:
        reader = RingReader(link_dir)
    except RunnerError:
        return closed
    try:
        for run in reader.runs():
            with contextlib.suppress(RunnerError), reader._run(run) as folder:
                if _end(folder) is None:
                    _write_end(folder, now, uid, gid)
                    closed.append(run)
    except RunnerError:
        pass  # there is no ring
    finally:
        reader.close()
    return closed


def _write_end(folder: int, now: float, uid: int, gid: int) -> None:
    """In a segment of its own, after the last whole record."""
    segments = _segments(folder)
    following = segments[-1] if segments else 1
    if segments:
        with contextlib.suppress(_Dropped), _open(folder, ring.segment_name(following)) as (fd, size):
            data = os.pread(fd, min(size, ring.SEGMENT_BYTES + _LARGEST), 0)
            with contextlib.suppress(RunnerError):
                following = _take(data, following, following, len(data)).expected
        if following == segments[-1]:  # not one whole record: the segment gives its name to the end
            os.unlink(ring.segment_name(following), dir_fd=folder)
    record = ring.done_payload(ring.worker_lost(now))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(ring.segment_name(following), flags, 0o644, dir_fd=folder)
    try:
        os.write(fd, ring.RECORD.pack(len(record), following, ring.DONE, now) + record)
        if uid >= 0:
            os.fchown(fd, uid, gid)
    finally:
        os.close(fd)


def _end(folder: int) -> dict[str, Any] | None:
    """The done record, which has a fixed size, at the end of the last segment."""
    segments = _segments(folder)
    if not segments:
        return None
    try:
        with _open(folder, ring.segment_name(segments[-1])) as (fd, size):
            if size < ring.DONE_RECORD_BYTES:
                return None
            data = os.pread(fd, ring.DONE_RECORD_BYTES, size - ring.DONE_RECORD_BYTES)
    except _Dropped:
        return None  # only an unfinished run, or a removed one, loses its last segment
    if len(data) < ring.RECORD.size:
        return None
    length, seq, kind, _ = ring.RECORD.unpack_from(data)
    if kind != ring.DONE or length != ring.DONE_RECORD_BYTES - ring.RECORD.size or seq < segments[-1]:
        return None
    try:
        return _object(data[ring.RECORD.size :])
    except RunnerError:
        return None


def _segments(folder: int) -> list[int]:
    return sorted(int(name) for name in _names(folder) if ring.SEGMENT_NAME.fullmatch(name))


def _names(folder: int) -> list[str]:
    names: list[str] = []
    with _hostile(), os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > _MAX_ENTRIES:
                raise _damaged()
    return names


@contextlib.contextmanager
def _folder(name: str, above: int) -> Iterator[int]:
    try:
        folder = os.open(name, _FOLDER, dir_fd=above)
    except FileNotFoundError:
        raise RunnerError("run_not_found", "There is no such run here, or its output is no longer kept.") from None
    except OSError:
        raise _damaged() from None
    try:
        with _hostile():
            yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _open(folder: int, name: str) -> Iterator[tuple[int, int]]:
    with _hostile():
        try:
            fd = os.open(name, _FILE, dir_fd=folder)
        except FileNotFoundError:
            raise _Dropped from None
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise _damaged()
            yield fd, facts.st_size
        finally:
            os.close(fd)


@contextlib.contextmanager
def _hostile() -> Iterator[None]:
    """What the session's user did to the files comes out as one kind of error."""
    try:
        yield
    except OSError:
        raise _damaged() from None


def _object(payload: bytes) -> dict[str, Any]:
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(data, dict):
        raise _damaged()
    return data


def _damaged() -> RunnerError:
    return RunnerError("output_damaged", "The kept output was changed from inside the session and cannot be read.")
