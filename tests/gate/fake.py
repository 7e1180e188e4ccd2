"""A host that keeps nothing: whatever it is asked any number of times, its memory stays as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from agent.client import Place
from domain.errors import ArchiveRefused
from tests.agent.fake import HOST, FakeAgent, Run


class SteadyAgent(FakeAgent):
    """`FakeAgent` with a short memory: the newest calls, runs and files. Every run that is asked for is there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Any = deque(maxlen=10)
        self.files = {"/home/work/there.txt": b"there"}
        self._kept: deque[str] = deque()

    def _asked(self, name: str, *arguments: Any) -> None:
        super()._asked(name, *arguments)
        memories: tuple[dict[Any, Any], ...] = (self.runs, self.kernels, self.services, self.processes, self.files)
        for memory in memories:
            while len(memory) > 100:
                del memory[next(iter(memory))]
        if len(self.folders) > 100:
            self.folders = {"/home/work"}
        self.files["/home/work/there.txt"] = b"there"
        self.kept = {"best": 1}

    def _read(self, run_id: str, from_seq: int, max_bytes: int) -> Any:
        if run_id != "log":
            self.runs.setdefault(run_id, Run().say("stdout", b"hello").end())
        return super()._read(run_id, from_seq, max_bytes)

    async def unpack(
        self, where: Place, path: str, body: AsyncIterator[bytes], *, size: int | None, overwrite: bool = True
    ) -> dict[str, int]:
        try:
            return await super().unpack(where, path, body, size=size, overwrite=overwrite)
        except UnicodeDecodeError:
            raise ArchiveRefused from None

    async def complete(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {"suggestions": [], "start": 0, "end": 0}


__all__ = ["HOST", "SteadyAgent"]
