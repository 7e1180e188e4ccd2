"""Which of a host's devices a kernel gets: whole ones close to each other, shares where shares are already."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from typing import Final

from domain.placement import Device

#: More combinations of devices than this are not compared: from there on they are gathered one by one.
_COMPARED: Final = 2000
_SAME_NODE: Final = 1  #: counts less than any link: links come first, then NUMA nodes
_LINK: Final = 1000

Amounts = Mapping[str, int]


@cache
def is_of_model(model: str, asked: str | None) -> bool:
    """Whether a device is what is asked for: every word of it is one of the model's, whatever the case.

    An instance of MIG is only what a name says that mentions MIG or its profile: `h100` is a whole one.
    """
    if asked is None:
        return True
    words, wanted = _words(model), set(_words(asked))
    if "mig" in words and not wanted & set(words[words.index("mig") :]):
        return False
    return bool(wanted) and wanted <= set(words)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", text.lower())


def idle(free: Amounts, capacity: Amounts, name: str) -> bool:
    """Nobody has any of it."""
    return 0 < capacity.get(name, 0) == free.get(name, 0)


def choose_whole(count: int, able: Sequence[Device], sizes: Amounts) -> list[Device]:
    """`count` of these idle devices, as close to each other as they come, and such that those left are close too.

    One alone is the one that the others miss least. Of equals: the smallest, then by name.
    """
    able = sorted(able, key=lambda device: (sizes[device.name], device.name))
    if count >= len(able) or not any(device.links or device.numa is not None for device in able):
        return able[:count]
    if _many(len(able), count):
        return _gather(count, able)
    sets = combinations(able, count)
    # min() takes the first of equals, and the sets come in the order of `able`
    return list(min(sets, key=partial(_quality, able)))


def _quality(able: Sequence[Device], chosen: tuple[Device, ...]) -> tuple[int, int]:
    """The less, the better."""
    return -_bond(chosen), _torn(chosen, able)


def _many(number: int, count: int) -> bool:
    sets = 1
    for step in range(min(count, number - count)):
        sets = sets * (number - step) // (step + 1)
    return sets > _COMPARED


def _gather(count: int, able: Sequence[Device]) -> list[Device]:
    best: list[Device] = []
    for first in able:
        chosen = [first]
        while len(chosen) < count:
            left = [device for device in able if device not in chosen]
            chosen.append(max(left, key=lambda device: sum(_close(device, other) for other in chosen)))
        if not best or _bond(chosen) > _bond(best):
            best = chosen
    return best


def _bond(devices: Collection[Device]) -> int:
    return sum(_close(one, other) for one, other in combinations(devices, 2))


def _torn(chosen: Collection[Device], able: Sequence[Device]) -> int:
    return sum(_close(one, other) for one in chosen for other in able if other not in chosen)


def _close(one: Device, other: Device) -> int:
    link = max(one.links.get(other.name, 0), other.links.get(one.name, 0))
    return link * _LINK + (_SAME_NODE if one.numa is not None and one.numa == other.numa else 0)


def choose_share(amount: int, able: Sequence[Device], free: Amounts, capacity: Amounts) -> Device | None:
    """The device on which a share fits best: one that is shared already, else the smallest that is idle."""
    fitting = [device for device in able if not device.whole_only and free.get(device.name, 0) >= amount]
    return min(
        fitting,
        key=lambda device: (idle(free, capacity, device.name), free[device.name], device.name),
        default=None,
    )
