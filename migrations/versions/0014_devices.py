"""What agents tell of their devices, the power that sessions draw, and sessions that are placed again elsewhere."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

UP = (
    """
    ALTER TABLE devices
        ADD COLUMN offered_mib bigint NOT NULL DEFAULT 0,
        ADD COLUMN healthy boolean NOT NULL DEFAULT true,
        ADD COLUMN missing_since timestamptz,
        ADD CONSTRAINT devices_amounts_check CHECK (memory_mib >= 0 AND offered_mib >= 0)
    """,
    # The list of a host's devices that is true: of which start of its daemon, and the how many-eth of that.
    """
    ALTER TABLE agents
        ADD COLUMN devices_boot_no bigint NOT NULL DEFAULT 0,
        ADD COLUMN devices_seq bigint NOT NULL DEFAULT 0
    """,
    """
    ALTER TABLE device_checks
        ADD COLUMN check_id text NOT NULL DEFAULT gen_random_uuid()::text,
        ADD COLUMN attempt bigint NOT NULL DEFAULT 1,
        ADD CONSTRAINT device_checks_agent_id_check_id_key UNIQUE (agent_id, check_id)
    """,
    "ALTER TABLE device_checks ALTER COLUMN check_id DROP DEFAULT",
    "CREATE INDEX device_checks_agent_id_name_idx ON device_checks (agent_id, name)",
    # A device failed before its work began: the session is placed again, and its own retries are not touched.
    "ALTER TABLE sessions ADD COLUMN replaced bigint NOT NULL DEFAULT 0",
    "ALTER TABLE samples ADD COLUMN gpu_joules double precision NOT NULL DEFAULT 0",
    "ALTER TABLE sample_minutes ADD COLUMN gpu_joules double precision NOT NULL DEFAULT 0",
)

DOWN = (
    "ALTER TABLE sample_minutes DROP COLUMN gpu_joules",
    "ALTER TABLE samples DROP COLUMN gpu_joules",
    "ALTER TABLE sessions DROP COLUMN replaced",
    "DROP INDEX device_checks_agent_id_name_idx",
    "ALTER TABLE device_checks DROP COLUMN check_id, DROP COLUMN attempt",
    "ALTER TABLE agents DROP COLUMN devices_boot_no, DROP COLUMN devices_seq",
    "ALTER TABLE devices DROP COLUMN offered_mib, DROP COLUMN healthy, DROP COLUMN missing_since",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
