"""Roles of projects, scopes of tokens, passwords, what sign-ins and requests are counted by."""

from __future__ import annotations

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
