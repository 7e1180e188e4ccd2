"""The ring: bounded, replayable from anywhere, and safe to read whatever the session's user did to it."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from agent.rings import RingReader, RunnerError, close_unfinished, whole
from agent.wire import decode_records
from runner import ring
from runner.ring import DONE, RECORD, RESULT, STDOUT, Ring, Rings


def write(folder: Path, payloads: list[bytes], *, run: str = "run", done: bool = True) -> Ring:
    (folder / "ring").mkdir(exist_ok=True)
    made = Ring.create(str(folder / "ring" / run))
    for payload in payloads:
        made.append(STDOUT, payload)
    if done:
        made.finish({"reason": "finished", "exit_code": 0}, 5.0)
    return made


def read_all(
    reader: RingReader, run: str, max_bytes: int, at: int = 0
) -> tuple[bytes, list[int], list[tuple[int, int]]]:
    output, seqs, gaps = bytearray(), [], []
    while True:
        chunk = reader.read(run, at, max_bytes)
        for record in decode_records(chunk.records):
            seqs.append(record.seq)
            if record.kind == "stdout":
                output += record.payload
        if chunk.gap:
            gaps.append(chunk.gap)
        at = chunk.next_seq
        if chunk.done is not None or not chunk.records:
            return bytes(output), seqs, gaps


@pytest.mark.parametrize("max_bytes", [1, 30, 1000, 100_000, 8 << 20])
def test_reading_from_anywhere_in_any_portions(folder: Path, max_bytes: int) -> None:
    chance = random.Random(max_bytes)
    payloads = [chance.randbytes(chance.choice([1, 5, 100, 4000])) for _ in range(1500)]
    payloads += [chance.randbytes(65536) for _ in range(100)]
    write(folder, payloads)
    reader = RingReader(folder)
    output, seqs, gaps = read_all(reader, "run", max_bytes)
    assert output == b"".join(payloads)
    assert seqs == list(range(1, len(payloads) + 2))
    assert gaps == []
    for start in chance.sample(range(1, len(payloads)), 5):
        output, seqs, _ = read_all(RingReader(folder), "run", max(max_bytes, 1000), start)
        assert output == b"".join(payloads[start - 1 :])
        assert seqs[0] == start
    end = reader.read("run", len(payloads) + 2)
    assert (end.records, end.first_seq, end.next_seq) == (b"", len(payloads) + 2, len(payloads) + 2)
    assert reader.done("run") == {"reason": "finished", "exit_code": 0}


def test_a_large_record_is_read_whole_even_beyond_the_bound(folder: Path) -> None:
    made = write(folder, [b"x" * 10] * 5, done=False)
    made.append(RESULT, b'"' + b"y" * (3 << 20) + b'"')
    made.append(STDOUT, b"z")
    reader = RingReader(folder)
    first = reader.read("run", 0, 100)
    assert [record.seq for record in decode_records(first.records)] == [1, 2, 3]
    second = reader.read("run", 6, 100)
    assert [record.seq for record in decode_records(second.records)] == [6]
    assert [record.seq for record in decode_records(reader.read("run", 7, 100).records)] == [7]
    assert reader.read("run", 8).records == b""


def test_reading_while_it_is_written(folder: Path) -> None:
    made = write(folder, [], done=False)
    reader = RingReader(folder)
    assert reader.read("run").records == b""
    at = 0
    for number in range(300):
        made.append(STDOUT, b"%d" % number * 5000)
        chunk = reader.read("run", at)
        assert [record.seq for record in decode_records(chunk.records)] == [number + 1]
        at = chunk.next_seq
    made.finish({"reason": "finished"}, 1.0)
    assert reader.read("run", at).done == {"reason": "finished"}


def test_a_run_keeps_its_head_and_its_tail(folder: Path) -> None:
    payload = b"x" * 65536
    made = write(folder, [payload] * 1600)
    size = sum(file.stat().st_size for file in (folder / "ring/run").iterdir())
    assert 56 << 20 < size <= (64 << 20) + 65536
    assert made.size == size
    output, seqs, gaps = read_all(RingReader(folder), "run", 8 << 20)
    [gap] = gaps
    assert seqs[: gap[0] - 1] == list(range(1, gap[0]))
    assert seqs[gap[0] - 1] == gap[1] + 1
    assert seqs[-1] == 1601
    assert gap[0] * 65536 >= 1 << 20
    inside = RingReader(folder).read("run", gap[0] + 5, 1000)
    assert inside.gap == (gap[0] + 5, gap[1])
    assert len(output) == (len(seqs) - 1) * 65536


def test_the_session_keeps_to_its_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SESSION_BYTES", 30 << 20)
    rings = Rings(str(folder / "ring"))
    for number in range(6):
        made = rings.create(f"run{number}")
        for _ in range(160):
            made.append(STDOUT, b"x" * 65536)
        made.finish({"reason": "finished"}, 1.0)
        rings.trim()
    assert rings.size <= 30 << 20
    on_disk = sum(file.stat().st_size for file in (folder / "ring").glob("*/*"))
    assert on_disk == rings.size
    reader = RingReader(folder)
    assert reader.runs() == [f"run{number}" for number in range(6)]
    _, seqs, gaps = read_all(reader, "run0", 1 << 20)
    assert seqs[0] == 1
    assert seqs[-1] == 161
    assert len(gaps) == 1
    monkeypatch.setattr(ring, "MAX_RUNS", 2)
    rings.trim()
    assert RingReader(folder).runs() == ["run4", "run5"]


def test_a_full_disk_is_a_gap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(folder, [b"a"], done=False)
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [parts[0], parts[1][:3]]))
    made.append(STDOUT, b"lost lost")
    monkeypatch.setattr(os, "writev", real)
    made.append(STDOUT, b"c")
    made.finish({"reason": "finished"}, 1.0)
    output, seqs, gaps = read_all(RingReader(folder), "run", 1 << 20)
    assert output == b"ac"
    assert seqs == [1, 3, 4]
    assert gaps == [(2, 2)]


def test_what_a_dead_runner_left_is_closed_once(folder: Path) -> None:
    write(folder, [b"whole"], run="whole", done=False)
    write(folder, [b"torn"], run="torn", done=False)
    write(folder, [b"done"], run="done")
    write(folder, [], run="nothing", done=False)
    with (folder / "ring/torn/0000000000000001").open("ab") as file:
        file.write(RECORD.pack(100, 2, STDOUT, 1.0) + b"half")
    assert sorted(close_unfinished(folder, now=7.0)) == ["nothing", "torn", "whole"]
    assert close_unfinished(folder, now=8.0) == []
    reader = RingReader(folder)
    for run, output in (("whole", b"whole"), ("torn", b"torn"), ("nothing", b"")):
        assert read_all(reader, run, 1000)[0] == output
        done = reader.done(run)
        assert done is not None
        assert (done["reason"], done["finished_at"]) == ("worker_lost", 7.0)
    assert Rings(str(folder / "ring")).get("torn").finished  # type: ignore[union-attr]


def test_old_finished_runs_are_purged(folder: Path) -> None:
    for run, age in (("old", 100), ("new", 0)):
        write(folder, [b"x"], run=run)
        for file in (folder / "ring" / run).iterdir():
            os.utime(file, (time.time() - age, time.time() - age))
    write(folder, [b"x"], run="running", done=False)
    os.utime(folder / "ring/running/0000000000000001", (0, 0))
    reader = RingReader(folder)
    assert reader.size() > 0
    assert reader.purge(time.time() - 50) == 1
    assert sorted(reader.runs()) == ["new", "running"]


def _record(seq: int, payload: bytes = b"x", kind: int = STDOUT, length: int | None = None) -> bytes:
    return RECORD.pack(len(payload) if length is None else length, seq, kind, 1.0) + payload


def _fifo(run: Path) -> None:
    (run / "0000000000000001").unlink()
    os.mkfifo(run / "0000000000000001")


def _link(run: Path) -> None:
    (run / "0000000000000001").unlink()
    (run / "0000000000000001").symlink_to("/etc/passwd")


def _folder_link(run: Path) -> None:
    shutil.rmtree(run)
    run.symlink_to("/etc")


def _folder_for_file(run: Path) -> None:
    (run / "0000000000000001").unlink()
    (run / "0000000000000001").mkdir()


def _many(run: Path) -> None:
    for number in range(20_001):
        (run / f"f{number}").touch()


def _bytes(data: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / "0000000000000001").write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _fifo,
        _link,
        _folder_link,
        _folder_for_file,
        _many,
        _bytes(_record(1, length=0xFFFFFFFF)),
        _bytes(_record(1, length=70_000)),
        _bytes(_record(2)),
        _bytes(_record(1) + _record(1)),
        _bytes(_record(1) + _record(2**63)),
        _bytes(_record(1, kind=0) + _record(2, kind=99)),
        _bytes(_record(1, b"[" * 100_000, kind=DONE)),
        _bytes(_record(1, b"[1]", kind=DONE)),
        _bytes(_record(1, b"\xff", kind=6)),
        _bytes(os.urandom(100_000)),
        lambda run: shutil.rmtree(run.parent),
        lambda run: shutil.rmtree(run),
    ],
)
def test_damage_is_an_error_and_nothing_else(folder: Path, damage: Callable[[Path], None]) -> None:
    write(folder, [b"x"] * 10)
    damage(folder / "ring/run")
    reader = RingReader(folder)
    with pytest.raises(RunnerError) as error:
        read_all(reader, "run", 1 << 20)
    assert error.value.code in ("output_damaged", "run_not_found")
    for action in (lambda: reader.done("run"), reader.runs, reader.size, lambda: reader.purge(1e12)):
        with suppress(RunnerError):
            action()
    close_unfinished(folder, now=1.0)


def test_sparse_and_random_files_never_break_the_reader(folder: Path) -> None:
    chance = random.Random(7)
    write(folder, [b"abc"] * 50)
    path = folder / "ring/run/0000000000000001"
    good = path.read_bytes()
    reader = RingReader(folder)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data))])
        with suppress(RunnerError):
            read_all(reader, "run", chance.choice([1, 100, 10_000]))
    os.truncate(path, 1 << 40)
    with pytest.raises(RunnerError):
        read_all(RingReader(folder), "run", 8 << 20)


def test_run_ids_are_no_paths(folder: Path) -> None:
    write(folder, [b"x"])
    for run in ("../ring", "run/../run", "", ".", "..", "a b", "x" * 100, "run\n", "rün"):
        with pytest.raises(RunnerError):
            RingReader(folder).read(run)


def _records(*parts: tuple[int, int, bytes]) -> bytes:
    return b"".join(ring.RECORD.pack(len(payload), seq, kind, 1.0) + payload for seq, kind, payload in parts)


END = ring.done_payload({"exit_code": 0, "reason": "finished"})


def test_a_short_run_is_read_out_of_its_answer() -> None:
    records = _records((1, ring.STDOUT, b"1\n"), (2, ring.DONE, END))
    chunk = whole(records, 2)
    assert chunk is not None
    assert (chunk.records, chunk.next_seq, chunk.status) == (records, 3, "done")
    assert chunk.done == {"exit_code": 0, "reason": "finished"}


@pytest.mark.parametrize(
    ("records", "last"),
    [
        (b"", 0),
        (b"x", 1),
        (_records((1, ring.STDOUT, b"1\n")), 1),
        (_records((1, ring.STDOUT, b"1\n"), (2, ring.DONE, END)), 3),
        (_records((2, ring.DONE, END)), 2),
        (_records((1, 99, b"")), 1),
        (_records((1, ring.DONE, END)) + b"more", 1),
        (_records((1, ring.DONE, END), (2, ring.DONE, END)), 2),
        (_records((1, ring.STDOUT, b"x" * 70_000), (2, ring.DONE, END)), 2),
    ],
)
def test_an_answer_that_is_no_whole_run_is_not_believed(records: bytes, last: int) -> None:
    assert whole(records, last) is None
