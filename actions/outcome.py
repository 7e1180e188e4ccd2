"""What the records of a call's run come to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from agent.wire import Record, RunRead, decode_records
from domain.apps import MOST_OUTPUT_BYTES, EndReason
from domain.errors import MoorageError, SessionEnded
from domain.session import Session
from repositories.calls import Outcome

#: Ends of runs that are no exception of the app's: the code of the error, and what is said.
_ENDS: Final = {
    "timeout": ("execution_timeout", "The call ran longer than its timeout and was stopped."),
    "out_of_memory": (
        "resource_exhausted",
        "The call needed more memory than the session has, and the app was stopped.",
    ),
    "interrupted": ("interrupted", "The call was cancelled."),
}
_LOST: Final = ("runner_lost", "The app's process ended while it was at work on the call.")
#: Of what is kept of a progress, as JSON.
_MOST_PROGRESS: Final = 64 * 1024


class CallCollector:
    """Of any number of records it keeps only what is answered in the end: bounded by one output."""

    def __init__(self) -> None:
        self.done: dict[str, Any] | None = None
        self.status = "running"
        self._output: bytes | None = None
        self._progress: str | None = None  # JSON
        self._partials = 0
        self._error: dict[str, Any] | None = None
        self._next_seq = 0

    def add(self, read: RunRead) -> None:
        self.status = read.status
        for record in decode_records(read.records):
            if record.seq >= self._next_seq:
                self._next_seq = record.seq + 1
                self._add(record)
        if read.done is not None:
            self.done = read.done

    def _add(self, record: Record) -> None:
        if record.kind == "error":
            self._error = _plain_error(record.data)
        elif record.kind == "result":
            if record.payload.startswith(b'{"partial"'):  # not looked into: there may be many, and large
                self._partials += 1
                return
            self._keep(record.data)

    def _keep(self, said: dict[str, Any]) -> None:
        if "partial" in said:
            self._partials += 1
        elif "progress" in said:
            text = _dumped(said["progress"])
            self._progress = text if len(text) <= _MOST_PROGRESS else self._progress
        elif "output" in said:
            self._output = _dumped(said["output"]).encode()

    def so_far(self, status: str) -> dict[str, Any]:
        """Fields of a call that is not over."""
        fields: dict[str, Any] = {"partials": self._partials}
        if self._progress is not None:
            fields["progress"] = json.loads(self._progress)
        if status in ("queued", "running") and self.status in ("queued", "running"):
            fields["status"] = self.status
        return fields

    def outcome(self, now: datetime, *, worked: bool | None = None) -> Outcome:
        """Of a run that is done; `worked`: as its end says, unless it is known already."""
        done = self.done or {}
        reason, exit_code = str(done.get("reason") or "finished"), done.get("exit_code")
        worked = exit_code == 0 and reason == "finished" if worked is None else worked
        error = None if worked else self._error or _error_of(reason)
        kept = self._output is None or len(self._output) <= MOST_OUTPUT_BYTES
        return Outcome(
            status="completed" if worked else "cancelled" if reason == "interrupted" else "failed",
            reason=reason[:200],
            finished_at=now,
            started_at=_time(done.get("started_at")),
            output=self._output.decode() if worked and kept and self._output is not None else None,
            output_kept=not worked or (kept and self._output is not None),
            error=None if error is None else _dumped(error),
            progress=self._progress,
            partials=self._partials,
        )


def ended_outcome(session: Session, now: datetime) -> Outcome:
    """Of a call whose session ended, or began anew, before it was answered."""
    code = "session_expired" if session.end_reason is EndReason.EXPIRED else "session_ended"
    why = session.status_reason or "the session was started anew"
    return _never_ran(code, "SessionEnded", f"The session ended before the call: {why}", "session_ended", now)


def refused_outcome(error: MoorageError, now: datetime) -> Outcome:
    """Of a call that its host did not take."""
    reason = "session_ended" if isinstance(error, SessionEnded) else error.code
    return _never_ran(error.code, type(error).__name__, error.message, reason, now)


def _never_ran(code: str, ename: str, said: str, reason: str, now: datetime) -> Outcome:
    error = {"code": code, "ename": ename, "evalue": said, "traceback": []}
    return Outcome(status="failed", reason=reason, finished_at=now, error=_dumped(error))


def lost_outcome(now: datetime) -> Outcome:
    """Of a call whose run is over, and whose output nobody has any more."""
    code, said = _LOST
    error = {"code": code, "ename": "worker_lost", "evalue": said, "traceback": []}
    return Outcome(status="failed", reason="worker_lost", finished_at=now, output_kept=False, error=_dumped(error))


def _error_of(reason: str) -> dict[str, Any]:
    code, said = _ENDS.get(reason, _LOST)
    return {"code": code, "ename": reason, "evalue": said, "traceback": []}


def _plain_error(said: dict[str, Any]) -> dict[str, Any]:
    """As much of what a container says of itself as anybody will read."""
    traceback = said.get("traceback")
    lines = [str(line)[:4096] for line in traceback[-50:]] if isinstance(traceback, list) else []
    error: dict[str, Any] = {
        "ename": str(said.get("ename", "Error"))[:256],
        "evalue": str(said.get("evalue", ""))[:8192],
        "traceback": lines,
    }
    return {**error, "code": str(said["code"])[:64]} if said.get("code") else error


def _dumped(value: Any) -> str:
    """JSON that any text column takes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def _time(seconds: object) -> datetime | None:
    sane = isinstance(seconds, int | float) and 0 < seconds < 4e9
    return datetime.fromtimestamp(seconds, UTC) if sane and isinstance(seconds, int | float) else None
