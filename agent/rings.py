"""Reads output rings on the host: what a container's runner wrote, without trusting a byte of it.

The format is described in docs/runner.md. Everything below the link directory belongs to the session's user, who may
replace, damage or remove it: nothing here follows a link, blocks, reads without a bound, or raises anything but
`RunnerError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The run id of the container's log.
LOG_RUN = "log"


class RunnerError(Exception):
    """What went wrong in or with a runner: `code` is one of domain.errors, `message` one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a ring, decoded."""

    seq: int  #: from 1
    kind: str  #: stdout, stderr, result, error, input_request, status, done
    time: float  #: unix seconds
    payload: bytes  #: output bytes, or JSON

    @property
    def data(self) -> dict[str, Any]:
        """The JSON of a record that is not output."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RingChunk:
    """A contiguous piece of one run's output."""

    records: bytes  #: raw records, `!IQBd` header (payload length, seq, kind, time) and payload; see `decode`
    first_seq: int  #: of `records`; equals next_seq when there are none
    next_seq: int  #: read on from here
    gap: tuple[int, int] | None  #: [first, last] sequence numbers that are no longer kept, before `records`
    status: str | None  #: running or waiting_input as the records of this chunk say it, done at the end, None when they do not say
    done: dict[str, Any] | None  #: {exit_code, signal, reason, namespace_lost, started_at, finished_at, bytes} once `records` hold the end


def decode(records: bytes) -> Iterator[Record]:
    """The records of a chunk. Malformed bytes: RunnerError."""
    raise NotImplementedError


class RingReader:
    """Reads the rings of one kernel. Methods are synchronous and bounded by `max_bytes` (about 30 microseconds for a short run)."""

    def __init__(self, link_dir: Path | str) -> None:
        """`link_dir` is the directory that is mounted at /moorage/link; rings are read without a running container."""

    def read(self, run: str, from_seq: int = 0, max_bytes: int = 1 << 20) -> RingChunk:
        """Records from `from_seq` on, whole ones, at most `max_bytes` but at least one if there is one.

        Never waits. A run that was never started here: RunnerError("run_not_found").
        """
        raise NotImplementedError

    def done(self, run: str) -> dict[str, Any] | None:
        """How the run ended, None while it goes on; looks at the end of the ring only."""
        raise NotImplementedError

    def runs(self) -> list[str]:
        """Ids of the runs kept here, oldest first, without the log."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes on disk that the rings take."""
        raise NotImplementedError

    def purge(self, older_than: float) -> int:
        """Remove finished runs that ended before this unix time; how many were removed. Never the log."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up the directory's descriptor."""


def close_unfinished(link_dir: Path | str, *, now: float) -> list[str]:
    """Write the end `done {reason: worker_lost}` to runs whose runner is gone. Only call it when no runner is alive there.

    Returns the ids of the runs that were closed.
    """
    raise NotImplementedError
