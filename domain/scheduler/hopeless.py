"""What fits nowhere any more: within one plan, room only shrinks."""

from __future__ import annotations

from typing import Final

from domain.scheduler.shapes import Demand, Shape

#: So many demands are compared with: what asks for more than one of them is hopeless too.
_COMPARED: Final = 8


class Hopeless:
    """`where` stands for the hosts that were looked at, and for what may be taken of them."""

    def __init__(self) -> None:
        self._shapes: set[tuple[Shape, object]] = set()
        self._demands: dict[object, list[Demand]] = {}

    def holds(self, shape: Shape, where: object) -> bool:
        if (shape, where) in self._shapes:
            return True
        demands = self._demands.get(where)
        if not demands or not shape.simple:
            return False
        needs = shape.whole.needs
        for at, demand in enumerate(demands):
            for dim, amount in demand:
                if needs.get(dim, 0) < amount:
                    break
            else:
                demands.insert(0, demands.pop(at))  # it may well be the one for the next too
                return True
        return False

    def add(self, shape: Shape, where: object) -> None:
        self._shapes.add((shape, where))
        if shape.simple:
            demands = self._demands.setdefault(where, [])
            demands.insert(0, shape.whole.demand)
            del demands[_COMPARED:]
