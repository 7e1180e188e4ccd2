"""Volumes, their shares and mounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("uid", sa.BigInteger()))
    op.add_column("users", sa.Column("gid", sa.BigInteger()))
    op.create_check_constraint(op.f("users_ids_check"), "users", "uid > 0 AND gid > 0")
    op.create_table(
        "volumes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="ready", nullable=False),
        sa.Column("quota_bytes", sa.BigInteger()),
        sa.Column("quota_files", sa.BigInteger()),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("gid", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.Uuid()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="volumes_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="volumes_user_id_fkey"),
        sa.CheckConstraint("status IN ('ready', 'making', 'removing')", name=op.f("volumes_status_check")),
        sa.CheckConstraint("quota_bytes >= 0 AND quota_files >= 0", name=op.f("volumes_quota_check")),
    )
    op.create_index(
        "volumes_name_key",
        "volumes",
        ["user_id", "name"],
        unique=True,
        postgresql_where=sa.text("status <> 'removing'"),
    )
    op.create_table(
        "volume_shares",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("project_id", sa.Uuid()),
        sa.Column("read_only", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="volume_shares_pkey"),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name="volume_shares_volume_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="volume_shares_user_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="volume_shares_project_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint("(user_id IS NULL) <> (project_id IS NULL)", name=op.f("volume_shares_with_check")),
        sa.UniqueConstraint("volume_id", "user_id", name="volume_shares_volume_id_user_id_key"),
        sa.UniqueConstraint("volume_id", "project_id", name="volume_shares_volume_id_project_id_key"),
    )
    op.create_index("volume_shares_user_id_idx", "volume_shares", ["user_id"])
    op.create_index("volume_shares_project_id_idx", "volume_shares", ["project_id"])
    op.create_table(
        "volume_mounts",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("subpath", sa.Text(), server_default="", nullable=False),
        sa.Column("read_only", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "path", name="volume_mounts_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="volume_mounts_session_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name="volume_mounts_volume_id_fkey", ondelete="CASCADE"),
        sa.UniqueConstraint(
            "session_id", "volume_id", "subpath", name="volume_mounts_session_id_volume_id_subpath_key"
        ),
    )
    op.create_index("volume_mounts_volume_id_idx", "volume_mounts", ["volume_id"])


def downgrade() -> None:
    op.drop_table("volume_mounts")
    op.drop_table("volume_shares")
    op.drop_table("volumes")
    op.drop_constraint(op.f("users_ids_check"), "users", type_="check")
    op.drop_column("users", "gid")
    op.drop_column("users", "uid")
