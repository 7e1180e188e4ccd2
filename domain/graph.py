"""Sessions that depend on each other, as a graph, and where its nodes go on a page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from uuid import UUID

from domain.dependency import Condition, holds, is_skip, succeeded
from domain.ids import SessionId
from domain.session import FINAL, SessionTypes, Status


class Look(StrEnum):
    """How a node stands, in the few words that a picture has colours for."""

    WAITING = "waiting"  #: PENDING: for others, for its time, or for room
    RUNNING = "running"  #: on a host
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"  #: not run, because what it depends on failed
    ENDED = "ended"  #: by somebody, before its work was done


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    id: SessionId
    name: str
    status: Status
    session_type: SessionTypes
    result: str
    exit_code: int | None
    reason: str | None
    attempt: int
    retries: int
    starts_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    look: Look

    @classmethod
    def of(cls, row: Mapping[str, object]) -> GraphNode:
        values = {name: row[name] for name in cls.__slots__ if name != "look"}
        values["status"] = status = Status(str(row["status"]))
        values["session_type"] = kind = SessionTypes(str(row["session_type"]))
        look = look_of(status, kind, str(row["result"]), values["reason"])  # type: ignore[arg-type]
        return cls(**values, look=look)  # type: ignore[arg-type]


def look_of(status: Status, session_type: SessionTypes, result: str, reason: str | None) -> Look:
    if status is Status.PENDING:
        return Look.WAITING
    if status not in FINAL:
        return Look.RUNNING
    if status is Status.CANCELLED:
        return Look.SKIPPED if is_skip(reason) else Look.ENDED
    if succeeded(status, session_type, result):
        return Look.SUCCEEDED
    return Look.FAILED if result == "FAILURE" or status is Status.ERROR else Look.ENDED


class EdgeState(StrEnum):
    WAITING = "waiting"
    MET = "met"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdge:
    """`target` waits for `source`."""

    source: SessionId
    target: SessionId
    condition: Condition
    state: EdgeState


def edge_state(condition: str, met: bool, source: GraphNode) -> EdgeState:
    if met:
        return EdgeState.MET
    verdict = holds(condition, source.status, source.session_type, source.result)
    return EdgeState.WAITING if verdict is None else EdgeState.MET if verdict else EdgeState.BROKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Everything that one session is connected with, in any direction."""

    root: SessionId
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    at: datetime  #: when it looked like this
    truncated: bool = False  #: there are more than are shown


# -- layout --------------------------------------------------------------------------------------------------------------
Point = tuple[float, float]


@dataclass(slots=True)
class Layout:
    """Columns from left to right: every session stands right of all that it depends on. Units are rows and columns."""

    places: dict[UUID, Point] = field(default_factory=dict)  #: (column, row)
    bends: dict[tuple[UUID, UUID], list[Point]] = field(default_factory=dict)  #: where an edge passes columns between
    columns: int = 0
    rows: float = 0.0


#: A session, or the place where an edge that is longer than one column passes through: (source, target, column).
_Cell = UUID | tuple[UUID, UUID, int]


def lay_out(graph: Graph, sweeps: int = 8) -> Layout:
    """Layers by longest path, crossings reduced by medians, rows pulled towards their neighbours."""
    columns_of = _columns(graph)
    layers: list[list[_Cell]] = [[] for _ in range(max(columns_of.values(), default=-1) + 1)]
    for node in graph.nodes:
        layers[columns_of[node.id]].append(node.id)
    before: dict[_Cell, list[_Cell]] = {}
    after: dict[_Cell, list[_Cell]] = {}
    chains: dict[tuple[UUID, UUID], list[_Cell]] = {}
    for edge in graph.edges:
        first, last = columns_of[edge.source], columns_of[edge.target]
        passing: list[_Cell] = [(edge.source, edge.target, at) for at in range(first + 1, last)]
        for cell, at in zip(passing, range(first + 1, last), strict=True):
            layers[at].append(cell)
        chain: list[_Cell] = [edge.source, *passing, edge.target]
        for left, right in pairwise(chain):
            after.setdefault(left, []).append(right)
            before.setdefault(right, []).append(left)
        chains[edge.source, edge.target] = passing
    for sweep in range(sweeps):
        forward = sweep % 2 == 0
        for layer in layers if forward else reversed(layers):
            _order(layer, before if forward else after, layers)
    rows = _rows(layers, before, after)
    layout = Layout(columns=len(layers), rows=max(rows.values(), default=-1.0) + 1.0)
    layout.places = {node.id: (float(columns_of[node.id]), rows[node.id]) for node in graph.nodes}
    layout.bends = {
        ends: [(float(cell[2]), rows[cell]) for cell in passing if isinstance(cell, tuple)]
        for ends, passing in chains.items()
    }
    return layout


def _columns(graph: Graph) -> dict[UUID, int]:
    """One more than the rightmost that it depends on."""
    sources: dict[UUID, list[UUID]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        sources[edge.target].append(edge.source)
    columns: dict[UUID, int] = {}
    waiting = [node.id for node in graph.nodes]
    while waiting:  # there is no circle
        ready = [one for one in waiting if all(source in columns for source in sources[one])]
        for one in ready:
            columns[one] = max((columns[source] + 1 for source in sources[one]), default=0)
        waiting = [one for one in waiting if one not in columns]
    return columns


def _order(layer: list[_Cell], beside: Mapping[_Cell, Sequence[_Cell]], layers: Sequence[Sequence[_Cell]]) -> None:
    number = {cell: at for other in layers for at, cell in enumerate(other)}
    weight = {
        cell: sum(number[one] for one in near) / len(near) if (near := beside.get(cell)) else float(at)
        for at, cell in enumerate(layer)
    }
    layer.sort(key=lambda cell: weight[cell])


def _rows(
    layers: Sequence[Sequence[_Cell]], before: Mapping[_Cell, Sequence[_Cell]], after: Mapping[_Cell, Sequence[_Cell]]
) -> dict[_Cell, float]:
    """In each column's order, at least a row apart (half a row for edges that pass), near what they are joined with."""
    rows: dict[_Cell, float] = {}
    for layer in layers:
        rows |= {cell: float(at) for at, cell in enumerate(layer)}
    for turn in range(12):
        for layer in layers if turn % 2 == 0 else reversed(layers):
            near = {cell: [*before.get(cell, ()), *after.get(cell, ())] for cell in layer}
            wanted = [sum(rows[one] for one in near[c]) / len(near[c]) if near[c] else rows[c] for c in layer]
            _spread(layer, wanted, rows)
    top = min(rows.values(), default=0.0)
    # in quarters, so that what is nearly on one line is; a distance of a row stays one
    return {cell: round((row - top) * 4 + 1e-6) / 4 for cell, row in rows.items()}


def _spread(layer: Sequence[_Cell], wanted: Sequence[float], rows: dict[_Cell, float]) -> None:
    """As near to what is wanted as their distances allow: pushed down from above and up from below, then the mean."""
    gaps = [1.0 if isinstance(a, UUID) and isinstance(b, UUID) else 0.7 for a, b in pairwise(layer)]
    down, up = list(wanted), list(wanted)
    for at in range(1, len(layer)):
        down[at] = max(down[at], down[at - 1] + gaps[at - 1])
    for at in range(len(layer) - 2, -1, -1):
        up[at] = min(up[at], up[at + 1] - gaps[at])
    for at, cell in enumerate(layer):
        rows[cell] = (down[at] + up[at]) / 2
