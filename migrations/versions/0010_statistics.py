"""Samples of what sessions use, usage and abuse."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

FUNCTIONS = (
    "CREATE TABLE samples_p_rest PARTITION OF samples DEFAULT",
    "CREATE TABLE sample_minutes_p_rest PARTITION OF sample_minutes DEFAULT",
    # One partition per UTC hour, made ahead; the names sort by time.
    """
    CREATE FUNCTION ensure_hours(parent text, first_hour timestamptz, hours integer) RETURNS integer LANGUAGE plpgsql AS $$
    DECLARE
        hour timestamptz;
        made integer := 0;
        part text;
    BEGIN
        FOR hour IN SELECT date_trunc('hour', first_hour, 'UTC') + make_interval(hours => n) FROM generate_series(0, hours - 1) n LOOP
            part := format('%s_p%s', parent, to_char(hour AT TIME ZONE 'UTC', 'YYYYMMDDHH24'));
            IF to_regclass(part) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', part, parent,
                               hour, hour + interval '1 hour');
                made := made + 1;
            END IF;
        END LOOP;
        RETURN made;
    END $$
    """,
    """
    CREATE FUNCTION drop_hours(parent text, before timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
    DECLARE
        part text;
        dropped integer := 0;
    BEGIN
        FOR part IN
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
            WHERE p.relname = parent AND c.relname ~ ('^' || parent || '_p[0-9]{10}$')
              AND c.relname < format('%s_p%s', parent, to_char(before AT TIME ZONE 'UTC', 'YYYYMMDDHH24'))
        LOOP
            EXECUTE format('DROP TABLE %I', part);
            dropped := dropped + 1;
        END LOOP;
        RETURN dropped;
    END $$
    """,
    "SELECT ensure_hours('samples', now(), 3)",
    "SELECT ensure_partitions('sample_minutes', (now() AT TIME ZONE 'UTC')::date, 3)",
    # Usage is what allocations were, from when to when: whoever takes or frees slots, it is written down here.
    """
    CREATE FUNCTION usage_follows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO usage (kernel_id, session_id, session_name, user_id, project_id, domain, agent_id, name, amount, share, since_at)
                SELECT c.kernel_id, s.id, s.name, s.user_id, s.project_id, s.domain, c.agent_id, c.name, c.amount,
                    c.amount / greatest(r.reported, c.amount)::double precision, now()
                FROM changed c JOIN kernels k ON k.id = c.kernel_id JOIN sessions s ON s.id = k.session_id
                JOIN resources r ON r.agent_id = c.agent_id AND r.name = c.name;
        ELSE
            UPDATE usage u SET until_at = greatest(now(), u.since_at) FROM changed c
                WHERE u.kernel_id = c.kernel_id AND u.name = c.name AND u.until_at IS NULL;
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER usage_begins AFTER INSERT ON allocations
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION usage_follows()
    """,
    """
    CREATE TRIGGER usage_ends AFTER DELETE ON allocations
        REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION usage_follows()
    """,
    # What is held while this migration runs has been held since its kernel started.
    """
    INSERT INTO usage (kernel_id, session_id, session_name, user_id, project_id, domain, agent_id, name, amount, share, since_at)
        SELECT a.kernel_id, s.id, s.name, s.user_id, s.project_id, s.domain, a.agent_id, a.name, a.amount,
            a.amount / greatest(r.reported, a.amount)::double precision, coalesce(k.started_at, s.status_changed_at)
        FROM allocations a JOIN kernels k ON k.id = a.kernel_id JOIN sessions s ON s.id = k.session_id
        JOIN resources r ON r.agent_id = a.agent_id AND r.name = a.name
    """,
)


def upgrade() -> None:
    op.add_column("status_history", sa.Column("cause", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_table(
        "samples",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cpu_seconds", sa.Double(), nullable=False),
        sa.Column("mem_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=True),
        sa.Column("io_read_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("io_write_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("net_rx_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("net_tx_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("pids", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("forks_refused", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("oom_kills", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpus", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpu_mem_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("kernel_id", "at", name=op.f("samples_pkey")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_table(
        "sample_minutes",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cpu_seconds", sa.Double(), nullable=False),
        sa.Column("mem_byte_seconds", sa.Double(), nullable=False),
        sa.Column("mem_max_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=True),
        sa.Column("io_read_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("io_write_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("net_rx_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("net_tx_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("pids_max", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("forks_refused", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("oom_kills", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpus", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpu_mem_byte_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("gpu_mem_max_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("kernel_id", "at", name=op.f("sample_minutes_pkey")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("session_name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("since_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("until_at >= since_at", name=op.f("usage_order_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("usage_pkey")),
    )
    op.create_index(
        "usage_held_key", "usage", ["kernel_id", "name"], unique=True, postgresql_where=sa.text("until_at IS NULL")
    )
    op.create_index(op.f("usage_until_at_idx"), "usage", ["until_at"], unique=False)
    op.create_table(
        "kernel_logs",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.LargeBinary(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.id"], name=op.f("kernel_logs_kernel_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kernel_id", "attempt", name=op.f("kernel_logs_pkey")),
    )
    op.create_index(op.f("kernel_logs_kept_at_idx"), "kernel_logs", ["kept_at"], unique=False)
    op.create_table(
        "watch_rules",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("scope", "name", name=op.f("watch_rules_pkey")),
    )
    op.create_table(
        "idle_warnings",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("checker", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("warned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("idle_warnings_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("idle_warnings_pkey")),
    )
    op.create_index(op.f("idle_warnings_due_at_idx"), "idle_warnings", ["due_at"], unique=False)
    op.create_table(
        "idle_exemptions",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("by_access_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("idle_exemptions_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("idle_exemptions_pkey")),
    )

    for statement in FUNCTIONS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION usage_follows CASCADE")
    for table in (
        "idle_exemptions",
        "idle_warnings",
        "watch_rules",
        "kernel_logs",
        "usage",
        "sample_minutes",
        "samples",
    ):
        op.drop_table(table)
    for function in ("drop_hours", "ensure_hours"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_column("status_history", "cause")
