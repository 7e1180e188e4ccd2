"""Calls of what worker sessions have loaded: held, followed, cancelled, looked at later."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from moorage import _wire
from moorage._errors import CallCancelled, CallFailed, WaitTimeout
from moorage._models import CallInfo
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded
from moorage.aio.executions import follow_records
from moorage.results import Record

OnValue = Callable[[Any], object]
CallInfos = list[CallInfo]
#: The server is asked to hold an answer for so long; longer waits are several requests.
HOLD_SECONDS = 20.0
_OVER = frozenset({"completed", "failed", "cancelled"})


class Call:
    """A handle of one call; it needs nothing but its id, so any process can hold one at any time."""

    def __init__(self, transport: Transport, info: CallInfo) -> None:
        self._transport = transport
        #: everything the server said last
        self.info = info

    def __repr__(self) -> str:
        return f"<Call {self.info.function!r} {self.status} {self.id}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def status(self) -> str:
        """queued, running, completed, failed, cancelled."""
        return self.info.status

    @property
    def over(self) -> bool:
        return self.info.status in _OVER

    async def refresh(self, *, wait: float = 0.0) -> CallInfo:
        """Ask the server how it stands; with `wait` once it is over, or after so many seconds."""
        params = _wire.query(wait=wait or None)
        answer = await self._transport.request("GET", _wire.path("calls", self.id), params=params, hold=wait)
        self.info = CallInfo.from_json(decoded(answer))
        return self.info

    async def wait(self, timeout: float | None = None) -> CallInfo:
        """How it ended. Raises `WaitTimeout` when it is not over after `timeout` seconds; it goes on, and can be waited for
        again."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.over:
            left = HOLD_SECONDS if deadline is None else min(HOLD_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise WaitTimeout(f"The call {self.id} is {self.status} after {timeout:g} seconds.")
            await self.refresh(wait=left)
        return self.info

    async def output(
        self,
        timeout: float | None = None,
        *,
        on_partial: OnValue | None = None,
        on_progress: OnValue | None = None,
        on_stdout: OnValue | None = None,
        on_stderr: OnValue | None = None,
    ) -> Any:
        """What it gave back. Raises `CallFailed` with the app's own error, `CallCancelled` and `WaitTimeout`."""
        if on_partial or on_progress or on_stdout or on_stderr:
            async with aclosing(self.records(timeout=timeout)) as records:
                async for record in records:
                    await _tell(record, on_partial, on_progress, on_stdout, on_stderr)
        info = await self.wait(timeout)
        if info.status == "completed" and info.output_kept is False:
            return await self._whole_output()
        return output_of(info)

    async def _whole_output(self) -> Any:
        """One that is too long to be kept with the call, from its run."""
        async with aclosing(self.records()) as records:
            async for record in records:
                if record.kind == "result" and "output" in record.data:
                    return record.data["output"]
        raise CallFailed("The call's output was too long to be kept, and its host is not there any more.")

    async def records(self, from_seq: int = 0, *, timeout: float | None = None) -> AsyncGenerator[Record]:
        """What it says as it comes: logs (stdout, stderr), and results with exactly one of partial, progress, output."""
        deadline = None if timeout is None else time.monotonic() + timeout
        address = f"{_wire.path('calls', self.id)}/stream"
        async with aclosing(follow_records(self._transport, address, {}, from_seq, deadline=deadline)) as records:
            async for record in records:
                if record.kind != "call":
                    yield record

    async def partials(self) -> AsyncGenerator[Any]:
        """What it gives on its way, as it comes. Raises `CallFailed` when it fails in the end."""
        async with aclosing(self.records()) as records:
            async for record in records:
                if record.kind == "result" and "partial" in record.data:
                    yield record.data["partial"]
        output_of(await self.wait())

    async def logs(self) -> str:
        """What it wrote so far, stdout and stderr as they came; for some days also after its session has gone."""
        if not self.over:
            await self.refresh()
        path = _wire.path("sessions", self.info.session_id, "executions", self.id)
        found, next_seq = [], 0
        while True:
            page = await self._transport.get(path, from_seq=next_seq, wait=0)
            records = [Record.from_json(item) for item in page.get("records", [])]
            found += [record.text for record in records if record.kind in ("stdout", "stderr")]
            if not records:
                return "".join(found)
            next_seq = int(page["next_seq"])

    async def cancel(self) -> CallInfo:
        """One that waits never runs, one that runs is interrupted."""
        answer = await self._transport.request("POST", f"{_wire.path('calls', self.id)}/cancel", json={})
        self.info = CallInfo.from_json(decoded(answer))
        return self.info

    async def delete(self) -> None:
        """Forget it, with its input, output and error, when it is over."""
        await self._transport.request("DELETE", _wire.path("calls", self.id))


class Calls:
    """`session.calls`"""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str]) -> None:
        self._transport = transport
        self._base = f"{base}/calls"
        self._owner = owner

    async def start(
        self,
        function: str = "run",
        input: Any = None,
        *,
        timeout: float | None = None,
        wait: float = 0.0,
        idempotency_key: str | None = None,
    ) -> Call:
        """Ask, and return at once, or when it is over within `wait` seconds."""
        fields = {**_wire.body(function=function, timeout=timeout), "input": input, "wait": wait}
        answer = await self._transport.request(
            "POST", self._base, params=self._owner, json=fields, key=idempotency_key, hold=wait
        )
        return Call(self._transport, CallInfo.from_json(decoded(answer)))

    async def get(self, call_id: str) -> Call:
        """One of them, by its id."""
        found = CallInfo.from_json(await self._transport.get(_wire.path("calls", call_id)))
        return Call(self._transport, found)

    async def list(self, *, limit: int | None = None) -> CallInfos:
        """The newest first, without their inputs and outputs."""
        pages = self._transport.pages(self._base, **self._owner, limit=limit)
        return [CallInfo.from_json(item) async for item in pages]


