"""A dependency graph as a picture (SVG), and as a text for Graphviz. Names come from users: everything is escaped."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from xml.sax.saxutils import escape

from domain.dependency import Condition
from domain.durations import span
from domain.graph import EdgeState, Graph, GraphEdge, GraphNode, Layout, Look, Point, lay_out
from domain.session import SessionTypes, Status

#: Of each look: the bar and text, and the ground.
COLOURS: Final = {
    Look.WAITING: ("#64748b", "#f8fafc"),
    Look.RUNNING: ("#2563eb", "#eff6ff"),
    Look.SUCCEEDED: ("#15803d", "#f0fdf4"),
    Look.FAILED: ("#b91c1c", "#fef2f2"),
    Look.SKIPPED: ("#b45309", "#fffbeb"),
    Look.ENDED: ("#475569", "#f1f5f9"),
}
_EDGES: Final = {EdgeState.WAITING: "#94a3b8", EdgeState.MET: "#15803d", EdgeState.BROKEN: "#b91c1c"}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 224, 58, 84, 26, 24
_LEGEND_HEIGHT: Final = 40
_FONTS: Final = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
_NAME_LETTERS, _DETAIL_LETTERS = 22, 33


# -- SVG ---------------------------------------------------------------------------------------------------------------
def svg(graph: Graph) -> str:
    """A picture that stands by itself: no script, no font or style from elsewhere."""
    layout = lay_out(graph)
    used = [look for look in Look if any(node.look is look for node in graph.nodes)]
    any_end = any(edge.condition is Condition.END for edge in graph.edges)
    inner = layout.columns * _WIDTH + max(0, layout.columns - 1) * _GAP_X
    width = round(2 * _MARGIN + max(inner, 96 * len(used) + (140 if any_end else 0)))
    height = round(2 * _MARGIN + max(0.0, layout.rows - 1) * (_HEIGHT + _GAP_Y) + _HEIGHT + _LEGEND_HEIGHT)
    names = {node.id: node.name for node in graph.nodes}
    title = f"Dependencies of {names.get(graph.root, graph.root)}, {graph.at:%Y-%m-%d %H:%M} UTC"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONTS}" role="img">',
        f"<title>{_text(title)}</title>",
        "<defs>",
        *(
            f'<marker id="to-{state}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
            f' orient="auto"><path d="M0 0.8L10 5L0 9.2Z" fill="{colour}"/></marker>'
            for state, colour in _EDGES.items()
        ),
        "</defs>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        *(_edge(edge, layout) for edge in graph.edges),
        *(_node(node, layout, graph) for node in graph.nodes),
        *_legend(used, any_end, height - _MARGIN + 2),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _corner(place: Point) -> Point:
    column, row = place
    return _MARGIN + column * (_WIDTH + _GAP_X), _MARGIN + row * (_HEIGHT + _GAP_Y)


def _node(node: GraphNode, layout: Layout, graph: Graph) -> str:
    x, y = _corner(layout.places[node.id])
    bar, ground = COLOURS[node.look]
    root = node.id == graph.root
    frame = f'stroke="{bar}" stroke-width="{2 if root else 1}"' + ("" if root else ' stroke-opacity="0.45"')
    about = f"{node.name}: {node.status}" + (f", {node.reason}" if node.reason else "")
    return (
        f'<g transform="translate({x:.1f} {y:.1f})"><title>{_text(about)}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{ground}" {frame}/>'
        f'<path d="M8 0.5H6A5.5 5.5 0 0 0 0.5 6V{_HEIGHT - 6}A5.5 5.5 0 0 0 6 {_HEIGHT - 0.5}H8Z" fill="{bar}"/>'
        f'<text x="20" y="24" font-size="14" font-weight="600" fill="#0f172a">{_text(_cut(node.name, _NAME_LETTERS))}</text>'
        f'<text x="20" y="43" font-size="11.5" fill="{bar}">{_text(_cut(detail(node, graph.at), _DETAIL_LETTERS))}</text></g>'
    )


def _edge(edge: GraphEdge, layout: Layout) -> str:
    """From the right side of one to the left side of the other, straight through the columns between."""
    x, y = _corner(layout.places[edge.source])
    path = [f"M{x + _WIDTH:.1f} {y + _HEIGHT / 2:.1f}"]
    here = (x + _WIDTH, y + _HEIGHT / 2)
    for bend in layout.bends.get((edge.source, edge.target), []):
        left, top = _corner(bend)
        path.append(_curve(here, (left, top + _HEIGHT / 2)))
        here = (left + _WIDTH, top + _HEIGHT / 2)
        path.append(f"L{here[0]:.1f} {here[1]:.1f}")
    x, y = _corner(layout.places[edge.target])
    path.append(_curve(here, (x - 2, y + _HEIGHT / 2)))
    dashes = ' stroke-dasharray="5 4"' if edge.condition is Condition.END else ""
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="{_EDGES[edge.state]}" stroke-width="1.6"{dashes}'
        f' marker-end="url(#to-{edge.state})"/>'
    )


def _curve(start: Point, end: Point) -> str:
    reach = max(24.0, (end[0] - start[0]) / 2)
    return f"C{start[0] + reach:.1f} {start[1]:.1f} {end[0] - reach:.1f} {end[1]:.1f} {end[0]:.1f} {end[1]:.1f}"


def _legend(used: list[Look], any_end: bool, y: float) -> list[str]:
    parts, x = [], float(_MARGIN)
    for look in used:
        parts.append(f'<circle cx="{x + 5:.0f}" cy="{y - 4:.0f}" r="5" fill="{COLOURS[look][0]}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="{y:.0f}" font-size="11.5" fill="#475569">{look}</text>')
        x += 34 + 6.6 * len(look)
    if any_end:
        parts.append(
            f'<path d="M{x:.0f} {y - 4:.0f}h26" stroke="#94a3b8" stroke-width="1.6" stroke-dasharray="5 4" fill="none"/>'
        )
        parts.append(f'<text x="{x + 33:.0f}" y="{y:.0f}" font-size="11.5" fill="#475569">on any end</text>')
    return parts


def detail(node: GraphNode, at: datetime) -> str:
    """The line below the name."""
    tries = f"{node.retries + 1} tries" if node.retries else ""
    took = _took(node, at)
    match node.look:
        case Look.WAITING:
            later = node.starts_at if node.starts_at is not None and node.starts_at > at else None
            if node.retries and later is not None:
                return f"try {node.retries + 1} in {span((later - at).total_seconds())}"
            return f"starts {later:%Y-%m-%d %H:%M} UTC" if later is not None else "waiting"
        case Look.RUNNING:
            return _joined(str(node.status).lower().replace("_", " "), took, f"try {node.retries + 1}" if tries else "")
        case Look.SKIPPED:
            return "skipped"
        case Look.SUCCEEDED:
            return _joined("succeeded" if node.session_type is SessionTypes.BATCH else "ended", took, tries)
        case Look.FAILED:
            code = f"exit {node.exit_code}" if node.exit_code else _first_words(node.reason)
            return _joined("failed", code, took, tries)
        case _:
            return "cancelled" if node.status is Status.CANCELLED else _joined("ended", took)


def _took(node: GraphNode, at: datetime) -> str:
    if node.started_at is None:
        return ""
    return span(((node.ended_at or at) - node.started_at).total_seconds())


def _first_words(reason: str | None) -> str:
    return (reason or "").partition(":")[0][:20]


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(text: str) -> str:
    """For XML, which knows most control characters not even escaped."""
    return escape("".join(letter if letter.isprintable() else "\ufffd" for letter in text))


# -- DOT ---------------------------------------------------------------------------------------------------------------
def dot(graph: Graph) -> str:
    """For `dot -Tsvg`, and whatever else reads Graphviz's language."""
    lines = [
        "digraph dependencies {",
        '  rankdir=LR; node [shape=box, style="rounded,filled", fontname="Helvetica"]; edge [fontname="Helvetica"];',
    ]
    for node in graph.nodes:
        colour, ground = COLOURS[node.look]
        label = f"{node.name}\n{detail(node, graph.at)}"
        width = 2 if node.id == graph.root else 1
        lines.append(
            f'  "{node.id}" [label={_quoted(label)}, color="{colour}", fillcolor="{ground}", penwidth={width}];'
        )
    for edge in graph.edges:
        style = ', style=dashed, label="any end"' if edge.condition is Condition.END else ""
        lines.append(f'  "{edge.source}" -> "{edge.target}" [color="{_EDGES[edge.state]}"{style}];')
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    safe = "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
