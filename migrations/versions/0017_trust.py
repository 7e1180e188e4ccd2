"""Certificates of agents, and what the audit keeps."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

UP = (
    # an agent that has renewed its certificate is known by the next one once it shows it, and for a while by the former
    """
    ALTER TABLE agents ADD COLUMN next_fingerprint text, ADD COLUMN former_fingerprint text,
        ADD COLUMN former_until timestamptz, ADD COLUMN renewed_at timestamptz, ADD COLUMN revoked_at timestamptz
    """,
    # points of the audit chain that are vouched for with the key: where keyed links begin, and what was forgotten by age
    """
    CREATE TABLE audit_anchors (
        kind text NOT NULL, seq bigint NOT NULL, chain bytea NOT NULL, at timestamptz NOT NULL, mac bytea NOT NULL,
        CONSTRAINT audit_anchors_pkey PRIMARY KEY (kind),
        CONSTRAINT audit_anchors_kind_check CHECK (kind IN ('keyed', 'forgotten'))
    )
    """,
    # links need the key from now on: a manager of the version before, which has none, must not make any beside ours
    "UPDATE sequencer SET name = 'audit_chain' WHERE name = 'audit'",
    # a partition of the audit goes as a whole; its rows do not go in any other way
    "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit EXECUTE FUNCTION never()",
)

DOWN = (
    "DROP TRIGGER audit_is_not_emptied ON audit",
    "UPDATE sequencer SET name = 'audit' WHERE name = 'audit_chain'",
    "DROP TABLE audit_anchors",
    """
    ALTER TABLE agents DROP COLUMN next_fingerprint, DROP COLUMN former_fingerprint, DROP COLUMN former_until,
        DROP COLUMN renewed_at, DROP COLUMN revoked_at
    """,
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
