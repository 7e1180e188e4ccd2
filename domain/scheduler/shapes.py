"""What a session asks for, compiled once for all that ask for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from domain.placement import GPU, GPU_SHARE, PendingSession
from domain.scheduler.room import Amounts
from domain.session import ClusterMode

SHARED: Final = "gpu-shared"  #: of a host: the most that is free on a device of which somebody has a share

Demand = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Kernels that go to one host together.

    `demand` is what a host needs by its dimensions: kinds of slots, the number of idle devices, the most that is free on
    one. A host that meets it takes the part, unless the part is `intricate`: then devices have to be tried out.
    """

    slots: tuple[Amounts, ...]
    demand: Demand
    needs: Mapping[str, int]  #: the demand, by dimension
    #: the same, on a device that is shared already; None for parts without a share
    sharing: Demand | None
    plain: tuple[dict[str, int], ...]  #: of each kernel, what it takes besides devices
    model: str | None
    devices: bool
    intricate: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """What is asked for, and how it may be spread over hosts."""

    single: bool  #: all kernels on one host
    clustered: bool  #: hosts have to reach each other
    whole: Part
    #: each kernel by itself, the largest first, and their places in the session; alike kernels have the same part
    each: tuple[Part, ...]
    places: tuple[int, ...]
    totals: Mapping[str, int]  #: by kinds of slots, and `sessions`
    kinds: Demand  #: the same by kinds of capacity; shares of devices are not in it
    model: str | None
    devices: bool
    shares: bool
    simple: bool  #: one host that meets the demand is all that it needs
    alike: bool  #: all kernels ask for the same
    #: every kernel asks for whole devices: hosts without idle ones need not be looked at
    only_devices: bool


class Shapes:
    def __init__(self) -> None:
        self._known: dict[object, Shape] = {}

    def of(self, session: PendingSession) -> Shape:
        kernels = session.kernels
        asked: object = (
            frozenset(kernels[0].slots.items())
            if len(kernels) == 1
            else tuple(frozenset(kernel.slots.items()) for kernel in kernels)
        )
        key = (asked, session.cluster_mode, session.constraints.gpu_model, session.clustered, session.joins)
        if (shape := self._known.get(key)) is None:
            shape = self._known[key] = compiled(session)
        return shape


def compiled(session: PendingSession) -> Shape:
    slots = [{name: amount for name, amount in sorted(k.slots.items()) if amount > 0} for k in session.kernels]
    model = session.constraints.gpu_model
    kinds = [frozenset(one.items()) for one in slots]
    parts = {kind: _part([one], model) for kind, one in dict(zip(kinds, slots, strict=True)).items()}
    places = sorted(range(len(slots)), key=lambda place: _size(slots[place]))
    totals = added(slots)
    whole = _part(slots, model) if len(slots) != 1 else next(iter(parts.values()))
    return Shape(
        single=session.cluster_mode is ClusterMode.SINGLE_NODE,
        clustered=session.clustered,
        whole=whole,
        each=tuple(parts[kinds[place]] for place in places),
        places=tuple(places),
        totals=totals if session.joins else {**totals, "sessions": 1},
        kinds=tuple((name, amount) for name, amount in totals.items() if name != GPU_SHARE),
        model=model if whole.devices else None,
        devices=whole.devices,
        shares=GPU_SHARE in totals,
        simple=(session.cluster_mode is ClusterMode.SINGLE_NODE or len(slots) == 1) and not whole.intricate,
        alike=len(parts) < 2,
        only_devices=bool(slots) and all(GPU in one for one in slots),
    )


def _size(slots: Amounts) -> tuple[object, ...]:
    """The scarcest first; of equals the order they have."""
    return -slots.get(GPU, 0), -slots.get(GPU_SHARE, 0), -slots.get("cpu", 0), -slots.get("mem", 0)


def _part(slots: Sequence[Amounts], model: str | None) -> Part:
    totals = added(slots)
    shares = [one[GPU_SHARE] for one in slots if GPU_SHARE in one]
    devices = bool(shares) or GPU in totals
    plain = [(name, amount) for name, amount in totals.items() if name not in (GPU, GPU_SHARE)]
    demand = list(plain)
    if GPU in totals:
        demand.insert(0, (dimension(GPU, model), totals[GPU]))
    most = max(shares, default=0)
    share = [(dimension(GPU_SHARE, model), most)] if shares else []
    shared = [(dimension(SHARED, model), most)] if shares else []
    return Part(
        slots=tuple(slots),
        demand=(*share, *demand),
        needs=dict((*share, *demand)),
        sharing=(*shared, *demand) if shares else None,
        plain=tuple({name: n for name, n in one.items() if name not in (GPU, GPU_SHARE)} for one in slots),
        model=model,
        devices=devices,
        intricate=len(shares) > 1 or (bool(shares) and GPU in totals),
    )


def dimension(kind: str, model: str | None) -> str:
    """The name under which hosts are ordered by their devices of a model."""
    return kind if model is None else f"{kind}:{model.lower()}"


def added(many: Sequence[Amounts]) -> Amounts:
    """All of it, by name."""
    if len(many) == 1:
        return many[0]
    total: dict[str, int] = {}
    for slots in many:
        for name, amount in slots.items():
            total[name] = total.get(name, 0) + amount
    return dict(sorted(total.items()))
