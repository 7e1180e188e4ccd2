"""When and where a session that waits for room can start at the latest, if all others end when they have to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from domain.scheduler.room import Amounts, copies, fit, leave, missing
from domain.scheduler.seats import Seat
from domain.scheduler.shapes import Part, Shape, added

#: Of each host, by number, what comes free on it and when; what nobody knows the end of is not in it.
Endings = Mapping[int, Sequence[tuple[datetime, Amounts]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`spares`: by number of the host, what the session leaves of it then to those that do not end before."""

    at: datetime | None
    spares: Mapping[int, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Load:
    """Kernels that are alike, and where all of one of these is on one host."""

    slots: tuple[Amounts, ...]  #: one kernel, or all that go together
    number: int
    model: str | None

    def copies(self, seat: Seat, free: Amounts) -> int:
        if len(self.slots) == 1:
            return copies(seat.site(self.model), free, self.slots[0], most=self.number)
        return int(fit(seat.site(self.model), free, self.slots) is not None)


def choose(shape: Shape, seats: Sequence[Seat], endings: Endings, now: datetime, *, together: bool) -> Choice | None:
    """Where these hosts hold it first, on one of them if `together`; None: not even all of them when they are empty."""
    loads = loads_of(shape, together=together)
    if (at := _earliest(loads, seats, endings, now)) is not None:
        rooms = [(seat, room_at(seat, endings, at)) for seat in seats]
        return Choice(at=at, spares=_spares(loads, rooms, rooms))
    if arrange(loads, [(seat, dict(seat.host.capacity)) for seat in seats]) is None:
        return None
    known = [(seat, room_at(seat, endings, None)) for seat in seats]
    return Choice(at=None, spares=_spares(loads, known, _nearest(loads, known)))


def holds(seat: Seat, free: Amounts, part: Part) -> bool:
    return fit(seat.site(part.model), free, part.slots) is not None


def hold_together(shape: Shape, kinds: Sequence[tuple[Seat, int]]) -> bool:
    """Whether so many hosts of these kinds hold all kernels when they are empty."""
    loads = loads_of(shape, together=False)
    if len(loads) == 1:
        number = sum(loads[0].copies(seat, seat.host.capacity) * count for seat, count in kinds)
        return number >= loads[0].number
    enough = len(shape.each)  # more hosts than kernels are of no use
    seats = [(seat, dict(seat.host.capacity)) for seat, count in kinds for _ in range(min(count, enough))]
    return arrange(loads, seats) is not None


def room_at(seat: Seat, endings: Endings, at: datetime | None) -> dict[str, int]:
    """What is free then, if nobody else comes; None: when all have ended of whom an end is known."""
    free, capacity = seat.free, seat.host.capacity
    for ends_at, amounts in endings.get(seat.number, ()):
        if at is None or ends_at <= at:
            for name, amount in amounts.items():
                if name in free:
                    free[name] = min(capacity.get(name, 0), free[name] + amount)
    return free


def loads_of(shape: Shape, *, together: bool) -> list[Load]:
    if together or len(shape.each) == 1:
        return [Load(shape.whole.slots, 1, shape.model)]
    return [Load(part.slots, number, shape.model) for part, number in Counter(shape.each).items()]


def arrange(loads: Sequence[Load], rooms: Sequence[tuple[Seat, dict[str, int]]]) -> dict[int, list[Amounts]] | None:
    """By the numbers of the hosts, in their order, what each kernel there asks for; None when it does not all fit."""
    placed: dict[int, list[Amounts]] = {}
    rooms = list(rooms)
    for load in loads:
        left = load.number
        for at, (seat, free) in enumerate(rooms):
            if left == 0:
                break
            if here := min(left, load.copies(seat, free)):
                asked = list(load.slots) * here
                placed.setdefault(seat.number, []).extend(asked)
                left -= here
                if len(loads) > 1:
                    rooms[at] = seat, leave(seat.site(load.model), free, asked)
        if left:
            return None
    return placed


def _earliest(loads: Sequence[Load], seats: Sequence[Seat], endings: Endings, now: datetime) -> datetime | None:
    if len(loads) == 1:
        return _earliest_alike(loads[0], seats, endings, now)
    times = [now, *sorted({ends_at for seat in seats for ends_at, _ in endings.get(seat.number, ()) if ends_at > now})]
    low, high = 0, len(times)
    while low < high:  # the more has ended, the more room there is
        middle = (low + high) // 2
        rooms = [(seat, room_at(seat, endings, times[middle])) for seat in seats]
        if arrange(loads, rooms) is None:
            low = middle + 1
        else:
            high = middle
    return times[low] if low < len(times) else None


def _earliest_alike(load: Load, seats: Sequence[Seat], endings: Endings, now: datetime) -> datetime | None:
    """Alike kernels do not get into each other's way: hosts are counted one by one."""
    if load.number == 1:
        best: datetime | None = None
        for seat in seats:
            for at, _ in _steps(load, seat, endings.get(seat.number, ()), now, until=best):
                best = at
        return best
    more = sorted(step for seat in seats for step in _steps(load, seat, endings.get(seat.number, ()), now))
    total = 0
    for at, number in more:
        total += number
        if total >= load.number:
            return at
    return None


def _steps(
    load: Load,
    seat: Seat,
    endings: Sequence[tuple[datetime, Amounts]],
    now: datetime,
    *,
    until: datetime | None = None,
) -> Iterator[tuple[datetime, int]]:
    """When so many more of them fit on a host; only before `until`."""
    free, capacity = seat.free, seat.host.capacity
    if (fitting := load.copies(seat, free)) and (until is None or now < until):
        yield now, fitting
    for ends_at, amounts in sorted(endings, key=lambda ending: ending[0]):
        if fitting >= load.number or (until is not None and ends_at >= until):
            return
        for name, amount in amounts.items():
            if name in free:
                free[name] = min(capacity.get(name, 0), free[name] + amount)
        if (then := load.copies(seat, free)) > fitting:
            yield max(now, ends_at), then - fitting
            fitting = then


def _nearest(loads: Sequence[Load], known: Sequence[tuple[Seat, dict[str, int]]]) -> list[tuple[Seat, dict[str, int]]]:
    """Empty hosts, those first on which the least has to come free: they are the same the next time, and nearer."""

    def lacking(place: tuple[Seat, dict[str, int]]) -> tuple[float, int]:
        seat, free = place
        load = loads[0]
        number = load.copies(seat, seat.host.capacity)
        asked = list(load.slots) * number
        whole = added(asked)
        gap = missing(seat.site(load.model), free, asked)
        return sum(amount / whole[name] for name, amount in gap.items()), seat.number

    return [(seat, dict(seat.host.capacity)) for seat, _ in sorted(known, key=lacking)]


def _spares(
    loads: Sequence[Load],
    rooms: Sequence[tuple[Seat, dict[str, int]]],
    targets: Sequence[tuple[Seat, dict[str, int]]],
) -> dict[int, dict[str, int]]:
    free = {seat.number: (seat, left) for seat, left in rooms}
    spares = {}
    for number, asked in (arrange(loads, targets) or {}).items():
        seat, left = free[number]
        spares[number] = leave(seat.site(loads[0].model), left, asked)
    return spares
