"""Labels, webhooks, idle limits and templates."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_AT = sa.DateTime(timezone=True)


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("labels", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("preopen_ports", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("callback_url", sa.Text()),
        sa.Column("idle_timeout_seconds", sa.Double()),
    ]


def upgrade() -> None:
    for column in _columns():
        op.add_column("sessions", column)
    op.create_index(
        "sessions_labels_idx", "sessions", ["labels"], postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )  # fmt: skip
    op.create_index("sessions_callback_idx", "sessions", ["id"], postgresql_where=sa.text("callback_url IS NOT NULL"))
    _templates()
    _webhooks()


def _templates() -> None:
    op.create_table(
        "session_templates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("project_id", sa.Uuid()),
        sa.Column("domain", sa.Text()),
        sa.Column("created_by", sa.Uuid()),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("document", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.Column("changed_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="session_templates_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="session_templates_user_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="session_templates_project_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["domain"], ["domains.name"], name="session_templates_domain_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name="session_templates_created_by_fkey", ondelete="SET NULL"
        ),
        sa.CheckConstraint(
            "num_nonnulls(user_id, project_id, domain) = 1", name=op.f("session_templates_scope_check")
        ),
    )  # fmt: skip
    for scope in ("user_id", "project_id", "domain"):
        op.create_index(
            f"session_templates_{scope}_name_key", "session_templates", [scope, "name"], unique=True,
            postgresql_where=sa.text(f"{scope} IS NOT NULL"),
        )  # fmt: skip
    op.create_table(
        "session_template_versions",
        sa.Column("template_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("document", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("by_access_key", sa.Text(), nullable=False),
        sa.Column("created_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("template_id", "version", name="session_template_versions_pkey"),
        sa.ForeignKeyConstraint(
            ["template_id"], ["session_templates.id"], name="session_template_versions_template_id_fkey",
            ondelete="CASCADE",
        ),
    )  # fmt: skip


def _webhooks() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="webhook_secrets_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="webhook_secrets_user_id_fkey", ondelete="CASCADE"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("event_seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_try_at", _AT, nullable=False),
        sa.Column("claimed_by", sa.Uuid()),
        sa.Column("lease_until", _AT),
        sa.Column("http_status", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", _AT, server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", _AT),
        sa.PrimaryKeyConstraint("id", name="webhook_deliveries_pkey"),
        sa.UniqueConstraint("session_id", "event_seq", name="webhook_deliveries_session_id_event_seq_key"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="webhook_deliveries_session_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'delivered', 'failed')", name=op.f("webhook_deliveries_status_check")
        ),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (status = 'queued')", name=op.f("webhook_deliveries_finished_at_check")
        ),
    )  # fmt: skip
    op.create_index(
        "webhook_deliveries_open_idx", "webhook_deliveries", ["session_id", "event_seq"],
        postgresql_where=sa.text("status = 'queued'"),
    )  # fmt: skip
    op.create_index("webhook_deliveries_finished_at_idx", "webhook_deliveries", ["finished_at"])
    # what happened before there were webhooks is told to nobody
    op.execute(
        "INSERT INTO sequencer (name, last_seq) SELECT 'webhooks', last_seq FROM sequencer WHERE name = 'events'"
    )


def downgrade() -> None:
    op.execute("DELETE FROM sequencer WHERE name = 'webhooks'")
    for table in ("webhook_deliveries", "webhook_secrets", "session_template_versions", "session_templates"):
        op.drop_table(table)
    for index in ("sessions_callback_idx", "sessions_labels_idx"):
        op.drop_index(index, "sessions")
    for column in reversed(_columns()):
        op.drop_column("sessions", column.name)
