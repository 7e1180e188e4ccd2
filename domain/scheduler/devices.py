"""Which of a host's devices a kernel gets: whole ones close to each other, shares where shares are already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import combinations
from math import comb
from typing import Final

from domain.placement import DEVICE, Device, Host

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


class Site:
    """A host, and its devices of the model that is asked for, in use or not; the smallest first."""

    def __init__(self, host: Host, model: str | None = None) -> None:
        self.host = host
        known = {device.name: device for device in host.devices}
        able = (known.get(name) or Device(name=name) for name in host.capacity if name.startswith(DEVICE))
        by_size = sorted(able, key=lambda device: (host.capacity[device.name], device.name))
        self.able = [device for device in by_size if is_of_model(device.model, model)]

    @cached_property
    def bonds(self) -> list[list[int]]:
        """How close each device is to each other."""
        bonds = [[0] * len(self.able) for _ in self.able]
        if any(device.links or device.numa is not None for device in self.able):
            for (at, one), (there, other) in combinations(enumerate(self.able), 2):
                bonds[at][there] = bonds[there][at] = _close(one, other)
        return bonds


def _close(one: Device, other: Device) -> int:
    link = max(one.links.get(other.name, 0), other.links.get(one.name, 0))
    return link * _LINK + (_SAME_NODE if one.numa is not None and one.numa == other.numa else 0)


def choose_whole(where: Site, count: int, free: Amounts) -> list[Device]:
    """`count` idle devices, as close to each other as they come, and such that those left are close too; all there are
    when they are fewer. One alone is the one that the others miss least. Of equals: the smallest, then by name.
    """
    able, capacity, bonds = where.able, where.host.capacity, where.bonds
    unused = [at for at, device in enumerate(able) if 0 < capacity[device.name] == free.get(device.name, 0)]
    if count >= len(unused):
        return [able[at] for at in unused]
    lonely = {at: sum(bonds[at][other] for other in unused) for at in unused}
    if not any(lonely.values()):
        return [able[at] for at in unused[:count]]
    if count == 1:
        return [able[min(unused, key=lonely.__getitem__)]]
    if comb(len(unused), count) > _COMPARED:
        return [able[at] for at in _gather(count, unused, bonds)]

    def quality(chosen: tuple[int, ...]) -> tuple[int, int]:
        bond = sum(bonds[one][other] for one, other in combinations(chosen, 2))
        return -bond, sum(lonely[at] for at in chosen) - 2 * bond

    return [able[at] for at in min(combinations(unused, count), key=quality)]  # of equals the first


def least_shareable(where: Site, count: int, free: Amounts) -> list[Device]:
    """`count` idle devices such that there is room for shares on the others."""
    unused = (device for device in where.able if idle(free, where.host.capacity, device.name))
    return sorted(unused, key=lambda device: not device.whole_only)[:count]


def _gather(count: int, unused: Sequence[int], bonds: Sequence[Sequence[int]]) -> list[int]:
    """Too many to compare all sets: from each device on, always the one that is closest to those chosen."""
    best, strongest = list(unused[:count]), -1
    for first in unused:
        chosen = [first]
        while len(chosen) < count:
            left = (at for at in unused if at not in chosen)
            chosen.append(max(left, key=lambda at: sum(bonds[at][other] for other in chosen)))
        bond = sum(bonds[one][other] for one, other in combinations(chosen, 2))
        if bond > strongest:
            best, strongest = chosen, bond
    return best


def choose_share(where: Site, amount: int, free: Amounts) -> Device | None:
    """The device on which a share fits best: one that is shared already, else the smallest that is idle."""
    fitting = [device for device in where.able if not device.whole_only and free.get(device.name, 0) >= amount]
    capacity = where.host.capacity
    return min(
        fitting,
        key=lambda device: (idle(free, capacity, device.name), free[device.name], device.name),
        default=None,
    )
