"""Output of executions: one record, and everything one execution came to."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from moorage._errors import CommandFailed, UnexpectedAnswer
from moorage._models_base import when


@dataclass(frozen=True, slots=True)
class Record:
    """One numbered piece of output. `kind` is stdout, stderr, result, error, input_request, status, gap or done."""

    seq: int
    kind: str
    text: str = ""
    #: stdout and stderr as they were written, when they were asked for with `binary=True`
    raw: bytes | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    time: datetime | None = None
    #: read on from here
    next_seq: int = 0

    @classmethod
    def from_json(cls, record: Any) -> Record:
        try:
            seq, kind = int(record.get("seq", -1)), str(record["kind"])
            data = record.get("data")
            data = data if isinstance(data, dict) else _others(record)
            raw = record.get("base64")
            after = max(seq, int(data.get("last", seq))) if kind == "gap" else seq
            return cls(
                seq=seq,
                kind=kind,
                text=record.get("text") or "",
                raw=None if raw is None else base64.b64decode(raw),
                data=data,
                time=when(record["time"]) if record.get("time") is not None else None,
                next_seq=after + 1,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise UnexpectedAnswer(f"The server sent a record of output that cannot be read: {problem}.") from None

    @property
    def content(self) -> bytes:
        """stdout or stderr as bytes."""
        return self.raw if self.raw is not None else self.text.encode()


def _others(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("seq", "kind", "time", "text", "base64", "data")}


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """The exception that ended a piece of code."""

    ename: str
    evalue: str
    traceback: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(line.rstrip("\n") for line in self.traceback) or f"{self.ename}: {self.evalue}"


@dataclass(frozen=True, slots=True)
class InputRequest:
    """Code has called `input()` and waits."""

    prompt: str = ""
    password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything an execution came to."""

    run_id: str
    status: str
    stdout: str = ""
    stderr: str = ""
    #: MIME bundles, such as `{"text/plain": "2"}` or `{"image/png": "<base64>"}`
    results: list[dict[str, Any]] = field(default_factory=list)
    error: ErrorInfo | None = None
    exit_code: int | None = None
    signal: int | str | None = None
    #: finished, interrupted, timeout, crashed, killed, out_of_memory or worker_lost
    reason: str | None = None
    #: ranges of records that the server did not keep, because there was too much output
    gaps: list[tuple[int, int]] = field(default_factory=list)
    next_seq: int = 0

    @property
    def ok(self) -> bool:
        """It ran to its end without an error."""
        return self.error is None and self.exit_code in (0, None) and self.signal is None

    @property
    def text(self) -> str:
        """The last result as text, else what was printed."""
        for bundle in reversed(self.results):
            if isinstance(plain := bundle.get("text/plain"), str):
                return plain
        return self.stdout

    @property
    def trouble(self) -> str:
        """Why it was stopped, in one sentence; empty when it came to an end of its own."""
        return _TROUBLES.get(self.reason or "", "")

    def check(self) -> RunResult:
        """This result; or `CommandFailed`, when it is not `ok`."""
        if self.ok:
            return self
        facts = {"run_id": self.run_id, "exit_code": self.exit_code, "stderr": self.stderr}
        raise CommandFailed(_sentence(self), facts=facts)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "run_id": self.run_id,
            "status": self.status,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "reason": self.reason,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "results": self.results,
            "error": self.error and asdict(self.error),
            "gaps": [list(gap) for gap in self.gaps],
            "next_seq": self.next_seq,
        }


_TROUBLES = {
    "timeout": "It ran longer than its timeout and was stopped.",
    "crashed": "The session's interpreter crashed; its variables are lost.",
    "killed": "It was killed.",
    "out_of_memory": "It needed more memory than the session has, and was stopped.",
    "worker_lost": "The session's runner went away while it ran.",
}


def _sentence(result: RunResult) -> str:
    if result.trouble:
        return result.trouble
    if result.error is not None:
        return f"The code raised {result.error.ename}: {result.error.evalue}"
    if result.signal is not None:
        return f"The command was ended by signal {result.signal}."
    last = result.stderr.strip().splitlines()
    return f"The command ended with exit code {result.exit_code}" + (f": {last[-1]}" if last else ".")


class Collector:
    """Adds up the records of one execution, in order."""

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id
        self.next_seq = 0
        self.done: Mapping[str, Any] | None = None
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self._results: list[dict[str, Any]] = []
        self._error: ErrorInfo | None = None
        self._gaps: list[tuple[int, int]] = []

    def add(self, record: Record) -> None:
        self.next_seq = max(self.next_seq, record.next_seq)
        match record.kind:
            case "stdout":
                self._stdout.append(record.text)
            case "stderr":
                self._stderr.append(record.text)
            case "result":
                self._results.append(dict(record.data))
            case "error":
                self._error = error_info(record.data)
            case "gap":
                self._gaps.append((int(record.data.get("first", record.seq)), record.next_seq - 1))
            case "done":
                self.done = record.data

    def result(self, status: str | None = None) -> RunResult:
        done = self.done or {}
        return RunResult(
            run_id=self.run_id,
            status=status or ("done" if self.done is not None else "running"),
            stdout="".join(self._stdout),
            stderr="".join(self._stderr),
            results=self._results,
            error=self._error,
            exit_code=done.get("exit_code"),
            signal=done.get("signal"),
            reason=done.get("reason"),
            gaps=self._gaps,
            next_seq=self.next_seq,
        )


def error_info(data: Mapping[str, Any]) -> ErrorInfo:
    traceback = data.get("traceback") or []
    lines = traceback.splitlines() if isinstance(traceback, str) else [str(line) for line in traceback]
    return ErrorInfo(str(data.get("ename", "Error")), str(data.get("evalue", "")), lines)
