"""The kernels of a cluster session, one by one and all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moorage._errors import WaitTimeout
from moorage._models import SessionInfo
from moorage.aio import _io
from moorage.aio._transport import Transport
from moorage.aio.executions import Commands, Executions, OnText, RunsCode
from moorage.aio.files import Files
from moorage.aio.terminals import Ptys
from moorage.results import RunResult

#: Called with the kernel's name, `stdout` or `stderr`, and the text.
OnOutput = Callable[[str, str, str], object]


#: Statuses of kernels that will pass, and of sessions that are over.
_COMING = (None, "PREPARING", "PULLING")
_OVER = ("TERMINATING", "TERMINATED", "CANCELLED", "ERROR")


class KernelHandle(RunsCode):
    """One kernel of a session (`session.kernel("worker1")`): code, commands and files go to it and to no other."""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str], name: str) -> None:
        self.name = name
        self.executions = Executions(transport, base, owner, name)
        self.commands = Commands(self.executions)
        self.files = Files(transport, base, owner, name)
        self.pty = Ptys(transport, base, owner, name)

    def __repr__(self) -> str:
        return f"<KernelHandle {self.name!r}>"


class SessionKernels:
    """The part of a session that knows its kernels."""

    _transport: Transport
    _base: str
    _owner: dict[str, str]
    info: SessionInfo

    if TYPE_CHECKING:

        async def refresh(self) -> Any: ...

    def kernel(self, name: str) -> KernelHandle:
        """One of its kernels, such as `worker1`. Asks nothing yet."""
        return KernelHandle(self._transport, self._base, self._owner, name)

    async def wait_for_kernels(self, timeout: float | None = None) -> None:
        """Until every kernel runs, or has ended, and knows the others. Raises `WaitTimeout`."""
        deadline, pause = None if timeout is None else time.monotonic() + timeout, 0.05
        while True:
            await self.refresh()
            waiting = [kernel.name for kernel in self.info.kernels if kernel.pending or kernel.status in _COMING]
            if not waiting or self.info.status in _OVER:
                return
            if deadline is not None and time.monotonic() + pause > deadline:
                raise WaitTimeout(f"Of the session {self.info.name}, {', '.join(waiting)} cannot be used yet.")
            await _io.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def run_on_all(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
    ) -> dict[str, RunResult]:
        """Run a command on all of its kernels that run, at the same time. The results by the kernels' names."""
        await self.refresh()
        names = [kernel.name for kernel in self.info.kernels if kernel.status == "RUNNING"]

        async def run(name: str) -> RunResult:
            commands = self.kernel(name).commands
            return await commands.run(
                command,
                cwd=cwd,
                env=env,
                timeout=timeout,
                on_stdout=_told(on_output, name, "stdout"),
                on_stderr=_told(on_output, name, "stderr"),
                check=check,
            )

        return dict(zip(names, await _io.side_by_side(run, names), strict=True))


def _told(on_output: OnOutput | None, name: str, stream: str) -> OnText | None:
    return None if on_output is None else lambda text: on_output(name, stream, text)
