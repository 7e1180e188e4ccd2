"""What containers of a resource group may do."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


UP = (
    """
    ALTER TABLE resource_groups
        ADD COLUMN profile text NOT NULL DEFAULT 'hardened',
        ADD COLUMN egress text NOT NULL DEFAULT 'open',
        ADD CONSTRAINT resource_groups_profile_check CHECK (profile IN ('hardened', 'standard')),
        ADD CONSTRAINT resource_groups_egress_check CHECK (egress IN ('none', 'open'))
    """,
)
DOWN = ("ALTER TABLE resource_groups DROP COLUMN egress, DROP COLUMN profile",)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
