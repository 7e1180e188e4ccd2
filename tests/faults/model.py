"""What a client was told that is done, and that it still is: the client's side of the invariants."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

from moorage import aio

#: So many of the outputs and files of the past are looked at again after each fault.
_LOOKS: Final = 2
MARKS: Final = "marks"


@dataclass(slots=True)
class Model:
    """Of sessions that live on over faults."""

    rng: Random
    #: by session: the marks whose executions were acknowledged, and those that were only asked for
    marked: dict[str, set[str]] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)
    #: (session, run): what it printed
    outputs: dict[tuple[str, str], str] = field(default_factory=dict)
    #: (session, path): what was written last, and acknowledged
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    sessions: dict[str, aio.Session] = field(default_factory=dict)

    def begins(self, session: aio.Session, mark: str) -> None:
        self.sessions[session.id] = session
        self.asked.setdefault(session.id, set()).add(mark)

    def printed(self, session: aio.Session, mark: str, run_id: str, text: str) -> None:
        self.marked.setdefault(session.id, set()).add(mark)
        self.outputs[session.id, run_id] = text

    def wrote(self, session: aio.Session, path: str, data: bytes) -> None:
        self.sessions[session.id] = session
        self.files[session.id, path] = hashlib.sha256(data).hexdigest()

    def forget(self, session: aio.Session) -> None:
        """It was ended."""
        for known in (self.marked, self.asked, self.sessions):
            known.pop(session.id, None)
        self.outputs = {key: text for key, text in self.outputs.items() if key[0] != session.id}
        self.files = {key: text for key, text in self.files.items() if key[0] != session.id}

    async def verify(self) -> list[str]:
        """What was acknowledged and is not so any more, or was done twice."""
        found = []
        for session_id in tuple(self.sessions):
            found += await self.marks(session_id)
        for key in self.rng.sample(sorted(self.outputs), min(_LOOKS, len(self.outputs))):
            found += await self._output(*key)
        for key in self.rng.sample(sorted(self.files), min(_LOOKS, len(self.files))):
            found += await self._file(*key)
        return found

    async def marks(self, session_id: str) -> list[str]:
        """Each execution has written its mark: once, when it was acknowledged, and never twice."""
        if not self.asked.get(session_id):
            return []
        count = Counter((await self.sessions[session_id].files.read(MARKS)).split())
        found = [f"I3 the execution {mark} has run {n} times in {session_id}" for mark, n in count.items() if n > 1]
        lost = sorted(self.marked.get(session_id, set()) - count.keys())
        found += [f"I7 the execution {mark} was acknowledged, and has never run in {session_id}" for mark in lost]
        strange = sorted(count.keys() - self.asked[session_id])
        return found + [f"I3 the execution {mark} was never asked for in {session_id}" for mark in strange]

    async def _output(self, session_id: str, run_id: str) -> list[str]:
        records = self.sessions[session_id].executions.get(run_id).output(0)
        seen, text = [], ""
        async for record in records:
            seen.append(record.seq)
            text += record.text or "" if record.kind == "stdout" else ""
        wanted = self.outputs[session_id, run_id]
        if text != wanted:
            return [f"I3 the output of run {run_id} was {wanted!r}, and is {text!r} now"]
        if seen != sorted(set(seen)):
            return [f"I3 the output of run {run_id} is out of order: {seen}"]
        return []

    async def _file(self, session_id: str, path: str) -> list[str]:
        data = await self.sessions[session_id].files.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != self.files[session_id, path]:
            return [f"I7 the file {path} of {session_id} is not what was written"]
        return []
