"""Dependencies, starting times, retries and batch timeouts."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_AT = sa.DateTime(timezone=True)
_EVENTS = (
    "schedule", "prepare", "pull", "start", "degrade", "recover", "restart", "destroy", "finish", "expire", "fail",
    "gone", "break", "force",
)  # fmt: skip
_NEW_EVENTS = (*_EVENTS[:10], "skip", "retry", *_EVENTS[10:])
_NOT_FINAL = "status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("starts_at", _AT),
        sa.Column("batch_timeout_seconds", sa.Double()),
        sa.Column("max_retries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("retry_delay_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("retries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("retrying", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("outputs", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("unmet", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("inference", postgresql.JSONB()),
        sa.Column("work_until_at", _AT),
    ]


_INDEXES = (
    ("sessions_work_until_idx", "work_until_at", _NOT_FINAL),
    ("sessions_starts_idx", "starts_at", "status = 'PENDING'"),
    ("sessions_unmet_idx", "id", "status = 'PENDING' AND unmet > 0"),
    ("sessions_inference_idx", "id", f"session_type = 'inference' AND {_NOT_FINAL}"),
)
# The only writer of sessions.unmet. Rows are locked in order, so that two writers cannot deadlock; what each then counts
# is what whoever held the lock before has left.
_COUNT = """
    CREATE FUNCTION session_dependencies_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM FROM sessions s WHERE s.id IN (SELECT c.session_id FROM changed c) ORDER BY s.id FOR NO KEY UPDATE;
        UPDATE sessions s SET unmet = n.number FROM (
            SELECT c.session_id, (SELECT count(*) FROM session_dependencies d
                WHERE d.session_id = c.session_id AND d.met_at IS NULL) AS number
            FROM (SELECT DISTINCT session_id FROM changed) c) n
        WHERE s.id = n.session_id AND s.unmet <> n.number;
        RETURN NULL;
    END $$
"""
_TRIGGERS = (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD"))


def upgrade() -> None:
    _events(_NEW_EVENTS)
    op.execute(
        "INSERT INTO session_transition (source, event, target) VALUES"
        " ('PENDING', 'skip', 'CANCELLED'), ('TERMINATING', 'retry', 'PENDING')"
    )
    for column in _columns():
        op.add_column("sessions", column)
    for name, column_name, condition in _INDEXES:
        op.create_index(name, "sessions", [column_name], postgresql_where=sa.text(condition))
    op.create_table(
        "session_dependencies",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("depends_on_id", sa.Uuid(), nullable=False),
        sa.Column("condition", sa.Text(), nullable=False),
        sa.Column("met_at", _AT),
        sa.Column("created_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "depends_on_id", name="session_dependencies_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="session_dependencies_session_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["depends_on_id"], ["sessions.id"], name="session_dependencies_depends_on_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint("condition IN ('success', 'end')", name=op.f("session_dependencies_condition_check")),
        sa.CheckConstraint("session_id <> depends_on_id", name=op.f("session_dependencies_self_check")),
    )
    op.create_index("session_dependencies_depends_on_id_idx", "session_dependencies", ["depends_on_id"])
    op.execute(_COUNT)
    for event, rows in _TRIGGERS:
        op.execute(
            f"CREATE TRIGGER session_dependencies_{event.lower()} AFTER {event} ON session_dependencies"
            f" REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION session_dependencies_changed()"
        )


def downgrade() -> None:
    op.drop_table("session_dependencies")
    op.execute("DROP FUNCTION session_dependencies_changed()")
    for name, _, _ in _INDEXES:
        op.drop_index(name, "sessions")
    for column in reversed(_columns()):
        op.drop_column("sessions", column.name)
    # a session's way through these is told in words of before
    op.execute("UPDATE status_history SET event = 'destroy' WHERE event = 'skip'")
    op.execute("DELETE FROM status_history WHERE event = 'retry'")
    op.execute("DELETE FROM session_transition WHERE event IN ('skip', 'retry')")
    _events(_EVENTS)


def _events(words: tuple[str, ...]) -> None:
    listed = ", ".join(f"'{word}'" for word in words)
    op.execute("ALTER TABLE session_transition DROP CONSTRAINT session_transition_event_check")
    op.execute(
        f"ALTER TABLE session_transition ADD CONSTRAINT session_transition_event_check CHECK (event IN ({listed}))"
    )
