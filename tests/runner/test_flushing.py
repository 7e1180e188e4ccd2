"""Output that is flushed by two threads: by who prints, and by who sees to what was left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runner.worker import Flusher, Output


class Slow:
    """In the place of the descriptor: the first write waits until it may go on."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def write(self, data: Any) -> int:
        if not self.begun.is_set():
            self.begun.set()
            assert self.may_go_on.wait(20)
        self.written.append(bytes(data))
        return len(data)


@pytest.fixture
def output() -> Iterator[tuple[Output, Slow]]:
    flusher = Flusher()
    flusher.awake = True  # the tests are the flusher
    reading, writing = os.pipe()
    made, slow = Output(writing, "<stdout>", flusher), Slow()
    made.buffer.write = slow.write  # type: ignore[method-assign]
    yield made, slow
    slow.may_go_on.set()
    made.flush()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("more", ["\n", "x" * 100_000])
def test_what_was_printed_first_is_written_first(output: tuple[Output, Slow], more: str) -> None:
    out, slow = output
    out.write("1")
    flusher = threading.Thread(target=out.flush)
    flusher.start()
    assert slow.begun.wait(20)

    def prints() -> None:
        out.write(more)
        out.flush()

    printer = threading.Thread(target=prints)
    printer.start()
    printer.join(0.2)  # time enough to overtake
    assert slow.written == []
    slow.may_go_on.set()
    flusher.join(20)
    printer.join(20)
    assert b"".join(slow.written) == b"1" + more.encode()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on: that there are threads is the point
def test_a_forked_child_prints_although_another_thread_was_at_it(output: tuple[Output, Slow]) -> None:
    out, slow = output
    out.write("1")
    flusher = threading.Thread(target=out.flush)
    flusher.start()
    assert slow.begun.wait(20)
    child = os.fork()
    if not child:
        out.write("child")
        out.flush()
        os._exit(7 if slow.written == [b"child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    slow.may_go_on.set()
    flusher.join(20)
