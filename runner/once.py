"""What was asked with a key is done once: whoever asks again, because the answer got lost, gets the first one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

#: Answers are repeated within seconds or minutes, by a client whose manager or agent has died.
_REMEMBERED = 1024


class Asker(Protocol):
    def send(self, header: dict[str, Any]) -> None: ...


class Once:
    """Used in one thread. A refusal has done nothing, so it is not remembered."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._waiting: dict[str, list[tuple[Asker, int]]] = {}

    def begin(self, key: str, asker: Asker, request: int) -> bool:
        """False: it was done, or is under way, and the asker is answered with its outcome."""
        if (answer := self._answers.get(key)) is not None:
            asker.send({**answer, "id": request})
            return False
        if (waiting := self._waiting.get(key)) is not None:
            waiting.append((asker, request))
            return False
        self._waiting[key] = []
        return True

    def end(self, key: str, answer: dict[str, Any]) -> None:
        if answer.get("ok"):
            self._answers[key] = answer
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        for asker, request in self._waiting.pop(key, ()):
            asker.send({**answer, "id": request})
