"""The sessions that one session is connected with by dependencies."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from domain.dependency import Condition
from domain.graph import Graph, GraphEdge, GraphNode, edge_state
from domain.ids import SessionId
from repositories.database import Connection

#: More fit on no page.
MOST_NODES: Final = 500
_CONNECTED: Final = """
    WITH RECURSIVE graph AS (
        SELECT $1::uuid AS id
        UNION SELECT near.id FROM graph g JOIN LATERAL (
            SELECT depends_on_id AS id FROM session_dependencies WHERE session_id = g.id
            UNION ALL SELECT session_id FROM session_dependencies WHERE depends_on_id = g.id) near ON true
    )
    SELECT s.id, s.name, s.status, s.session_type, s.result, s.exit_code, s.status_reason AS reason, s.attempt, s.retries,
        s.starts_at, s.started_at, s.ended_at
    FROM (SELECT id FROM graph LIMIT $3) g JOIN sessions s ON s.id = g.id WHERE s.user_id = $2 ORDER BY s.created_at, s.id
"""


async def dependency_graph(connection: Connection, session_id: SessionId, user_id: UUID, *, now: datetime) -> Graph:
    """In the order of their creation."""
    rows = await connection.fetch(_CONNECTED, session_id, user_id, MOST_NODES + 1)
    truncated = len(rows) > MOST_NODES
    kept = [row for row in rows if row["id"] == session_id] + [row for row in rows if row["id"] != session_id]
    order = {row["id"]: at for at, row in enumerate(rows)}
    nodes = sorted((GraphNode.of(row) for row in kept[:MOST_NODES]), key=lambda node: order[node.id])
    by_id = {node.id: node for node in nodes}
    edges = await connection.fetch(
        """
        SELECT session_id, depends_on_id, condition, met_at FROM session_dependencies
        WHERE session_id = ANY($1::uuid[]) AND depends_on_id = ANY($1::uuid[]) ORDER BY created_at, session_id, depends_on_id
        """,
        list(by_id),
    )
    return Graph(
        root=session_id,
        nodes=tuple(nodes),
        edges=tuple(
            GraphEdge(
                source=SessionId(row["depends_on_id"]),
                target=SessionId(row["session_id"]),
                condition=Condition(row["condition"]),
                state=edge_state(row["condition"], row["met_at"] is not None, by_id[row["depends_on_id"]]),
            )
            for row in edges
        ),
        at=now,
        truncated=truncated,
    )
