"""Kernels with roles, networks of cluster sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("kernels", sa.Column("left_at", sa.DateTime(timezone=True)))
    op.add_column("kernels", sa.Column("joining", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index("kernels_joining_idx", "kernels", ["session_id"], postgresql_where=sa.text("joining"))
    op.create_table(
        "cluster_networks",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("subnet", postgresql.CIDR(), nullable=False),
        sa.Column("vni", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="cluster_networks_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="cluster_networks_session_id_fkey", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("subnet", name="cluster_networks_subnet_key"),
        sa.UniqueConstraint("vni", name="cluster_networks_vni_key"),
    )


def downgrade() -> None:
    op.drop_table("cluster_networks")
    op.drop_index("kernels_joining_idx", "kernels")
    op.drop_column("kernels", "joining")
    op.drop_column("kernels", "left_at")
