"""What placing in bulk needs."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Few sessions keep apart from others, and each session with labels is asked whether one of them does.
    op.execute(
        "CREATE INDEX sessions_apart_idx ON sessions (user_id) WHERE constraints ? 'apart_from' AND ended_at IS NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX sessions_apart_idx")
