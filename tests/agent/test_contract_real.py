"""The real agent keeps to the contract, on real containers; and what only a real one can be asked."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import docker
import pytest

from agent.wire import Fact, RunRead, decode_records
from domain.errors import AppNotLoaded, InvalidRequest, MoorageError, SessionEnded, TransferFailed
from domain.ids import RunId, uuid7
from tests.agent.bed import RealBed
from tests.agent.contract import Contract, Subject

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
async def bed(engine_host: str, kernel_image: str) -> AsyncIterator[RealBed]:
    bed = RealBed(engine_host, kernel_image)
    try:
        await bed.open()
        yield bed
    finally:
        await bed.close()


@pytest.fixture(scope="module")
async def subject(bed: RealBed) -> AsyncIterator[Subject]:
    subject = Subject(bed)
    fact = await subject.up()
    assert fact.observed == "RUNNING", (fact, bed.log())
    yield subject
    await subject.down()


@pytest.fixture
async def fresh(bed: RealBed) -> AsyncIterator[Subject]:
    subject = Subject(bed)
    yield subject
    await subject.down(generation=10_000)


class TestRealAgent(Contract):
    pass


# -- what ends -----------------------------------------------------------------------------------------------------------
async def test_nothing_is_left_of_a_kernel_that_went(bed: RealBed, fresh: Subject, engine: docker.DockerClient) -> None:
    await fresh.up()
    name = f"moorage-{fresh.kernel_id.hex}-1"
    assert engine.containers.get(name).status == "running"
    await fresh.down()
    with pytest.raises(docker.errors.NotFound):
        engine.containers.get(name)
    folder = bed.data_dir / "kernels" / fresh.kernel_id.hex
    assert not (folder / "work").exists()


async def test_output_outlives_the_container(fresh: Subject) -> None:
    await fresh.up()
    run_id = RunId(uuid7())
    await fresh.execute("print('left behind')", run_id=run_id)
    await fresh.down()
    text, done = await fresh.output(run_id)
    assert (text, done["exit_code"]) == (b"left behind\n", 0)


async def test_a_destroy_during_a_create_wins(bed: RealBed, fresh: Subject, engine: docker.DockerClient) -> None:
    first = await fresh.want("RUN", 1)
    assert first.observed == "PREPARING"
    await fresh.want("GONE", 2)
    fact = await bed.fact(fresh.kernel_id, "GONE")
    assert fact.generation == 2
    assert not engine.containers.list(all=True, filters={"label": f"moorage.kernel={fresh.kernel_id}"})


async def test_a_startup_command_ends_the_kernel(bed: RealBed, fresh: Subject) -> None:
    await fresh.want("RUN", 1, startup_command="echo done; exit 3")
    fact = await bed.fact(fresh.kernel_id, "EXITED")
    assert fact.exit is not None
    assert (fact.exit["finished"], fact.exit["exit_code"]) == (True, 3)
    text, _ = await fresh.output(str(fresh.kernel_id))
    assert text == b"done\n"


async def test_a_container_that_is_killed_is_noticed(bed: RealBed, fresh: Subject, engine: docker.DockerClient) -> None:
    await fresh.up()
    engine.containers.get(f"moorage-{fresh.kernel_id.hex}-1").kill()
    async with asyncio.timeout(3):
        fact = await bed.fact(fresh.kernel_id, "EXITED")
    assert fact.exit is not None
    assert fact.exit["reason"] == "killed"


async def test_a_container_that_is_removed_is_noticed(
    bed: RealBed, fresh: Subject, engine: docker.DockerClient
) -> None:
    await fresh.up()
    engine.containers.get(f"moorage-{fresh.kernel_id.hex}-1").remove(force=True)
    async with asyncio.timeout(5):
        fact = await bed.fact(fresh.kernel_id, "EXITED")
    assert fact.exit is not None
    assert fact.exit["finished"] is False


async def test_a_missing_image_is_said(bed: RealBed, fresh: Subject) -> None:
    await fresh.want("RUN", 1, image="moorage/nothing-of-this-name:1")
    fact = await bed.fact(fresh.kernel_id, "FAILED")
    assert fact.exit is not None
    assert fact.exit["reason"] == "image_missing"


# -- bootstrap -------------------------------------------------------------------------------------------------------------
async def test_a_bootstrap_script_runs_first(fresh: Subject) -> None:
    fact = await fresh.up(bootstrap_script="echo made > made.txt")
    assert (fact.observed, fact.notices) == ("RUNNING", [])
    assert await fresh.get("made.txt") == b"made\n"


async def test_a_bootstrap_script_that_fails_is_a_notice(fresh: Subject) -> None:
    fact = await fresh.up(bootstrap_script="echo oh no; exit 4")
    assert fact.observed == "RUNNING"
    assert fact.notices[0]["kind"] == "bootstrap_failed"
    assert "oh no" in fact.notices[0]["log_tail"]


async def test_a_bootstrap_script_that_must_work_and_does_not(fresh: Subject) -> None:
    fact = await fresh.up(bootstrap_script="echo oh no; exit 4", bootstrap_required=True)
    assert fact.observed == "FAILED"
    assert fact.exit is not None
    assert (fact.exit["reason"], fact.exit["exit_code"]) == ("bootstrap_failed", 4)


# -- restarts --------------------------------------------------------------------------------------------------------------
async def test_a_new_attempt_finds_its_files(fresh: Subject) -> None:
    await fresh.up()
    await fresh.put("kept.txt", b"kept")
    run_id = RunId(uuid7())
    await fresh.execute("print('first attempt')", run_id=run_id)
    fresh.attempt = 2
    await fresh.up(generation=2)
    assert await fresh.get("kept.txt") == b"kept"
    assert (await fresh.output(run_id))[0] == b"first attempt\n"


async def test_an_agent_that_is_killed_loses_nothing(bed: RealBed, fresh: Subject) -> None:
    await fresh.up()
    run_id = RunId(uuid7())
    code = "import time\nfor i in range(300):\n    print(i, flush=True)\n    time.sleep(0.01)"
    await fresh.execute(code, run_id=run_id, wait_seconds=0.0)
    boot_no = bed.heard.hellos[-1].boot_no
    for _ in range(3):
        await bed.kill()
        await bed.start()
    text, done = await fresh.output(run_id)
    assert text == "".join(f"{i}\n" for i in range(300)).encode()
    assert done["reason"] == "finished"
    assert bed.heard.hellos[-1].boot_no == boot_no + 3
    await bed.heard.until(lambda: str(run_id) in bed.heard.runs)
    again = await fresh.execute(code, run_id=run_id)
    assert next(decode_records(again.records)).seq == 1


async def test_what_ended_while_the_agent_was_away_is_told(bed: RealBed, fresh: Subject) -> None:
    await fresh.up()
    run_id = RunId(uuid7())
    await fresh.execute("import time; time.sleep(1); print('late')", run_id=run_id, wait_seconds=0.0)
    await bed.kill()
    await asyncio.sleep(1.5)  # nobody there to be waited for
    await bed.start()
    await bed.heard.until(lambda: str(run_id) in bed.heard.runs, seconds=20)
    assert bed.heard.runs[str(run_id)][0].exit_code == 0


async def test_an_intent_that_was_taken_on_is_carried_out_after_a_kill(bed: RealBed, fresh: Subject) -> None:
    await fresh.want("RUN", 1)
    await bed.kill()
    await bed.start()
    await bed.fact(fresh.kernel_id, "RUNNING")
    assert (await fresh.execute("print(1)")).status == "done"
    await fresh.want("GONE", 2)
    await bed.kill()
    await bed.start()
    await bed.fact(fresh.kernel_id, "GONE")


async def test_facts_are_told_until_they_are_heard(bed: RealBed, fresh: Subject) -> None:
    bed.heard.deaf = True
    try:
        await fresh.want("RUN", 1)
        await asyncio.sleep(0.5)
    finally:
        bed.heard.deaf = False
    await bed.fact(fresh.kernel_id, "RUNNING")


# -- bulk ------------------------------------------------------------------------------------------------------------------
async def test_large_files_arrive_whole(subject: Subject) -> None:
    content = os.urandom(1 << 20) * 32
    await subject.put("large.bin", content)
    assert await subject.get("large.bin") == content


async def test_an_upload_that_breaks_off_leaves_nothing(subject: Subject) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise TransferFailed

    with pytest.raises(MoorageError):
        await subject.agent.upload(subject.where, "broken.bin", broken(), size=2_000_000)
    page = await subject.agent.list_files(subject.where, ".", cursor=None, limit=1000)
    assert "broken.bin" not in [stat.name for stat in page.files]


async def test_a_wrong_checksum_is_refused(subject: Subject) -> None:
    with pytest.raises(MoorageError):
        await subject.put("sum.bin", b"abc", sha256="0" * 64)
    page = await subject.agent.list_files(subject.where, ".", cursor=None, limit=1000)
    assert "sum.bin" not in [stat.name for stat in page.files]


async def test_a_download_may_be_left_early(subject: Subject) -> None:
    await subject.put("left.bin", b"x" * (8 << 20))
    download = await subject.agent.download(subject.where, "left.bin")
    async for _ in download:
        break
    await download.aclose()
    assert await subject.get("left.bin", offset=0, length=3) == b"xxx"


async def test_the_archive_is_a_tar(subject: Subject) -> None:
    await subject.execute("mkdir -p box/in; echo a > box/in/a; ln -s /etc/passwd box/link", mode="batch")
    archive = await subject.agent.archive(subject.where, ["box"])
    content = b"".join([bytes(chunk) async for chunk in archive])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        entries: dict[str, Any] = {member.name: member for member in tar}
    assert entries["box/link"].issym()
    assert entries["box/in/a"].size == 2


# -- limits ----------------------------------------------------------------------------------------------------------------
async def test_code_that_eats_memory_is_told_so_and_the_kernel_goes_on(subject: Subject) -> None:
    read = await subject.execute("x = bytearray(900 * 1024 * 1024)")
    assert read.done is not None
    assert read.done["reason"] in ("out_of_memory", "crashed", "finished")
    after = await subject.execute("print('alive')")
    assert after.done is not None
    assert after.done["exit_code"] == 0


async def test_many_come_up_at_once(bed: RealBed) -> None:
    subjects = [Subject(bed) for _ in range(8)]
    facts = await asyncio.gather(*(subject.up() for subject in subjects))
    assert {fact.observed for fact in facts} == {"RUNNING"}
    await asyncio.gather(*(subject.down() for subject in subjects))


# -- worker sessions -----------------------------------------------------------------------------------------------------
APP = b"""
import asyncio, os
import moorage_session