class AllCalls:
    """`client.calls`: any call by its id, also when its session has gone."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, call_id: str) -> Call:
        found = CallInfo.from_json(await self._transport.get(_wire.path("calls", call_id)))
        return Call(self._transport, found)


class CallsApps:
    """What a session can do that has loaded an app."""

    calls: Calls

    async def call(
        self,
        function: str = "run",
        input: Any = None,
        *,
        timeout: float | None = None,
        on_partial: OnValue | None = None,
        on_progress: OnValue | None = None,
        on_stdout: OnValue | None = None,
        on_stderr: OnValue | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call a function of its app and wait for its output; `timeout` ends the call.

        Calls wait for the app to be ready, and for the calls before. Raises `CallFailed` with the app's own error; and
        `SessionEnded` or `SessionExpired` when the session is no more.
        """
        follows = on_partial or on_progress or on_stdout or on_stderr
        wait = 0.0 if follows else HOLD_SECONDS
        made = await self.calls.start(function, input, timeout=timeout, wait=wait, idempotency_key=idempotency_key)
        return await made.output(
            on_partial=on_partial, on_progress=on_progress, on_stdout=on_stdout, on_stderr=on_stderr
        )


def output_of(info: CallInfo) -> Any:
    """Of a call that is over. Raises `CallFailed`."""
    if info.status == "completed":
        return info.output
    error = dict(info.error or {})
    said = f"{error.get('ename', info.reason)}: {error.get('evalue', '')}".rstrip(": ")
    kind = CallCancelled if info.status == "cancelled" else CallFailed
    raise kind(f"The call of {info.function} {info.status}: {said}", facts={"error": error, "call_id": info.id})


async def _tell(
    record: Record,
    on_partial: OnValue | None,
    on_progress: OnValue | None,
    on_stdout: OnValue | None,
    on_stderr: OnValue | None,
) -> None:
    told: OnValue | None = None
    value: Any = None
    match record.kind:
        case "stdout" | "stderr":
            told, value = (on_stdout if record.kind == "stdout" else on_stderr), record.text
        case "result" if "partial" in record.data:
            told, value = on_partial, record.data["partial"]
        case "result" if "progress" in record.data:
            told, value = on_progress, record.data["progress"]
    if told is not None:
        await _io.result_of(told(value))
