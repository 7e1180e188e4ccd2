"""What every agent keeps to, the one in memory and the real one: each test runs against both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

import pytest

from agent.client import AgentClient, KernelAddress
from agent.wire import Fact, KernelSpec, RunRead, decode_records
from domain.errors import (
    FileExists,
    FileNotFound,
    InvalidPath,
    MoorageError,
    NotWaitingForInput,
    RunNotFound,
    StateFull,
)
from domain.ids import AgentId, KernelId, RunId, uuid7


class Bed(Protocol):
    """An agent under test, and what differs between the two."""

    @property
    def agent(self) -> AgentClient: ...
    @property
    def agent_id(self) -> AgentId: ...
    @property
    def image(self) -> str: ...

    async def answered(self, fact: Fact) -> None:
        """An answer is a fact like any other."""
        ...

    async def fact(self, kernel_id: UUID, *states: str, attempt: int = 1) -> Fact:
        """The first fact that says one of these states."""
        ...

    def will_ask(self, prompt: str) -> None:
        """The next run asks for input; a script for the one in memory."""
        ...

    def will_sleep(self) -> None: ...


@dataclass
class Subject:
    """One kernel under test."""

    bed: Bed
    kernel_id: KernelId = field(default_factory=lambda: KernelId(uuid7()))
    attempt: int = 1

    @property
    def agent(self) -> AgentClient:
        return self.bed.agent

    @property
    def where(self) -> KernelAddress:
        return KernelAddress(agent_id=self.bed.agent_id, kernel_id=self.kernel_id, attempt=self.attempt)

    def spec(self, **changes: Any) -> KernelSpec:
        plain = KernelSpec(
            session_id=str(uuid7()),
            session_name="contract",
            image=self.bed.image,
            slots={"cpu": 500, "mem": 256},
        )
        return replace(plain, **changes)

    async def want(self, want: str, generation: int, **changes: Any) -> Fact:
        spec = self.spec(**changes) if want == "RUN" else None
        fact = await self.agent.ensure(self.where, generation=generation, want=want, spec=spec, grace_seconds=1.0)
        await self.bed.answered(fact)
        return fact

    async def up(self, generation: int = 1, **changes: Any) -> Fact:
        await self.want("RUN", generation, **changes)
        return await self.bed.fact(self.kernel_id, "RUNNING", "FAILED", attempt=self.attempt)

    async def down(self, generation: int = 1000) -> Fact:
        await self.want("GONE", generation)
        return await self.bed.fact(self.kernel_id, "GONE", attempt=self.attempt)

    async def execute(
        self, code: str, *, run_id: RunId | None = None, mode: str = "query", wait_seconds: float = 20.0, **more: Any
    ) -> RunRead:
        return await self.agent.execute(
            self.where,
            run_id or RunId(uuid7()),
            mode=mode,
            code=code,
            opts=more.pop("opts", {}),
            timeout_seconds=more.pop("timeout_seconds", None),
            wait_seconds=wait_seconds,
            max_bytes=1 << 20,
        )

    async def output(self, run_id: RunId | str, from_seq: int = 0) -> tuple[bytes, dict[str, Any]]:
        """All output from `from_seq` on, in order, and how the run ended."""
        text, seq, seen = bytearray(), from_seq, max(from_seq, 1)
        async with asyncio.timeout(60):
            while True:
                read = await self.agent.read(self.where, run_id, from_seq=seq, max_bytes=1 << 20, wait_seconds=10.0)
                for record in decode_records(read.records):
                    assert record.seq == seen, "a record is missing or doubled"
                    seen += 1
                    text += record.payload if record.kind in ("stdout", "stderr") else b""
                seq = read.next_seq
                if read.done is not None:
                    return bytes(text), read.done

    async def put(self, path: str, content: bytes, **more: Any) -> Any:
        return await self.agent.upload(self.where, path, body(content), size=len(content), **more)

    async def get(self, path: str, **more: Any) -> bytes:
        download = await self.agent.download(self.where, path, **more)
        try:
            return b"".join([bytes(chunk) async for chunk in download])
        finally:
            await download.aclose()


async def body(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


class Contract:
    """Subclassed once for each kind of agent; `subject` is up, `fresh` is a kernel that nobody has heard of."""

    # -- intents -----------------------------------------------------------------------------------------------------
    async def test_asking_twice_is_asking_once(self, subject: Subject) -> None:
        again = await subject.want("RUN", 1)
        assert (again.observed, again.attempt, again.generation) == ("RUNNING", 1, 1)

    async def test_an_unknown_kernel_that_shall_go_is_gone(self, fresh: Subject) -> None:
        assert (await fresh.want("GONE", 5)).observed == "GONE"

    async def test_a_create_that_comes_after_its_destroy_does_nothing(self, fresh: Subject) -> None:
        await fresh.want("GONE", 5)
        late = await fresh.want("RUN", 4)
        assert (late.observed, late.generation) == ("GONE", 5)

    async def test_a_stale_intent_is_answered_with_what_is_true(self, fresh: Subject) -> None:
        await fresh.up(generation=7)
        stale = await fresh.want("GONE", 6)
        assert (stale.observed, stale.generation) == ("RUNNING", 7)
        assert (await fresh.down()).observed == "GONE"

    async def test_a_new_attempt_runs_again(self, fresh: Subject) -> None:
        await fresh.up()
        fresh.attempt = 2
        assert (await fresh.up(generation=2)).observed == "RUNNING"
        assert (await fresh.down()).attempt == 2

    # -- runs --------------------------------------------------------------------------------------------------------
    async def test_code_runs_and_ends(self, subject: Subject) -> None:
        read = await subject.execute("print('salve')")
        assert read.status == "done"
        assert read.done is not None
        assert read.done["exit_code"] == 0
        text = b"".join(r.payload for r in decode_records(read.records) if r.kind == "stdout")
        assert b"salve" in text

    async def test_a_run_id_runs_once(self, subject: Subject) -> None:
        run_id = RunId(uuid7())
        first = await subject.execute("print('once')", run_id=run_id)
        second = await subject.execute("print('once')", run_id=run_id)
        assert (second.records, second.done) == (first.records, first.done)

    async def test_many_at_once_run_once(self, subject: Subject) -> None:
        run_id = RunId(uuid7())
        reads = await asyncio.gather(*(subject.execute("print('once')", run_id=run_id) for _ in range(20)))
        text, _ = await subject.output(run_id)
        assert text.count(b"once") == 1
        assert {read.run_id for read in reads} == {str(run_id)}

    async def test_output_is_read_from_any_number_on(self, subject: Subject) -> None:
        run_id = RunId(uuid7())
        whole = await subject.execute("print('again')", run_id=run_id)
        count = len(list(decode_records(whole.records)))
        assert whole.next_seq == count + 1
        last = await subject.agent.read(subject.where, run_id, from_seq=count, max_bytes=1 << 20, wait_seconds=0)
        assert [r.seq for r in decode_records(last.records)] == [count]
        after = await subject.agent.read(subject.where, run_id, from_seq=count + 1, max_bytes=99, wait_seconds=0)
        assert (after.records, after.status) == (b"", "done")

    async def test_an_unknown_run_is_not_found(self, subject: Subject) -> None:
        with pytest.raises(RunNotFound):
            await subject.agent.read(subject.where, RunId(uuid7()), from_seq=0, max_bytes=99, wait_seconds=0)

    async def test_input_is_fed(self, subject: Subject) -> None:
        run_id = RunId(uuid7())
        subject.bed.will_ask("name? ")
        read = await subject.execute("x = input('name? '); print('got', x)", run_id=run_id, wait_seconds=0.0)
        async with asyncio.timeout(20):
            while read.status != "waiting_input":
                read = await subject.agent.read(
                    subject.where, run_id, from_seq=read.next_seq, max_bytes=1 << 20, wait_seconds=5.0
                )
        await subject.agent.send_input(subject.where, run_id, b"Ada\n")
        text, done = await subject.output(run_id)
        assert b"got Ada" in text
        assert done["exit_code"] == 0
        with pytest.raises(NotWaitingForInput):
            await subject.agent.send_input(subject.where, run_id, b"more\n")

    async def test_a_run_is_killed(self, subject: Subject) -> None:
        run_id = RunId(uuid7())
        subject.bed.will_sleep()
        await subject.execute("sleep 600", run_id=run_id, mode="batch", wait_seconds=0.0)
        assert await subject.agent.kill(subject.where, run_id)
        _, done = await subject.output(run_id)
        assert (done["reason"], done["signal"]) == ("killed", 9)
        assert not await subject.agent.kill(subject.where, run_id)

    async def test_an_app_is_loaded_and_called(self, subject: Subject) -> None:
        worker = Subject(subject.bed)
        await worker.up(worker=True)
        await worker.put("app.py", b"class App:\n    def run(self, given):\n        return given\n")
        asked = '{"adapter": "class", "entry": "app:App", "path": "/home/work"}'
        loaded = await worker.execute(asked, mode="load")
        assert (loaded.done or {}).get("exit_code") == 0
        read = await worker.execute('{"function": "run", "input": {"x": 1}}', mode="call")
        results = [record.data for record in decode_records(read.records) if record.kind == "result"]
        assert results == [{"output": {"x": 1}}]
        await worker.down()

    async def test_code_is_completed(self, subject: Subject) -> None:
        found = await subject.agent.complete(subject.where, code="prin", row=0, col=4, line="prin", post="")
        assert any(text.startswith("print") for text in found["suggestions"])

    async def test_the_log_is_read(self, subject: Subject) -> None:
        read = await subject.agent.read(subject.where, "log", from_seq=0, max_bytes=1 << 20, wait_seconds=0)
        assert read.done is None

    # -- files -------------------------------------------------------------------------------------------------------
    async def test_files_go_up_and_come_down(self, subject: Subject) -> None:
        content = bytes(range(256)) * 1000
        stat = await subject.put("up.bin", content)
        assert (stat.size, stat.type, stat.owner) == (len(content), "file", 1000)
        assert await subject.get("up.bin") == content
        assert await subject.get("/home/work/up.bin", offset=1000, length=5) == content[1000:1005]
        assert await subject.get("up.bin", offset=len(content) - 3) == content[-3:]

    async def test_an_empty_file_is_a_file(self, subject: Subject) -> None:
        assert (await subject.put("empty", b"")).size == 0
        assert await subject.get("empty") == b""

    async def test_what_is_there_is_kept_when_asked(self, subject: Subject) -> None:
        await subject.put("kept", b"first")
        with pytest.raises(FileExists):
            await subject.put("kept", b"second", overwrite=False)
        assert await subject.get("kept") == b"first"

    async def test_a_missing_file_is_not_found(self, subject: Subject) -> None:
        with pytest.raises(FileNotFound):
            await subject.get("nowhere")

    @pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "/proc/1/environ"])
    async def test_paths_stay_inside(self, subject: Subject, path: str) -> None:
        with pytest.raises((InvalidPath, FileNotFound)):
            await subject.get(path)
        with pytest.raises(MoorageError):
            await subject.put(path, b"x")

    async def test_folders_are_made_listed_and_paged(self, subject: Subject) -> None:
        await subject.agent.manage_file(subject.where, "mkdir", {"path": "many"})
        for number in range(5):
            await subject.put(f"many/{number}", b"x" * number)
        names: list[str] = []
        cursor = None
        while True:
            page = await subject.agent.list_files(subject.where, "many", cursor=cursor, limit=2)
            names += [stat.name for stat in page.files]
            if (cursor := page.next_cursor) is None:
                break
        assert names == ["0", "1", "2", "3", "4"]

    async def test_files_are_managed(self, subject: Subject) -> None:
        manage, where = subject.agent.manage_file, subject.where
        await subject.put("a", b"abc")
        moved = await manage(where, "move", {"path": "a", "to": "b"})
        assert moved is not None
        assert moved.size == 3
        await manage(where, "copy", {"path": "b", "to": "c"})
        changed = await manage(where, "chmod", {"path": "c", "mode": 0o600})
        assert changed is not None
        assert changed.mode == 0o600
        assert await manage(where, "remove", {"path": "b"}) is None
        with pytest.raises(FileNotFound):
            await manage(where, "stat", {"path": "b"})
        with pytest.raises(FileExists):
            await manage(where, "mkdir", {"path": "c"})

    async def test_its_state_is_kept(self, subject: Subject) -> None:
        state, where = subject.agent.state, subject.where
        assert await state(where, "get", "best") == {"found": False}
        await state(where, "set", "best", {"loss": 0.5, "of": [1, None, "ä"]})
        assert await state(where, "get", "best") == {"found": True, "value": {"loss": 0.5, "of": [1, None, "ä"]}}
        assert await state(where, "list") == {"sizes": {"best": 31}}
        assert await state(where, "delete", "best") == {"deleted": True}
        assert await state(where, "delete", "best") == {"deleted": False}
        with pytest.raises(StateFull):
            await state(where, "set", "best", "x" * 70_000)

    async def test_an_archive_comes_out(self, subject: Subject) -> None:
        await subject.put("packed", b"x" * 10)
        archive = await subject.agent.archive(subject.where, ["packed"])
        content = b"".join([bytes(chunk) async for chunk in archive])
        await archive.aclose()
        assert b"packed" in content
        with pytest.raises(FileNotFound):
            await subject.agent.archive(subject.where, ["nowhere"])

    async def test_it_says_what_it_uses(self, subject: Subject) -> None:
        used = await subject.agent.statistics(subject.where)
        assert used["cpu_seconds"] >= 0
        assert used["mem_bytes"] > 0
        assert used["pids"] >= 1
