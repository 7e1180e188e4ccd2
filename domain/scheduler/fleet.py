"""The hosts of one resource group and architecture while a plan is made: who fits where, and room that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from domain.ids import AgentId
from domain.placement import Group, Host, PendingSession, Reservation
from domain.scheduler.obstacles import misplaced
from domain.scheduler.reserve import arrange, loads_of
from domain.scheduler.room import fit
from domain.scheduler.seats import Index, Pair, Seat
from domain.scheduler.shapes import Part, Shape
from domain.session import ClusterMode

#: While nobody knows when a waiting session starts, those that end within this time may pass it: it is delayed by no
#: more, and hosts do not idle for ever.
PASSING_SECONDS: Final = 3600.0

#: How often in one plan kernels that are not alike are tried another way: it takes a while.
_TRIES: Final = 32

Numbers = frozenset[int]
#: A host and what a kernel takes of it.
Taken = tuple[Seat, dict[str, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Room that is kept for a session."""

    reservation: Reservation
    passing_seconds: float  #: those that end within this time do not delay it
    real: Index
    capped: Index


class Fleet:
    def __init__(self, group: Group, hosts: Sequence[Host]) -> None:
        self.group = group
        self._bits = max(1, len(hosts).bit_length())
        self._models: list[str | None] = [None]
        self.seats = [
            self._seat(host, number, host.free) for number, host in enumerate(sorted(hosts, key=lambda h: h.id))
        ]
        self._number = {seat.host.id: seat.number for seat in self.seats}
        apart = [not group.spread and seat.idle_devices for seat in self.seats]
        #: where hosts are packed, those with idle devices are looked at last by sessions that need none
        self._common = self._index(seat for seat, idle in zip(self.seats, apart, strict=True) if not idle)
        self._with_devices = self._index(seat for seat, idle in zip(self.seats, apart, strict=True) if idle)
        self.kept: list[Kept] = []
        self._unlike_tries = _TRIES
        self._among: dict[object, Numbers] = {}
        self._kinds: dict[Numbers | None, list[tuple[Seat, int]]] = {}
        self._addressed: Numbers | None = frozenset(s.number for s in self.seats if s.host.address is not None)
        if len(self._addressed) == len(self.seats):
            self._addressed = None

    def _seat(self, host: Host, number: int, free: Mapping[str, int]) -> Seat:
        return Seat(host, number, free, spread=self.group.spread, models=self._models)

    def _index(self, seats: Iterable[Seat] = ()) -> Index:
        return Index(seats, bits=self._bits, spread=self.group.spread)

    def know(self, model: str | None) -> None:
        """Of which devices are asked for: they are counted from now on."""
        if model not in self._models:
            self._models.append(model)
            for index in self.everywhere():
                for seat in index.seats():
                    seat.know(model)
            for kept in self.kept:
                for seat in kept.capped.seats():
                    seat.know(model)

    # -- which hosts -----------------------------------------------------------------------------------------------------
    def numbers(self, hosts: Iterable[AgentId]) -> Numbers:
        return frozenset(self._number[host] for host in hosts if host in self._number)

    def number(self, host: AgentId) -> int | None:
        return self._number.get(host)

    def kinds(self, among: Numbers | None) -> list[tuple[Seat, int]]:
        """One of each kind of host, and how many of the kind there are: of all, or of these."""
        if among not in self._kinds:
            kinds: dict[object, tuple[Seat, int]] = {}
            for number in range(len(self.seats)) if among is None else among:
                seat = self.seats[number]
                first, count = kinds.get(kind := seat.kind(), (seat, 0))
                kinds[kind] = (first, count + 1)
            self._kinds[among] = list(kinds.values())
        return self._kinds[among]

    @staticmethod
    def reachable(kinds: Iterable[tuple[Seat, int]]) -> list[tuple[Seat, int]]:
        """Those that share a cluster with others."""
        return [(seat, count) for seat, count in kinds if seat.host.address is not None]

    def among(self, session: PendingSession) -> tuple[object, Numbers | None]:
        """The hosts that no constraint bars, and what all sessions with the same ones have in common; None: all."""
        constraints = session.constraints
        home = session.joins and session.cluster_mode is ClusterMode.SINGLE_NODE
        if not (constraints.agent or constraints.labels or session.images_on or session.stores or home):
            return (session.hosts if session.joins else None), None
        key = (
            constraints.agent,
            frozenset(constraints.labels.items()),
            session.images_on,
            session.stores,
            session.hosts if session.joins else None,
            home,
        )
        if (found := self._among.get(key)) is None:
            only = session.images_on if constraints.agent is None else {constraints.agent}
            seats = [self.seats[number] for number in self.numbers(only)] if only else self.seats
            good = (seat.number for seat in seats if next(misplaced(session, seat.host), None) is None)
            found = self._among[key] = frozenset(good)
        return key, found

    def most(self, dim: str, among: Numbers | None) -> int:
        """The most that is free of it on one host, of all or of these."""
        if among is None:
            return max(index.most(dim) for index in self.everywhere())
        return max((self.seats[number].dims.get(dim, 0) for number in among), default=0)

    def everywhere(self, shape: Shape | None = None) -> list[Index]:
        """All that is free, the hosts that are preferred first."""
        return [*self._unkept(shape), *(kept.real for kept in self.kept)]

    def open_to(self, shape: Shape, lifetime_seconds: float | None) -> list[Index]:
        """What a session may take without delaying those for which room is kept."""
        return [
            *self._unkept(shape),
            *(kept.real if ends_in_time(kept, lifetime_seconds) else kept.capped for kept in self.kept),
        ]

    def _unkept(self, shape: Shape | None) -> list[Index]:
        if self.group.spread:
            return [self._common]
        if shape is not None and shape.only_devices:
            return [self._with_devices]
        return [self._common, self._with_devices]

    # -- placing ---------------------------------------------------------------------------------------------------------
    def place(
        self, session: PendingSession, shape: Shape, indices: Sequence[Index], among: Numbers | None, avoid: Numbers
    ) -> list[Taken] | None:
        """Takes room for all of its kernels, or none; in the order of its kernels."""
        if shape.single:
            return self._on_one(shape, indices, among, avoid)
        if not shape.clustered:
            return self._on_many(shape, indices, among, avoid) or self._unlike(shape, among, avoid)
        # Hosts that cannot reach each other share no network: either all of them can, or one host holds everything.
        here = self.numbers(session.hosts)
        if not session.joins or self._addressed is None or here <= self._addressed:
            reachable = None if self._addressed is None else self._addressed | here
            wide = both(reachable, among)
            if found := self._on_many(shape, indices, wide, avoid) or self._unlike(shape, wide, avoid):
                return found
        if self._addressed is None and not session.joins and not shape.whole.intricate:
            return None  # what holds on no hosts together holds on no single one
        one = both(here if session.joins else None, among)
        return self._on_one(shape, indices, one, avoid) if len(session.hosts) <= 1 else None

    def _on_one(
        self, shape: Shape, indices: Sequence[Index], among: Numbers | None, avoid: Numbers
    ) -> list[Taken] | None:
        if (seat := self._best(shape.whole, indices, among, avoid)) is None:
            return None
        return [self._take(seat, amounts) for amounts in seat.amounts_for(shape.whole)]

    def _on_many(
        self, shape: Shape, indices: Sequence[Index], among: Numbers | None, avoid: Numbers
    ) -> list[Taken] | None:
        taken: list[Taken] = []
        for part in shape.each:
            if (seat := self._best(part, indices, among, avoid)) is None:
                self.give_back(taken)
                return None
            taken.append(self._take(seat, seat.amounts_for(part)[0]))
        ordered = sorted(zip(shape.places, taken, strict=True), key=lambda one: one[0])
        return [one for _, one in ordered]

    def _unlike(self, shape: Shape, among: Numbers | None, avoid: Numbers) -> list[Taken] | None:
        """Kernels that are not alike may fit another way than one by one: in the way in which room is kept for them."""
        if shape.alike or not self._unlike_tries:
            return None
        self._unlike_tries -= 1
        rooms = [(seat, seat.free) for seat in self.unkept_seats(among, avoid)]
        places = {
            id(part.slots[0]): [at for at, p in zip(shape.places, shape.each, strict=True) if p is part]
            for part in shape.each
        }
        found: dict[int, Taken] = {}
        for number, asked in (arrange(loads_of(shape, together=False), rooms) or {}).items():
            seat = self.seats[number]
            for slots, amounts in zip(asked, fit(seat.site(shape.model), seat.free, asked) or (), strict=False):
                found[places[id(slots)].pop(0)] = self._take(seat, amounts)
        if len(found) < len(shape.each):
            self.give_back(found.values())
            return None
        return [found[at] for at in range(len(shape.each))]

    def _best(self, part: Part, indices: Sequence[Index], among: Numbers | None, avoid: Numbers) -> Seat | None:
        if part.sharing is not None and not self.group.spread:
            for index in indices:
                if (seat := index.best(part, part.sharing, among, avoid)) is not None:
                    return seat
        for index in indices:
            if (seat := index.best(part, part.demand, among, avoid)) is not None:
                return seat
        return None

    def _take(self, seat: Seat, amounts: dict[str, int]) -> Taken:
        seat.take(amounts)
        self._settle(seat)
        return seat, amounts

    def give_back(self, taken: Iterable[Taken]) -> None:
        for seat, amounts in taken:
            seat.take({name: -amount for name, amount in amounts.items()})
            self._settle(seat)

    def _settle(self, seat: Seat) -> None:
        if seat.index is self._with_devices:
            if not seat.idle_devices:
                self._with_devices.remove(seat)
                self._common.add(seat)
        elif seat.left and seat.index is self._common and seat.idle_devices and not self.group.spread:
            self._common.remove(seat)
            self._with_devices.add(seat)

    # -- keeping ---------------------------------------------------------------------------------------------------------
    def unkept_seats(self, among: Numbers | None, avoid: Numbers) -> list[Seat]:
        return [
            seat
            for seat in self.seats
            if seat.pair is None and (among is None or seat.number in among) and seat.number not in avoid
        ]

    def joinable(self, session: PendingSession, seats: Sequence[Seat]) -> Sequence[Seat]:
        """Those that share a cluster with its other hosts: they and all with an address, if all of them have one."""
        if self._addressed is None or not session.joins:
            return seats
        here = self.numbers(session.hosts)
        among = self._addressed | here if here <= self._addressed else here
        return [seat for seat in seats if seat.number in among]

    def keep(self, reservation: Reservation, passing_seconds: float, spares: Mapping[int, dict[str, int]]) -> None:
        """From now on only those take of these hosts that do not delay the session: by number, what it leaves then."""
        pairs = []
        for number, spare in spares.items():
            real = self.seats[number]
            if real.index is not None:
                real.index.remove(real)
            free = real.free
            capped = self._seat(real.host, number, {name: min(free[name], spare.get(name, 0)) for name in free})
            pairs.append(Pair(real, capped, {name: spare.get(name, 0) for name in free}))
        real_index = self._index(pair.real for pair in pairs)
        self.kept.append(Kept(reservation, passing_seconds, real_index, self._index(pair.capped for pair in pairs)))


def ends_in_time(kept: Kept, lifetime_seconds: float | None) -> bool:
    return lifetime_seconds is not None and lifetime_seconds <= kept.passing_seconds


def both(one: Numbers | None, other: Numbers | None) -> Numbers | None:
    """Hosts of both; None is all hosts."""
    return other if one is None else one if other is None else one & other
