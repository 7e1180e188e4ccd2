"""Secrets that requests may be signed with, and signatures that were used."""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # sealed with the managers' key: whoever checks a signature needs the secret itself
    op.execute(
        """
        ALTER TABLE keypairs ADD COLUMN signing_sealed bytea, ADD COLUMN signing_since timestamptz,
            ADD CONSTRAINT keypairs_signing_check CHECK ((signing_sealed IS NULL) = (signing_since IS NULL))
        """
    )
    op.execute(
        """
        CREATE TABLE used_signatures (
            signature bytea PRIMARY KEY,
            good_until timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX used_signatures_good_until_idx ON used_signatures (good_until)")
    # how far somebody has read a run whose output is fetched piece by piece, by a name that the client chose
    op.execute(
        """
        CREATE TABLE run_readers (
            id uuid PRIMARY KEY,
            state jsonb NOT NULL,
            read_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute("CREATE INDEX run_readers_read_at_idx ON run_readers (read_at)")


def downgrade() -> None:
    op.execute("DROP TABLE run_readers")
    op.execute("DROP TABLE used_signatures")
    op.execute("ALTER TABLE keypairs DROP COLUMN signing_sealed, DROP COLUMN signing_since")
