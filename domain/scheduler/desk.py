"""Decides about the sessions of one fleet in their order: hosts, or why not; and for whom room is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from domain.placement import Blocked, Holding, PendingSession, Reservation
from domain.scheduler import reserve, why
from domain.scheduler.fleet import PASSING_SECONDS, Fleet, Numbers, Taken, ends_in_time
from domain.scheduler.hopeless import Hopeless
from domain.scheduler.neighbours import Neighbours
from domain.scheduler.seats import Seat
from domain.scheduler.shapes import Part, Shape

#: For so many sessions of a fleet that can use different hosts room is kept at once; it is one most often.
_RESERVATIONS: Final = 4
#: A lifetime beyond this is none.
_LONG_SECONDS: Final = 1e9
_NOWHERE: Numbers = frozenset()

Amounts = Mapping[str, int]
#: What sessions have in common that fit on the same hosts, or on none.
_Ask = tuple[Shape, object]


class Desk:
    def __init__(self, fleet: Fleet, holdings: Iterable[Holding], neighbours: Neighbours, now: datetime) -> None:
        self.fleet = fleet
        self.reservations: list[Reservation] = []
        self._holdings = holdings
        self._neighbours = neighbours
        self._now = now
        self._hopeless = Hopeless()
        self._never: dict[_Ask, Blocked | None] = {}
        self._bars: dict[object, Blocked] = {}
        self._said: dict[tuple[Shape, object, int], tuple[int, Blocked]] = {}
        self._changes = 0  #: counted up with every placement: what was said before may be less true now
        self._pools: set[object] = set()
        self._attempts = 0  #: to keep room: it takes a while
        #: placed in this plan and of known length: the host's number, seconds, amounts
        self._lasting: list[tuple[int, float, Amounts]] = []
        self._endings: dict[int, list[tuple[datetime, Amounts]]] | None = None

    def never(self, session: PendingSession, shape: Shape) -> Blocked | None:
        """Why it would get no host of these if all were empty."""
        key, among = self.fleet.among(session)
        if (shape, key) not in self._never:
            self._never[shape, key] = self._why_never(session, shape, among)
        return self._never[shape, key]

    def place(self, session: PendingSession, shape: Shape) -> list[Taken] | Blocked:
        key, among = self.fleet.among(session)
        if among is not None and not among:
            return self._barred(session)
        if self.reservations and not self.fleet.group.backfill:
            return self.never(session, shape) or why.behind(self.reservations[0])
        avoid = self._avoid(session)
        outlasts = self._outlasts(session.lifetime_seconds)
        ask = (shape, key, outlasts)
        if avoid or not self._hopeless.holds(shape, (key, outlasts)):
            indices = self.fleet.open_to(shape, session.lifetime_seconds)
            if (taken := self.fleet.place(session, shape, indices, among, avoid)) is not None:
                self._changes += 1
                self._remember(session, taken)
                return taken
            if not avoid:
                self._hopeless.add(shape, (key, outlasts))
        return self._blocked(session, shape, ask, among, avoid)

    def _avoid(self, session: PendingSession) -> Numbers:
        if not self._neighbours.matter:
            return _NOWHERE
        return self.fleet.numbers(self._neighbours.of(session))

    def _outlasts(self, lifetime_seconds: float | None) -> int:
        """A bit for each reservation that it would delay by taking what is kept."""
        bits = 0
        for bit, kept in enumerate(self.fleet.kept):
            bits |= (not ends_in_time(kept, lifetime_seconds)) << bit
        return bits

    def _remember(self, session: PendingSession, taken: list[Taken]) -> None:
        if self._neighbours.matter:
            self._neighbours.add(session, {seat.host.id for seat, _ in taken})
        seconds = session.lifetime_seconds
        if seconds is not None and seconds < _LONG_SECONDS:
            for seat, amounts in taken:
                self._lasting.append((seat.number, seconds, amounts))

    # -- why not ---------------------------------------------------------------------------------------------------------
    def _blocked(
        self,
        session: PendingSession,
        shape: Shape,
        ask: tuple[Shape, object, int],
        among: Numbers | None,
        avoid: Numbers,
    ) -> Blocked:
        if not avoid and (said := self._said.get(ask)) is not None and said[0] == self._changes:
            return said[1]
        if (blocked := self.never(session, shape)) is None:
            blocked = self._for_now(session, ask, among, avoid)
        if not avoid:
            self._said[ask] = self._changes, blocked
        return blocked

    def _for_now(
        self, session: PendingSession, ask: tuple[Shape, object, int], among: Numbers | None, avoid: Numbers
    ) -> Blocked:
        shape, key, outlasts = ask
        if (avoid or outlasts) and not self._hopeless.holds(shape, (key, 0)):
            if (taken := self._try(session, shape, among, avoid)) is not None:
                return why.reserved(self._owner(taken, session.lifetime_seconds))
            if not avoid:
                self._hopeless.add(shape, (key, 0))
        if avoid and self._try(session, shape, among, _NOWHERE) is not None:
            return why.apart(session)
        blocked = why.insufficient(session, shape, self.fleet, among)
        pool = (key, shape.devices, shape.model)
        if pool not in self._pools and len(self.reservations) < _RESERVATIONS:
            self._keep(session, shape, pool, among, avoid)
        return blocked

    def _try(self, session: PendingSession, shape: Shape, among: Numbers | None, avoid: Numbers) -> list[Taken] | None:
        """Whether all that is free would do, kept or not."""
        taken = self.fleet.place(session, shape, self.fleet.everywhere(shape), among, avoid)
        self.fleet.give_back(taken or ())
        return taken

    def _owner(self, taken: list[Taken], lifetime_seconds: float | None) -> Reservation:
        """Whose room it would take."""
        delayed = [kept for kept in self.fleet.kept if not ends_in_time(kept, lifetime_seconds)]
        for kept in delayed:
            if any(seat.index is kept.real for seat, _ in taken):
                return kept.reservation
        return (delayed or self.fleet.kept)[0].reservation

    def _why_never(self, session: PendingSession, shape: Shape, among: Numbers | None) -> Blocked | None:
        fleet = self.fleet
        if among is not None and not among:
            return self._barred(session)
        if shape.shares and not fleet.group.gpu_sharing:
            return why.unshared(fleet)
        kinds = fleet.kinds(among)
        if shape.model and not any(seat.able(shape.model) for seat, _ in kinds):
            return why.no_model(shape, among)
        single = shape.single or len(shape.each) == 1
        parts: Iterable[Part] = [shape.whole] if single else dict.fromkeys(shape.each)
        for part in parts:
            if not any(reserve.holds(seat, seat.host.capacity, part) for seat, _ in kinds):
                return why.impossible(shape, part)
        if single or reserve.hold_together(shape, fleet.reachable(kinds) if shape.clustered else kinds):
            return None
        if shape.clustered and any(reserve.holds(seat, seat.host.capacity, shape.whole) for seat, _ in kinds):
            return None
        return why.impossible(shape, None)

    def _barred(self, session: PendingSession) -> Blocked:
        key, _ = self.fleet.among(session)
        if key not in self._bars:
            self._bars[key] = why.barred(session, self.fleet)
        return self._bars[key]

    # -- keeping room ----------------------------------------------------------------------------------------------------
    def _keep(self, session: PendingSession, shape: Shape, pool: object, among: Numbers | None, avoid: Numbers) -> None:
        if self._attempts >= _RESERVATIONS:
            return
        self._attempts += 1
        if (choice := self._choose(session, shape, among, avoid)) is None or not choice.spares:
            return
        self._pools.add(pool)
        hosts = tuple(self.fleet.seats[number].host.id for number in sorted(choice.spares))
        kept = Reservation(session_id=session.id, hosts=hosts, at=choice.at)
        known = None if choice.at is None else max(0.0, (choice.at - self._now).total_seconds())
        self.reservations.append(kept)
        self.fleet.keep(kept, PASSING_SECONDS if known is None else known, choice.spares)

    def _choose(
        self, session: PendingSession, shape: Shape, among: Numbers | None, avoid: Numbers
    ) -> reserve.Choice | None:
        seats: Sequence[Seat] = self.fleet.unkept_seats(among, avoid)
        endings = self._all_endings()
        if shape.single or len(shape.each) == 1:
            if shape.clustered and not shape.single:
                seats = self.fleet.joinable(session, seats)
            return reserve.choose(shape, seats, endings, self._now, together=True)
        if not shape.clustered:
            return reserve.choose(shape, seats, endings, self._now, together=False)
        addressed = [seat for seat in seats if seat.host.address is not None]
        spanning = reserve.choose(shape, addressed, endings, self._now, together=False)
        return spanning or reserve.choose(shape, seats, endings, self._now, together=True)

    def _all_endings(self) -> dict[int, list[tuple[datetime, Amounts]]]:
        """When what is held comes free: what was held before, and what this plan has placed so far."""
        if self._endings is None:
            self._endings = {}
            for holding in self._holdings:
                number = self.fleet.number(holding.agent_id)
                if number is not None and holding.ends_at is not None:
                    self._endings.setdefault(number, []).append((holding.ends_at, holding.amounts))
        for number, seconds, amounts in self._lasting:
            self._endings.setdefault(number, []).append((self._now + timedelta(seconds=seconds), amounts))
        self._lasting.clear()
        return self._endings
