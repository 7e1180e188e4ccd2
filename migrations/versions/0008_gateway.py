"""Public keys for the SSH gateway."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("access_key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="ssh_keys_pkey"),
        sa.ForeignKeyConstraint(
            ["access_key"], ["keypairs.access_key"], name="ssh_keys_access_key_fkey", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("fingerprint", name="ssh_keys_fingerprint_key"),
    )
    op.create_index("ssh_keys_access_key_idx", "ssh_keys", ["access_key"])


def downgrade() -> None:
    op.drop_table("ssh_keys")
