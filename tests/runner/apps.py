"""Apps of the tests: their files, and a kernel whose main work one of them is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Kernel, Output

MAIN = "main-work"


class Apps:
    """A worker session without a container: `load`, then `call`."""

    def __init__(self, kernel: Kernel, inside: str | None = None) -> None:
        self.kernel = kernel
        self._inside = inside or str(kernel.work)  #: where the working folder is for the app

    def write(self, source: str, name: str = "app") -> None:
        (self.kernel.work / f"{name}.py").write_text(source)

    async def load(
        self, source: str, entry: str = "app:App", *, timeout_seconds: float | None = None, **more: Any
    ) -> Output:
        self.write(source)
        asked = {"adapter": "class", "entry": entry, "path": self._inside, **more}
        return await self.kernel.run(json.dumps(asked), mode="load", timeout_seconds=timeout_seconds)

    async def loaded(self, source: str, **more: Any) -> None:
        out = await self.load(source, **more)
        assert out.done["exit_code"] == 0, out.error

    async def start(self, function: str = "run", given: Any = None, **options: Any) -> str:
        """The call's run, without waiting for it."""
        run = self.kernel.new_run()
        code = json.dumps({"function": function, "input": given})
        await self.kernel.link.execute(run, mode="call", code=code, **options)
        return run

    async def call(self, function: str = "run", given: Any = None, **options: Any) -> Output:
        return await self.kernel.finish(await self.start(function, given, **options))

    async def output(self, function: str = "run", given: Any = None) -> Any:
        out = await self.call(function, given)
        assert out.done["exit_code"] == 0, out.error
        return out.results[-1]["output"]

    async def main(self) -> dict[str, Any]:
        """How the main work ended."""
        return (await self.kernel.finish(MAIN)).done


@pytest.fixture
async def apps(kernel: Kernel) -> Apps:
    await kernel.link.execute(MAIN, mode="serve", code="")
    return Apps(kernel)
