"""What is asked of a runner twice with one key is done once."""

from __future__ import annotations

from typing import Any

from runner.once import Once


class Asker:
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any]) -> None:
        self.heard.append(header)


def test_who_asks_again_gets_the_first_answer() -> None:
    once, first, again = Once(), Asker(), Asker()
    assert once.begin("key", first, 1)
    once.end("key", {"id": 1, "ok": True, "result": {"a": 1}})
    assert not once.begin("key", again, 9)
    assert again.heard == [{"id": 9, "ok": True, "result": {"a": 1}}]
    assert once.begin("another", again, 10)


def test_who_asks_while_it_is_done_waits_for_it() -> None:
    once, again = Once(), Asker()
    assert once.begin("key", Asker(), 1)
    assert not once.begin("key", again, 2)
    assert again.heard == []
    once.end("key", {"id": 1, "ok": False, "error": {"code": "file_exists"}})
    assert again.heard == [{"id": 2, "ok": False, "error": {"code": "file_exists"}}]


def test_what_was_refused_may_be_tried_again() -> None:
    once = Once()
    assert once.begin("key", Asker(), 1)
    once.end("key", {"id": 1, "ok": False})
    assert once.begin("key", Asker(), 2)
