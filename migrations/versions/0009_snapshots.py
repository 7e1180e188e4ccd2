"""Snapshots, registries and image ownership."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_WORDS = {
    "kind": ("registered", "snapshot", "built"),
    "status": ("making", "ready"),
    "visibility": ("public", "project", "user"),
}
_COLUMNS = ("title", "owner_id", "project_id", "agent_id", "session_id", "task_id", "size_bytes", "digest")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("tries", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    for name, default in (("kind", "registered"), ("status", "ready"), ("visibility", "public")):
        op.add_column("images", sa.Column(name, sa.Text(), server_default=default, nullable=False))
        words = ", ".join(f"'{word}'" for word in _WORDS[name])
        op.create_check_constraint(op.f(f"images_{name}_check"), "images", f"{name} IN ({words})")
    for name, kind in (
        ("title", sa.Text()),
        ("owner_id", sa.Uuid()),
        ("project_id", sa.Uuid()),
        ("agent_id", sa.Text()),
        ("session_id", sa.Uuid()),
        ("task_id", sa.Uuid()),
        ("size_bytes", sa.BigInteger()),
        ("digest", sa.Text()),
    ):
        op.add_column("images", sa.Column(name, kind))
    for column, table, then in (
        ("owner_id", "users", "SET NULL"),
        ("project_id", "projects", "SET NULL"),
        ("agent_id", "agents", "CASCADE"),
    ):
        op.create_foreign_key(f"images_{column}_fkey", "images", table, [column], ["id"], ondelete=then)
    op.create_index(
        "images_title_key", "images", ["owner_id", "title"], unique=True, postgresql_where=sa.text("title IS NOT NULL")
    )
    op.create_index("images_agent_id_idx", "images", ["agent_id"])
    op.create_table(
        "registries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Uuid()),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="registries_pkey"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="registries_owner_id_fkey", ondelete="CASCADE"),
    )
    for name, columns, where in (
        ("registries_common_key", ["host"], "owner_id IS NULL"),
        ("registries_own_key", ["host", "owner_id"], "owner_id IS NOT NULL"),
    ):
        op.create_index(name, "registries", columns, unique=True, postgresql_where=sa.text(where))


def downgrade() -> None:
    op.drop_table("registries")
    op.execute("DELETE FROM images WHERE kind <> 'registered'")
    for name in (*_COLUMNS, *_WORDS):
        op.drop_column("images", name)
    op.drop_column("tasks", "tries")
