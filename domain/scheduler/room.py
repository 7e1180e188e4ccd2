"""Whether kernels fit into what is free on one host, what of it they take, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from domain.placement import DEVICE, GPU, GPU_SHARE, Device, Host
from domain.scheduler.devices import choose_share, choose_whole, device_of, idle, is_of_model, names_of

Amounts = Mapping[str, int]


def fit(host: Host, free: Amounts, asked: Sequence[Amounts], model: str | None = None) -> list[dict[str, int]] | None:
    """What each of these kernels takes of the host, by the names of its resources; None when they do not all fit."""
    taken, missing = _arrange(host, free, asked, model)
    return None if missing else taken


def missing(host: Host, free: Amounts, asked: Sequence[Amounts], model: str | None = None) -> dict[str, int]:
    """How much more would have to be free for all of these kernels, by what is asked for; empty when they fit."""
    return _arrange(host, free, asked, model)[1]


def leave(host: Host, free: Amounts, asked: Sequence[Amounts], model: str | None = None) -> dict[str, int]:
    """What is left when they have taken as much as there is of what they need."""
    left = {name: max(0, amount) for name, amount in free.items()}
    taken, _ = _arrange(host, free, asked, model)
    for one in taken:
        for name, amount in one.items():
            left[name] = max(0, left.get(name, 0) - amount)
    return left


def copies(host: Host, free: Amounts, slots: Amounts, model: str | None = None, *, most: int) -> int:
    """How many kernels that ask for this fit there together, `most` at the most."""
    number = most
    for name, amount in slots.items():
        if amount > 0 and name not in (GPU, GPU_SHARE):
            number = min(number, max(0, free.get(name, 0)) // amount)
    whole, share = slots.get(GPU, 0), slots.get(GPU_SHARE, 0)
    if number <= 0 or not (whole or share):
        return max(0, number)
    able = devices_of_model(host, model)
    if whole and share:
        fitting = (k for k in range(number, 0, -1) if not missing(host, free, [slots] * k, model))
        return next(fitting, 0)
    if whole:
        return min(number, sum(idle(free, host.capacity, device.name) for device in able) // whole)
    return min(number, sum(max(0, free.get(device.name, 0)) // share for device in able if not device.whole_only))


def devices_of_model(host: Host, model: str | None) -> list[Device]:
    """Those in use too."""
    known = (device_of(host.devices, name) for name in names_of(host.capacity))
    return [device for device in known if is_of_model(device.model, model)]


def _arrange(
    host: Host, free: Amounts, asked: Sequence[Amounts], model: str | None
) -> tuple[list[dict[str, int]], dict[str, int]]:
    left = {name: max(0, amount) for name, amount in free.items()}
    taken: list[dict[str, int]] = [{} for _ in asked]
    lacking: dict[str, int] = {}
    for number, slots in enumerate(asked):
        for name, amount in slots.items():
            if amount > 0 and name not in (GPU, GPU_SHARE):
                _subtract(left, lacking, name, amount)
                taken[number][name] = amount
    able = devices_of_model(host, model) if any(GPU in slots or GPU_SHARE in slots for slots in asked) else []
    _take_whole(host, left, asked, able, taken, lacking)
    _take_shares(host, left, asked, able, taken, lacking)
    return taken, lacking


def _subtract(left: dict[str, int], lacking: dict[str, int], name: str, amount: int) -> None:
    rest = left.get(name, 0) - amount
    left[name] = max(0, rest)
    if rest < 0:
        lacking[name] = lacking.get(name, 0) - rest


def _take_whole(
    host: Host,
    left: dict[str, int],
    asked: Sequence[Amounts],
    able: Sequence[Device],
    taken: Sequence[dict[str, int]],
    lacking: dict[str, int],
) -> None:
    for number, slots in enumerate(asked):
        if (count := slots.get(GPU, 0)) > 0:
            unused = [device for device in able if idle(left, host.capacity, device.name)]
            for device in choose_whole(count, unused, left):
                taken[number][device.name] = left[device.name]
                left[device.name] = 0
            if count > len(unused):
                lacking[GPU] = lacking.get(GPU, 0) + count - len(unused)


def _take_shares(
    host: Host,
    left: dict[str, int],
    asked: Sequence[Amounts],
    able: Sequence[Device],
    taken: Sequence[dict[str, int]],
    lacking: dict[str, int],
) -> None:
    """The largest first: what is left suits the smaller ones."""
    shares = [(-slots.get(GPU_SHARE, 0), number) for number, slots in enumerate(asked) if slots.get(GPU_SHARE, 0) > 0]
    for amount, number in ((-negative, number) for negative, number in sorted(shares)):
        device = choose_share(amount, able, left, host.capacity)
        if device is None:
            most = max((left.get(other.name, 0) for other in able if not other.whole_only), default=0)
            lacking[GPU_SHARE] = max(lacking.get(GPU_SHARE, 0), amount - most)
            continue
        taken[number][device.name] = amount
        left[device.name] -= amount


def devices_taken(amounts: Amounts) -> dict[str, int]:
    return {name: amount for name, amount in amounts.items() if name.startswith(DEVICE)}