class App:
    def setup(self):
        self.count = 0

    async def run(self, seconds):
        self.count += 1
        await asyncio.sleep(seconds)
        return self.count

    def eat(self):
        self.eaten = bytearray(900 << 20)

    def last(self):
        moorage_session.end()
        return "answered"
"""
LOAD = {"adapter": "class", "entry": "app:App", "path": "/home/work/app"}


@pytest.fixture
async def worker(bed: RealBed) -> AsyncIterator[Subject]:
    """A worker session, with the app loaded."""
    subject = Subject(bed)
    await subject.up(worker=True)
    await subject.put("app/app.py", APP)
    loaded = await subject.execute(json.dumps(LOAD), mode="load")
    assert (loaded.done or {}).get("exit_code") == 0, (loaded, bed.log())
    yield subject
    await subject.down(generation=10_000)


async def call(worker: Subject, function: str = "run", given: Any = None, **more: Any) -> RunRead:
    return await worker.execute(json.dumps({"function": function, "input": given}), mode="call", **more)


def results(read: RunRead) -> list[Any]:
    return [record.data for record in decode_records(read.records) if record.kind == "result"]


async def exit_of(bed: RealBed, worker: Subject) -> dict[str, Any]:
    fact: Fact = await bed.fact(worker.kernel_id, "EXITED")
    assert fact.exit is not None
    return fact.exit


async def test_an_app_outlives_its_agent_and_ends_its_session(bed: RealBed, worker: Subject) -> None:
    assert results(await call(worker, given=0)) == [{"output": 1}]
    with pytest.raises(InvalidRequest):
        await worker.execute("1 + 1")
    run_id = RunId(uuid7())
    await call(worker, given=2, run_id=run_id, wait_seconds=0.0)
    await bed.kill()
    await bed.start()
    _, done = await worker.output(run_id)
    assert (done["reason"], done["exit_code"]) == ("finished", 0)
    assert results(await call(worker, given=0)) == [{"output": 3}]
    run_id = RunId(uuid7())
    assert results(await call(worker, "last", run_id=run_id)) == [{"output": "answered"}]
    ended = await exit_of(bed, worker)
    assert (ended["reason"], ended["finished"], ended["exit_code"]) == ("ended", True, 0)
    assert str(worker.kernel_id) not in bed.heard.runs  # the main work is no execution
    assert results(await call(worker, "last", run_id=run_id)) == [{"output": "answered"}]  # whoever asks again
    with pytest.raises(SessionEnded):
        await call(worker)


async def test_an_app_that_eats_its_memory_is_lost_and_said_to_be(bed: RealBed, worker: Subject) -> None:
    read = await call(worker, "eat")
    assert read.done is not None
    assert (read.done["reason"], read.done["namespace_lost"]) == ("out_of_memory", True)
    ended = await exit_of(bed, worker)
    assert (ended["reason"], ended["finished"]) == ("worker_lost", False)
    assert "ran out of memory" in ended["message"]
    with pytest.raises(MoorageError):
        await call(worker)


async def test_a_call_ends_with_its_container(bed: RealBed, worker: Subject, engine: docker.DockerClient) -> None:
    run_id = RunId(uuid7())
    await call(worker, given=60, run_id=run_id, wait_seconds=0.0)
    engine.containers.get(f"moorage-{worker.kernel_id.hex}-1").kill()
    ended = await exit_of(bed, worker)
    assert (ended["reason"], ended["finished"]) == ("killed", False)
    await bed.heard.until(lambda: str(run_id) in bed.heard.runs)
    assert bed.heard.runs[str(run_id)][0].reason == "worker_lost"


async def test_another_attempt_begins_without_the_app(bed: RealBed, worker: Subject) -> None:
    worker.attempt = 2
    await worker.up(generation=2, worker=True)
    with pytest.raises(AppNotLoaded):
        await call(worker)
