"""What happens to sessions of a lost host, and deadlines."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE sessions ADD COLUMN on_agent_lost text NOT NULL DEFAULT 'keep',
            ADD COLUMN agent_lease_seconds double precision,
            ADD CONSTRAINT sessions_on_agent_lost_check CHECK (on_agent_lost IN ('keep', 'replace'))
        """
    )
    op.execute(
        """
        CREATE INDEX sessions_leased_idx ON sessions (id)
        WHERE on_agent_lost = 'replace' AND status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')
        """
    )
    # its host is silent for longer than it lets it run: it runs no more, whatever the host has not said yet
    op.execute("ALTER TABLE kernels ADD COLUMN fenced_at timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE kernels DROP COLUMN fenced_at")
    op.execute("DROP INDEX sessions_leased_idx")
    op.execute("ALTER TABLE sessions DROP COLUMN on_agent_lost, DROP COLUMN agent_lease_seconds")
