"""Running code and commands, and their output: live, later, or from another process, nothing lost in between."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Literal

from moorage import _wire
from moorage._errors import StreamBroken, StreamSilent, Unreachable, WaitTimeout
from moorage._models import RunInfo
from moorage.aio import _io
from moorage.aio._transport import STREAM_SILENCE_SECONDS, Transport, decoded
from moorage.errors import NotWaitingForInput, ResourceExhausted
from moorage.results import Collector, ErrorInfo, InputRequest, Record, RunResult, error_info

OnText = Callable[[str], object]
OnResult = Callable[[dict[str, Any]], object]
OnError = Callable[[ErrorInfo], object]
#: Answers what `input()` asks; without one, code that asks reads an end of file.
OnInput = Callable[[InputRequest], object]
Mode = Literal["query", "batch"]
NDJSON = "application/x-ndjson"
MAX_FRUITLESS = 8
INPUT_CHARACTERS = 256 * 1024
RunInfos = list[RunInfo]


class Execution:
    """A handle of one execution; it needs nothing but the run id, so any process can hold one at any time."""

    def __init__(self, transport: Transport, base: str, run_id: str, owner: Mapping[str, str]) -> None:
        self.run_id = run_id
        self._transport = transport
        self._base = base
        self._owner = owner

    def __repr__(self) -> str:
        return f"Execution({self.run_id!r})"

    async def info(self) -> RunInfo:
        """How it stands: status, exit code, times."""
        # beyond any end: what is told there is how the run stands, not how far a piece of it goes
        params = {**self._owner, "from_seq": str(2**62), "max_bytes": "1", "wait": "0"}
        info = RunInfo.from_json(decoded(await self._transport.request("GET", self._path, params=params)))
        return info if info.finished_at is None else replace(info, status="done")  # it was of the piece that was read

    async def wait(
        self,
        timeout: float | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
        check: bool = False,
    ) -> RunResult:
        """Everything it came to, with all output from its beginning.

        Raises `WaitTimeout` when it is not over after `timeout` seconds; it runs on, and can be waited for again.
        """
        collector = Collector(self.run_id)
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        records = follow_records(self._transport, self._path, self._owner, 0, deadline=deadline_of(timeout))
        async with aclosing(records):
            async for record in records:
                collector.add(record)
                await callbacks.call(record)
        result = collector.result()
        return result.check() if check else result

    async def output(self, from_seq: int = 0, *, follow: bool = True, binary: bool = False) -> AsyncGenerator[Record]:
        """Its output from record `from_seq`; to its end, or (`follow=False`) as far as it is."""
        if follow:
            records = follow_records(self._transport, self._path, self._owner, from_seq, binary=binary)
            async with aclosing(records):
                async for record in records:
                    yield record
            return
        while True:
            params = {**self._owner, **_wire.query(from_seq=from_seq, wait=0, binary=binary or None)}
            page = decoded(await self._transport.request("GET", self._path, params=params))
            found = [Record.from_json(item) for item in page.get("records", [])]
            for record in found:
                yield record
            from_seq = int(page.get("next_seq", from_seq))
            if not found:
                return

    async def send_stdin(self, data: str, *, eof: bool = False) -> None:
        """Feed its standard input, or answer its `input()`; no newline is added. `eof` closes its standard input.

        Waits while it reads more slowly. Raises `NotWaitingForInput` when it has ended, or closed its input.
        """
        for start in range(0, len(data) or 1, INPUT_CHARACTERS):
            piece = data[start : start + INPUT_CHARACTERS]
            await self._send_input(piece, eof=eof and start + INPUT_CHARACTERS >= len(data))

    async def _send_input(self, piece: str, *, eof: bool) -> None:
        fields: dict[str, Any] = {"mode": "input", "run_id": self.run_id, "code": piece, "wait": 0}
        if eof:
            fields["opts"] = {"eof": True}
        attempt = 0
        while True:
            try:
                await self._transport.request("POST", f"{self._base}/execute", params=self._owner, json=fields)
                return
            except ResourceExhausted:  # it has not read what it was sent before
                attempt += 1
                await _io.sleep(min(_wire.pause_seconds(attempt), 1.0))

    async def interrupt(self) -> bool:
        """As Ctrl-C would; whether there was something to interrupt."""
        path = f"{self._base}/interrupt"
        answer = await self._transport.request("POST", path, params=self._owner, json={"run_id": self.run_id})
        return bool(decoded(answer).get("interrupted"))

    async def kill(self, *, grace: float | None = None) -> bool:
        """End it at once; whether there was something to end. With a `grace`, SIGTERM, and the end after so many seconds."""
        fields = _wire.body(grace_seconds=grace)
        answer = await self._transport.request("POST", f"{self._path}/kill", params=self._owner, json=fields or None)
        return bool(decoded(answer).get("killed"))

    @property
    def _path(self) -> str:
        return f"{self._base}/executions/{_wire.segment(self.run_id)}"


class Executions:
    """`session.executions`"""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str], kernel: str | None = None) -> None:
        self._transport = transport
        self._base = base
        self._owner = owner
        self._kernel = kernel

    def get(self, run_id: str) -> Execution:
        """A handle of an execution that was started anywhere, at any time. Asks nothing yet."""
        return Execution(self._transport, self._base, run_id, self._owner)

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[RunInfo]:
        """The session's executions. Fetched as they are looked at."""
        return self._transport.items(RunInfo.from_json, f"{self._base}/executions", limit=limit, **self._owner)

    async def list(self, *, limit: int | None = None) -> RunInfos:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def start(
        self,
        code: str,
        *,
        mode: Mode = "query",
        timeout: float | None = None,
        idempotency_key: str | None = None,
        opts: Mapping[str, Any] | None = None,
    ) -> Execution:
        """Start code (`query`, in the session's Python) or a command (`batch`), and do not wait for it.

        Starting it again with the same `idempotency_key` attaches to what runs already. `timeout` ends it after so
        many seconds.
        """
        fields = _wire.body(
            code=code, mode=mode, timeout=timeout, opts=opts and dict(opts), kernel=self._kernel, wait=0
        )
        key = idempotency_key or str(uuid.uuid4())
        path = f"{self._base}/execute"
        answer = decoded(await self._transport.request("POST", path, params=self._owner, json=fields, key=key))
        return self.get(str(answer["run_id"]))

    async def run(
        self,
        code: str,
        *,
        mode: Mode = "query",
        timeout: float | None = None,
        idempotency_key: str | None = None,
        opts: Mapping[str, Any] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
        on_input: OnInput | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run it to its end. Output is passed on as it comes, and is whole in the result."""
        key = idempotency_key or str(uuid.uuid4())
        collector = Collector(key)
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        records = self.stream(code, mode=mode, timeout=timeout, idempotency_key=key, opts=opts)
        async with aclosing(records):
            async for record in records:
                if record.kind == "run":
                    collector.run_id = str(record.data["run_id"])
                elif record.kind == "input_request":
                    await self._answer(collector.run_id, record, on_input)
                collector.add(record)
                await callbacks.call(record)
        result = collector.result()
        return result.check() if check else result

    async def stream(
        self,
        code: str,
        *,
        mode: Mode = "query",
        timeout: float | None = None,
        idempotency_key: str | None = None,
        opts: Mapping[str, Any] | None = None,
        binary: bool = False,
    ) -> AsyncGenerator[Record]:
        """Run it and yield its records, the first of kind `run` (its data has the run id), the last `done`."""
        fields = _wire.body(code=code, mode=mode, timeout=timeout, opts=opts and dict(opts), kernel=self._kernel)
        key = idempotency_key or str(uuid.uuid4())
        first = Start(f"{self._base}/execute", fields, key)
        records = follow_records(
            self._transport, f"{self._base}/executions", self._owner, 0, start=first, binary=binary
        )
        async with aclosing(records):
            async for record in records:
                yield record

    async def _answer(self, run_id: str, record: Record, on_input: OnInput | None) -> None:
        asked = InputRequest(str(record.data.get("prompt") or ""), bool(record.data.get("password")))
        answer = None if on_input is None else await _io.result_of(on_input(asked))
        with suppress(NotWaitingForInput):  # it may have been interrupted meanwhile
            await self.get(run_id).send_stdin(f"{answer}\n" if answer is not None else "", eof=answer is None)


class Commands:
    """`session.commands`: programs in the session's container, by the shell."""

    def __init__(self, executions: Executions) -> None:
        self._executions = executions

    async def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run a shell command, or a program with its arguments, to its end. Its standard input is `stdin`, or empty."""
        if stdin is None:
            script = shell(command, cwd, env)
            return await self._executions.run(
                script,
                mode="batch",
                timeout=timeout,
                idempotency_key=idempotency_key,
                opts={"stdin": False},
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                check=check,
            )
        handle = await self.start(command, cwd=cwd, env=env, timeout=timeout, idempotency_key=idempotency_key)
        with suppress(NotWaitingForInput):  # it need not read it
            await handle.send_stdin(stdin, eof=True)
        return await handle.wait(on_stdout=on_stdout, on_stderr=on_stderr, check=check)

    async def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = True,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Execution:
        """Start it and do not wait for it. Its standard input stays open for `send_stdin`, unless `stdin` is false."""
        opts = None if stdin else {"stdin": False}
        script = shell(command, cwd, env)
        return await self._executions.start(
            script, mode="batch", timeout=timeout, idempotency_key=idempotency_key, opts=opts
        )


class Callbacks:
    """Who wants to see output as it comes."""

    def __init__(
        self,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._on_result = on_result
        self._on_error = on_error

    async def call(self, record: Record) -> None:
        match record.kind:
            case "stdout" if self._on_stdout:
                await _io.result_of(self._on_stdout(record.text))
            case "stderr" if self._on_stderr:
                await _io.result_of(self._on_stderr(record.text))
            case "result" if self._on_result:
                await _io.result_of(self._on_result(dict(record.data)))
            case "error" if self._on_error:
                await _io.result_of(self._on_error(error_info(record.data)))


class Start:
    """The request that starts an execution; sent again with the same key, it attaches to the same one."""

    def __init__(self, path: str, fields: Mapping[str, Any], key: str) -> None:
        self.path = path
        self.fields = fields
        self.key = key


def shell(command: str | Sequence[str], cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """One script for the session's shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    if cwd is not None:
        lines.append(f"cd -- {shlex.quote(cwd)} || exit 1")
    lines.append(command if isinstance(command, str) else shlex.join(command))
    return "\n".join(lines)


def deadline_of(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


async def follow_records(
    transport: Transport,
    path: str,
    owner: Mapping[str, str],
    from_seq: int,
    *,
    start: Start | None = None,
    binary: bool = False,
    deadline: float | None = None,
) -> AsyncGenerator[Record]:
    """Records to the end of an execution, each once and in order, over as many connections as it takes.

    With `start`, `path` is that of all executions, and the first record is of kind `run`.
    """
    run_id: str | None = None
    next_seq, fruitless = from_seq, 0
    params = {**owner, **_wire.query(binary=binary or None)}
    over = False
    while True:
        fruitless += 1
        replay = {**params, "from_seq": str(next_seq), "follow": "true"}
        headers, read_seconds = {"Accept": NDJSON}, _silence(deadline)
        if start is not None and run_id is None:
            opened = transport.stream(
                "POST",
                start.path,
                params=params,
                json=start.fields,
                headers=headers,
                key=start.key,
                read_seconds=read_seconds,
            )
        else:
            address = path if run_id is None else f"{path}/{_wire.segment(run_id)}"
            opened = transport.stream("GET", address, params=replay, headers=headers, read_seconds=read_seconds)
        try:
            async with opened as response:
                async for line in response.aiter_lines():
                    if not (record := _parsed(line)):
                        break  # cut off in the middle of a line
                    if record.kind == "run":
                        if start is not None and run_id is None:
                            run_id = str(record.data["run_id"])
                            yield record
                    elif record.seq >= next_seq or record.next_seq > next_seq:
                        next_seq, fruitless = record.next_seq, 0
                        yield record
                        over = over or record.kind == "done"
                    if not over:
                        _check(deadline)
        except StreamSilent:
            fruitless = 0  # silence is no failure, but the other end may be gone
        except StreamBroken:
            pass
        if over:
            return  # the body was read to its end, so that its connection serves again
        # The stream ended before the execution did: take it up where it broke off.
        _check(deadline)
        if fruitless > MAX_FRUITLESS:
            raise Unreachable("The server ends the stream of output again and again without sending anything.")
        if fruitless > 1:
            await _io.sleep(_wire.pause_seconds(fruitless))


def _silence(deadline: float | None) -> float:
    if deadline is None:
        return STREAM_SILENCE_SECONDS
    return max(0.05, min(STREAM_SILENCE_SECONDS, deadline - time.monotonic()))


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise WaitTimeout("The execution is not over yet; it runs on: wait for it again, or kill it.")


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if isinstance(record, dict) and "kind" not in record and "code" in record:
        # a stream that has begun can report a failure only as a line
        raise _wire.error_from(int(record.get("status") or 0), line.encode(), {})
    return Record.from_json(record)


class RunsCode:
    """Of what has an interpreter: a session (that of its main kernel), or one kernel."""

    executions: Executions

    async def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
        on_input: OnInput | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run Python code in its own interpreter, which keeps its variables from call to call.

        After `timeout` seconds it is interrupted, then killed; what it had printed is kept. An exception of the code
        is in the result's `error`, and raised as `CommandFailed` only with `check`.
        """
        return await self.executions.run(
            code,
            mode="query",
            timeout=timeout,
            idempotency_key=idempotency_key,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
            on_error=on_error,
            on_input=on_input,
            check=check,
        )
