"""Hosts while a plan is made: what is left on each, and an index by which the one that fits best is found at once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from domain.placement import DEVICE, GPU, GPU_SHARE, Host
from domain.scheduler.devices import Site, choose_share, choose_whole, idle
from domain.scheduler.room import fit
from domain.scheduler.shapes import SHARED, Demand, Part, dimension

#: The dimension by which empty hosts come first; where hosts are packed, all are alike in it.
FULLNESS: Final = ""
_SCALE: Final = 1 << 20
_NOBODY: Final[list[int]] = []
#: So few hosts are looked at one by one.
_FEW: Final = 64

Amounts = Mapping[str, int]


class Seat:
    """A host and what is left of it. `dims` is what hosts are compared by; devices are in `left` one by one."""

    __slots__ = ("_counted", "_plain", "_sites", "_spread", "dims", "host", "index", "left", "number", "pair")

    def __init__(self, host: Host, number: int, free: Amounts, *, spread: bool, models: Iterable[str | None]) -> None:
        self.host = host
        self.number = number
        self.index: Index | None = None
        self.pair: Pair | None = None
        self.left: dict[str, int] = {}
        self.dims: dict[str, int] = {FULLNESS: 1}
        self._spread = spread
        self._sites: dict[str | None, Site] = {}
        self._counted: list[str | None] = []
        for name, amount in free.items():
            if name.startswith(DEVICE):
                self.left[name] = max(0, amount)
            elif name not in (GPU, GPU_SHARE):
                self.dims[name] = max(0, amount)
        self._plain = tuple(name for name in self.dims if name != FULLNESS)
        if self.left:
            for model in models:
                self.know(model)
        if spread:
            self.dims[FULLNESS] = self._fullness()

    @property
    def free(self) -> dict[str, int]:
        """By the names of the host's resources."""
        return {name: self.dims[name] for name in self._plain} | self.left

    @property
    def idle_devices(self) -> bool:
        return self.dims.get(GPU, 0) > 0

    def kind(self) -> object:
        """Hosts that are alike when they are empty have the same."""
        capacity = self.host.capacity
        devices = sorted((d.model, d.whole_only, capacity[d.name]) for d in self.site(None).able)
        plain = frozenset((name, amount) for name, amount in capacity.items() if not name.startswith(DEVICE))
        return plain, tuple(devices), self.host.address is not None

    def able(self, model: str | None) -> bool:
        """Whether it has a device of this model."""
        return bool(self.site(model).able)

    def site(self, model: str | None) -> Site:
        if (found := self._sites.get(model)) is None:
            self._sites[model] = found = Site(self.host, model)
        return found

    def know(self, model: str | None) -> None:
        """From now on its devices of this model are counted."""
        if self.left and model not in self._counted:
            self._counted.append(model)
            self._count(model)

    def _count(self, model: str | None) -> None:
        able, left, capacity = self.site(model).able, self.left, self.host.capacity
        unused, most, shared = 0, 0, 0
        for device in able:
            amount = left.get(device.name, 0)
            if 0 < capacity[device.name] == amount:
                unused += 1
            elif not device.whole_only and amount > shared:
                shared = amount
            if not device.whole_only and amount > most:
                most = amount
        for kind, value in ((GPU, unused), (GPU_SHARE, most), (SHARED, shared)):
            self._set(dimension(kind, model), value)

    def _set(self, dim: str, value: int) -> None:
        before = self.dims.get(dim, 0)
        if before != value:
            self.dims[dim] = value
            if self.index is not None:
                self.index.moved(self.number, dim, before, value)

    def fits(self, part: Part) -> bool:
        """Only after its demand is met."""
        return not part.intricate or fit(self.site(part.model), self.free, part.slots) is not None

    def amounts_for(self, part: Part) -> list[dict[str, int]]:
        """What each kernel of it takes; only where it fits."""
        if not part.devices:
            return list(part.plain)
        if part.intricate or len(part.slots) > 1:
            return fit(self.site(part.model), self.free, part.slots) or []
        return [part.plain[0] | self._devices_for(part)]

    def _devices_for(self, part: Part) -> dict[str, int]:
        """The short way to what `fit` answers for one kernel."""
        where = self.site(part.model)
        if share := part.slots[0].get(GPU_SHARE, 0):
            device = choose_share(where, share, self.left)
            return {} if device is None else {device.name: share}
        return {device.name: self.left[device.name] for device in choose_whole(where, part.slots[0][GPU], self.left)}

    def take(self, amounts: Amounts) -> None:
        """Of what is left; negative amounts come back."""
        if self.pair is None:
            self.subtract(amounts)
        else:
            self.pair.take(self, amounts)

    def subtract(self, amounts: Amounts) -> None:
        dims, index, number = self.dims, self.index, self.number
        devices = False
        for name, amount in amounts.items():
            if name.startswith(DEVICE):
                self.left[name] -= amount
                devices = True
            else:
                before = dims[name]
                dims[name] = after = before - amount
                if index is not None:
                    index.moved(number, name, before, after)
        if devices:
            for model in self._counted:
                self._count(model)
        if self._spread:
            self._set(FULLNESS, self._fullness())

    def _fullness(self) -> int:
        """By the kind of which the least is free."""
        least = _SCALE
        for name, whole in self.host.capacity.items():
            if whole > 0 and not name.startswith(DEVICE):
                least = min(least, max(0, self.dims.get(name, 0)) * _SCALE // whole)
        if self.left:
            unused = sum(idle(self.left, self.host.capacity, name) for name in self.left)
            least = min(least, unused * _SCALE // len(self.left))
        return _SCALE - least + 1


class Pair:
    """A host on which room is kept: all that is free now, for those that end in time, and for the others what is free
    both now and then."""

    def __init__(self, real: Seat, capped: Seat, spare: dict[str, int]) -> None:
        self.real = real
        self.capped = capped
        self._spare = spare
        real.pair = capped.pair = self

    def take(self, seat: Seat, amounts: Amounts) -> None:
        self.real.subtract(amounts)
        if seat is self.capped:
            for name, amount in amounts.items():
                self._spare[name] -= amount
        now, before = self.real.free, self.capped.free
        changed = {name: before[name] - min(now[name], max(0, self._spare[name])) for name in amounts}
        self.capped.subtract({name: amount for name, amount in changed.items() if amount})


class Index:
    """Seats ordered by what they have of each dimension; those that have nothing of it are left out."""

    def __init__(self, seats: Iterable[Seat], *, bits: int, spread: bool) -> None:
        self._bits = bits
        self._spread = spread
        self._mask = (1 << bits) - 1
        self._seats: dict[int, Seat] = {}
        self._lists: dict[str, list[int]] = {}
        for seat in seats:
            self._seats[seat.number] = seat
            seat.index = self
            for dim, value in seat.dims.items():
                if value > 0:
                    self._lists.setdefault(dim, []).append(value << bits | seat.number)
        for keys in self._lists.values():
            keys.sort()

    def __len__(self) -> int:
        return len(self._seats)

    def seats(self) -> list[Seat]:
        return list(self._seats.values())

    def add(self, seat: Seat) -> None:
        self._seats[seat.number] = seat
        seat.index = self
        for dim, value in seat.dims.items():
            self.moved(seat.number, dim, 0, value)

    def remove(self, seat: Seat) -> None:
        for dim, value in seat.dims.items():
            self.moved(seat.number, dim, value, 0)
        del self._seats[seat.number]
        seat.index = None

    def moved(self, number: int, dim: str, before: int, after: int) -> None:
        keys = self._lists.get(dim)
        if keys is None:
            keys = self._lists[dim] = []
        if before > 0:
            del keys[bisect_left(keys, before << self._bits | number)]
        if after > 0:
            insort(keys, after << self._bits | number)

    def most(self, dim: str) -> int:
        """The most that one host has of it."""
        keys = self._lists.get(dim)
        return keys[-1] >> self._bits if keys else 0

    def best(
        self, part: Part, demand: Demand, among: Collection[int] | None = None, avoid: Collection[int] = ()
    ) -> Seat | None:
        """The host for it, of all or of these, but not of those.

        Packed: the one with the least left of what is scarcest for this, which is what the fewest hosts have enough of.
        Spread: the emptiest.
        """
        keys, start = self._scarcest(demand)
        if (left := len(keys) - start) == 0:
            return None
        if among is not None and len(among) <= max(_FEW, left // 4):
            order = FULLNESS if self._spread or not demand else demand[0][0]
            return self._least(among, order, part, demand, avoid)
        if self._spread:
            if left <= _FEW:
                near = [key & self._mask for key in keys[start:] if among is None or key & self._mask in among]
                return self._least(near, FULLNESS, part, demand, avoid)
            keys, start = self._lists[FULLNESS], 0
        return self._first(keys, start, part, demand, among, avoid)

    def _scarcest(self, demand: Demand) -> tuple[list[int], int]:
        """The hosts in the order of the dimension of which the fewest have enough, and where those begin."""
        lists, bits = self._lists, self._bits
        best, start, fewest = lists.get(FULLNESS, _NOBODY), 0, len(self._seats) + 1
        for dim, amount in demand:
            keys = lists.get(dim, _NOBODY)
            at = bisect_left(keys, amount << bits)
            left = len(keys) - at
            if left < fewest:
                if left == 0:
                    return _NOBODY, 0
                best, start, fewest = keys, at, left
        return best, start

    def _least(
        self, numbers: Iterable[int], dim: str, part: Part, demand: Demand, avoid: Collection[int]
    ) -> Seat | None:
        """Of these hosts, the one that fits and has the least of a dimension."""
        best, found = 0, None
        for number in numbers:
            if (seat := self._seats.get(number)) is None or number in avoid:
                continue
            dims = seat.dims
            for name, amount in demand:
                if dims.get(name, 0) < amount:
                    break
            else:
                key = dims.get(dim, 0) << self._bits | number
                if (found is None or key < best) and seat.fits(part):
                    best, found = key, seat
        return found

    def _first(
        self,
        keys: list[int],
        start: int,
        part: Part,
        demand: Demand,
        among: Collection[int] | None,
        avoid: Collection[int],
    ) -> Seat | None:
        seats, mask = self._seats, self._mask
        for at in range(start, len(keys)):
            seat = seats[keys[at] & mask]
            dims = seat.dims
            for dim, amount in demand:
                if dims.get(dim, 0) < amount:
                    break
            else:
                number = seat.number
                if (among is None or number in among) and number not in avoid and seat.fits(part):
                    return seat
        return None
