"""Who uses more of a shared device than was given to it. Pure, but for its memory of since when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from agent.gpu_people import Seen
from agent.gpu_terms import Holding

#: The driver counts in pieces, and a program may ask for a little more than it keeps.
_MARGIN: Final = 1.05
_MARGIN_MIB: Final = 64

Judgement = tuple[Holding, str, dict[str, Any], bool]  #: who, which device, what to keep of it, whether it is within


def used_mib(kernel_id: str, seen: Iterable[Seen]) -> int | None:
    """By processes of this kernel. None: it has some, and the driver does not say how much they use."""
    own = [one.process.mem_mib for one in seen if one.owner.kernel_id == kernel_id]
    known = [mib for mib in own if mib is not None]
    return None if own and not known else sum(known)


class Shares:
    """A kernel is told of once when it has used too much for `seconds`, and once when it is within its share again."""

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._over: dict[tuple[str, int, str], float] = {}
        self._told: set[tuple[str, int, str]] = set()

    def judge(self, holdings: Iterable[Holding], seen: Mapping[str, Sequence[Seen]]) -> Iterator[Judgement]:
        there = set()
        for holding in holdings:
            if not holding.share:
                continue
            for uuid, share in holding.devices.items():
                key = holding.kernel_id, holding.attempt, uuid
                there.add(key)
                used = used_mib(holding.kernel_id, seen.get(uuid, ()))
                if used is None:
                    continue
                if (verdict := self._verdict(key, used, share)) is not None:
                    yield holding, uuid, *verdict
        for gone in self._over.keys() - there:
            del self._over[gone]
        self._told &= there

    def _verdict(self, key: tuple[str, int, str], used: int, share: int) -> tuple[dict[str, Any], bool] | None:
        figures = {"used_mib": used, "share_mib": share}
        if used <= share * _MARGIN + _MARGIN_MIB:
            self._over.pop(key, None)
            if key not in self._told:
                return None
            self._told.discard(key)
            return {"message": f"It is within its share of {share} MiB again.", **figures}, True
        lasted = self._monotonic() - self._over.setdefault(key, self._monotonic())
        if lasted < self._seconds or key in self._told:
            return None
        self._told.add(key)
        over = f"The session uses {used} MiB of a GPU of which it has {share} MiB, for {lasted:.0f} s now"
        said = f"{over}: use less, or ask for a larger share."
        return {"message": said, "seconds": round(lasted, 1), **figures}, False
