"""Where the sessions of a graph go on a page, and how the page is written."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest

from actions.drawing import detail, dot, svg
from domain.dependency import Condition, holds, retry_delay_seconds, skip_reason, waiting_reason
from domain.graph import EdgeState, Graph, GraphEdge, GraphNode, Look, lay_out, look_of
from domain.ids import SessionId
from domain.session import FINAL, SessionTypes, Status

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BATCH, S = SessionTypes.BATCH, Status


def node(number: int, name: str | None = None, look: Look = Look.SUCCEEDED, **more: object) -> GraphNode:
    values: dict[str, object] = {
        "id": SessionId(UUID(int=number)), "name": name or f"s{number}", "status": S.TERMINATED, "session_type": BATCH,
        "result": "SUCCESS", "exit_code": 0, "reason": None, "attempt": 1, "retries": 0, "starts_at": None,
        "started_at": NOW - timedelta(seconds=90), "ended_at": NOW, "look": look,
    }  # fmt: skip
    return GraphNode(**{**values, **more})  # type: ignore[arg-type]


def edge(source: int, target: int, condition: Condition = Condition.SUCCESS) -> GraphEdge:
    ends = {"source": SessionId(UUID(int=source)), "target": SessionId(UUID(int=target))}
    return GraphEdge(**ends, condition=condition, state=EdgeState.MET)


def graph_of(nodes: Iterable[GraphNode], edges: Iterable[GraphEdge]) -> Graph:
    nodes = tuple(nodes)
    return Graph(root=nodes[0].id, nodes=nodes, edges=tuple(edges), at=NOW)


# -- layout --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_everything_stands_right_of_what_it_waits_for_and_nothing_overlaps(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(1, 40)
    edges = [edge(a, b) for b in range(1, count) for a in chance.sample(range(b), min(b, chance.randint(0, 3)))]
    graph = graph_of((node(number) for number in range(count)), edges)
    layout = lay_out(graph)
    for one in edges:
        assert layout.places[one.source][0] < layout.places[one.target][0]
        passed = layout.places[one.target][0] - layout.places[one.source][0] - 1
        assert len(layout.bends[one.source, one.target]) == passed
    columns: dict[float, list[float]] = {}
    for column, row in layout.places.values():
        columns.setdefault(column, []).append(row)
    for rows in columns.values():
        rows.sort()
        assert all(below - above >= 0.99 for above, below in pairwise(rows))
        assert rows[0] >= 0
        assert rows[-1] <= layout.rows


def test_a_chain_is_a_straight_line() -> None:
    layout = lay_out(graph_of((node(n) for n in range(4)), [edge(n, n + 1) for n in range(3)]))
    assert {row for _, row in layout.places.values()} == {0.0}
    assert layout.columns == 4


# -- pictures ------------------------------------------------------------------------------------------------------------
NASTY = ('<script>alert(1)</script>"', "a & b]]>", "tab\x07bell", "x" * 64, 'back\\slash "quote"')


@pytest.mark.parametrize("name", NASTY)
def test_names_are_escaped_in_every_form(name: str) -> None:
    graph = graph_of([node(1, name), node(2, "next", reason=name, look=Look.FAILED)], [edge(1, 2)])
    picture = ET.fromstring(svg(graph))
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} <= {
        "svg", "title", "defs", "marker", "path", "rect", "g", "text", "circle",
    }  # fmt: skip
    text = dot(graph)
    assert text.count('"') % 2 == text.count('\\"') % 2
    assert "\x07" not in text


def test_a_picture_says_how_each_stands() -> None:
    graph = graph_of(
        [node(1, "fetch"), node(2, "train", Look.FAILED, exit_code=3, retries=2), node(3, "eval", Look.SKIPPED)],
        [edge(1, 2), edge(2, 3, Condition.END)],
    )
    words = [text.text for text in ET.fromstring(svg(graph)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"fetch", "train", "eval", "succeeded · 1 min 30 s", "skipped", "on any end"} <= set(words)
    assert "stroke-dasharray" in svg(graph)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"look": Look.WAITING, "starts_at": NOW + timedelta(hours=2)}, "starts 2026-03-01 14:00 UTC"),
        ({"look": Look.WAITING, "starts_at": NOW - timedelta(hours=2)}, "waiting"),
        ({"look": Look.WAITING, "retries": 1, "starts_at": NOW + timedelta(seconds=20)}, "try 2 in 20 s"),
        ({"look": Look.RUNNING, "status": S.RUNNING, "ended_at": None, "retries": 1}, "running · 1 min 30 s · try 2"),
        ({"look": Look.ENDED, "status": S.CANCELLED}, "cancelled"),
        (
            {"look": Look.FAILED, "exit_code": None, "reason": "batch_timeout: too slow"},
            "failed · batch_timeout · 1 min 30 s",
        ),
    ],
)
def test_the_line_below_the_name(values: dict[str, object], said: str) -> None:
    assert detail(node(1, **values), NOW) == said  # type: ignore[arg-type]


# -- rules ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "session_type", "result", "success", "end"),
    [
        (S.RUNNING, BATCH, "UNDEFINED", None, None),
        (S.TERMINATING, BATCH, "SUCCESS", None, None),
        (S.TERMINATED, BATCH, "SUCCESS", True, True),
        (S.TERMINATED, BATCH, "FAILURE", False, True),
        (S.TERMINATED, BATCH, "UNDEFINED", False, True),
        (S.CANCELLED, BATCH, "UNDEFINED", False, True),
        (S.ERROR, BATCH, "FAILURE", False, True),
        (S.TERMINATED, SessionTypes.INTERACTIVE, "UNDEFINED", True, True),
        (S.CANCELLED, SessionTypes.INTERACTIVE, "UNDEFINED", False, True),
        (S.ERROR, SessionTypes.INTERACTIVE, "FAILURE", False, True),
    ],
)
def test_when_a_dependency_holds(
    status: Status, session_type: SessionTypes, result: str, success: bool | None, end: bool | None
) -> None:
    assert holds(Condition.SUCCESS, status, session_type, result) is success
    assert holds(Condition.END, status, session_type, result) is end


def test_every_status_has_a_look() -> None:
    for status in Status:
        assert (look_of(status, BATCH, "SUCCESS", None) in (Look.WAITING, Look.RUNNING)) is (status not in FINAL)


def test_a_delay_doubles_and_is_capped() -> None:
    assert [retry_delay_seconds(5, retries) for retries in range(4)] == [5, 10, 20, 40]
    assert retry_delay_seconds(5, 10_000) == 6 * 3600
    assert retry_delay_seconds(0, 100) == 0


def test_reasons_name_who_failed_first() -> None:
    first = skip_reason("train", S.TERMINATED, 3, "the session's work ended")
    assert first == "dependency_failed: 'train' ended with exit code 3"
    second = skip_reason("eval", S.CANCELLED, None, first)
    third = skip_reason("publish", S.CANCELLED, None, second)
    assert second == "dependency_failed: 'train' ended with exit code 3; 'eval' was not run because of it"
    assert third == "dependency_failed: 'train' ended with exit code 3; 'publish' was not run because of it"
    assert skip_reason("x", S.ERROR, None, "its host") == "dependency_failed: 'x' is ERROR (its host)"
    assert waiting_reason(["a", "b", "c", "d", "e"]) == "waits for 'a' and 'b' and 'c' and 2 more"
