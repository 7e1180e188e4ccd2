"""Whether kernels fit into what is free on one host, what of it they take, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from domain.placement import DEVICE, GPU, GPU_SHARE
from domain.scheduler.devices import Site, choose_share, choose_whole, idle, least_shareable

Amounts = Mapping[str, int]


def fit(where: Site, free: Amounts, asked: Sequence[Amounts]) -> list[dict[str, int]] | None:
    """What each of these kernels takes of the host, by the names of its resources; None when they do not all fit."""
    taken, lacking = _arrange(where, free, asked)
    return None if lacking else taken


def missing(where: Site, free: Amounts, asked: Sequence[Amounts]) -> dict[str, int]:
    """How much more would have to be free for all of these kernels, by what is asked for; empty when they fit."""
    return _arrange(where, free, asked)[1]


def leave(where: Site, free: Amounts, asked: Sequence[Amounts]) -> dict[str, int]:
    """What is left when they have taken as much as there is of what they need."""
    left = {name: max(0, amount) for name, amount in free.items()}
    for one in _arrange(where, free, asked)[0]:
        for name, amount in one.items():
            left[name] = max(0, left.get(name, 0) - amount)
    return left


def copies(where: Site, free: Amounts, slots: Amounts, *, most: int) -> int:
    """How many kernels that ask for this fit there together, `most` at the most."""
    number = most
    for name, amount in slots.items():
        if amount > 0 and name not in (GPU, GPU_SHARE):
            number = min(number, max(0, free.get(name, 0)) // amount)
    whole, share = slots.get(GPU, 0), slots.get(GPU_SHARE, 0)
    if number <= 0 or not (whole or share):
        return max(0, number)
    if whole and share:
        return next((k for k in range(number, 0, -1) if not missing(where, free, [slots] * k)), 0)
    if whole:
        return min(number, sum(idle(free, where.host.capacity, device.name) for device in where.able) // whole)
    return min(number, sum(free.get(device.name, 0) // share for device in where.able if not device.whole_only))


def _arrange(where: Site, free: Amounts, asked: Sequence[Amounts]) -> tuple[list[dict[str, int]], dict[str, int]]:
    left = {name: max(0, amount) for name, amount in free.items()}
    taken: list[dict[str, int]] = [{} for _ in asked]
    lacking: dict[str, int] = {}
    for number, slots in enumerate(asked):
        for name, amount in slots.items():
            if amount > 0 and name not in (GPU, GPU_SHARE):
                _subtract(left, lacking, name, amount)
                taken[number][name] = amount
    if any(GPU in slots or GPU_SHARE in slots for slots in asked):
        _take_whole(where, left, asked, taken, lacking)
        _take_shares(where, left, asked, taken, lacking)
    return taken, lacking


def _subtract(left: dict[str, int], lacking: dict[str, int], name: str, amount: int) -> None:
    rest = left.get(name, 0) - amount
    left[name] = max(0, rest)
    if rest < 0:
        lacking[name] = lacking.get(name, 0) - rest


def _take_whole(
    where: Site,
    left: dict[str, int],
    asked: Sequence[Amounts],
    taken: Sequence[dict[str, int]],
    lacking: dict[str, int],
) -> None:
    shares = any(slots.get(GPU_SHARE, 0) > 0 for slots in asked)
    for number, slots in enumerate(asked):
        if (count := slots.get(GPU, 0)) > 0:
            chosen = least_shareable(where, count, left) if shares else choose_whole(where, count, left)
            for device in chosen:
                taken[number][device.name] = left[device.name]
                left[device.name] = 0
            if count > len(chosen):
                lacking[GPU] = lacking.get(GPU, 0) + count - len(chosen)


def _take_shares(
    where: Site,
    left: dict[str, int],
    asked: Sequence[Amounts],
    taken: Sequence[dict[str, int]],
    lacking: dict[str, int],
) -> None:
    """The largest first: what is left suits the smaller ones."""
    shares = [(-slots.get(GPU_SHARE, 0), number) for number, slots in enumerate(asked) if slots.get(GPU_SHARE, 0) > 0]
    for amount, number in ((-negative, number) for negative, number in sorted(shares)):
        device = choose_share(where, amount, left)
        if device is None:
            most = max((left.get(other.name, 0) for other in where.able if not other.whole_only), default=0)
            lacking[GPU_SHARE] = max(lacking.get(GPU_SHARE, 0), amount - most)
            continue
        taken[number][device.name] = amount
        left[device.name] -= amount


def devices_taken(amounts: Amounts) -> dict[str, int]:
    return {name: amount for name, amount in amounts.items() if name.startswith(DEVICE)}
