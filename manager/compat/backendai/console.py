"""Records of a run as console items: `["stdout", text]`, `["stderr", text]`, `["html", text]`, `["media", [type, data]]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: The first of a value's forms that there is.
_MEDIA: Final = ("image/svg+xml", "image/png", "image/jpeg", "image/gif")
_ITSELF: Final = frozenset({"finished"})
_ENDS: Final[Mapping[str, str]] = {
    "interrupted": "",
    "timeout": "The code ran longer than its timeout and was stopped.",
    "out_of_memory": "The code needed more memory than the session has, and was stopped.",
    "killed": "The run was killed.",
    "crashed": "The process that ran the code died.",
    "worker_lost": "The session's runner went away while the code was running.",
}


@dataclass(slots=True)
class Console:
    """What one answer shows."""

    items: list[list[Any]] = field(default_factory=list)
    size: int = 0
    raised: bool = False  #: the code ended with an exception
    asked: dict[str, Any] | None = None  #: {prompt, password} of the last question
    done: dict[str, Any] | None = None  #: {exit_code, reason, ...}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            kind = record["kind"]
            if kind in ("stdout", "stderr"):
                self._text(kind, record["text"])
            elif kind == "result":
                self._value(record["data"])
            elif kind == "error":
                self.raised = True
                self._text("stderr", _traceback(record["data"]))
            elif kind == "input_request":
                self.asked = record["data"]
                self._text("stdout", str(record["data"].get("prompt") or ""))
            elif kind == "gap":
                self._text("stderr", "(output that is no longer kept is left out here)\n")
            elif kind == "done":
                self.end(record["data"])

    def end(self, done: Mapping[str, Any]) -> None:
        self.done = dict(done)
        if (why := _ENDS.get(str(done.get("reason")))) and not self.raised:
            self._text("stderr", f"{why}\n")

    def _text(self, kind: str, text: str) -> None:
        if not text:
            return
        self.size += len(text)
        if self.items and self.items[-1][0] == kind:
            self.items[-1][1] += text
        else:
            self.items.append([kind, text])

    def _value(self, bundle: Mapping[str, Any]) -> None:
        for mime in _MEDIA:
            if mime in bundle:
                self._item(["media", [mime, bundle[mime]]], bundle[mime])
                return
        if "text/html" in bundle:
            self._item(["html", bundle["text/html"]], bundle["text/html"])
        elif isinstance(plain := bundle.get("text/plain"), str):
            self._text("stdout", plain if plain.endswith("\n") else f"{plain}\n")

    def _item(self, item: list[Any], data: Any) -> None:
        self.size += len(str(data))
        self.items.append(item)


def _traceback(error: Mapping[str, Any]) -> str:
    lines = error.get("traceback") or []
    text = (
        "\n".join(str(line).rstrip("\n") for line in lines) if lines else f"{error.get('ename')}: {error.get('evalue')}"
    )
    return f"{text}\n"


def exit_code_of(done: Mapping[str, Any], *, raised: bool) -> int:
    """An exception of a query is none: the client is told of it on stderr, and that the query came to its end."""
    if raised and done.get("reason") in _ITSELF:
        return 0
    code = done.get("exit_code")
    return code if isinstance(code, int) else 1
