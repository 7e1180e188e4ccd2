"""Services of sessions, and tickets."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = (
    """
    CREATE TABLE services (
        session_id uuid NOT NULL,
        name text NOT NULL,
        kind text NOT NULL,
        protocol text NOT NULL,
        port bigint NOT NULL,
        kernels text NOT NULL,
        spec jsonb NOT NULL DEFAULT '{}',
        keep_prefix boolean NOT NULL DEFAULT false,
        generation bigint NOT NULL DEFAULT 1,
        settled boolean NOT NULL DEFAULT false,
        started_at timestamptz NOT NULL,
        deadline_at timestamptz NOT NULL,
        CONSTRAINT services_pkey PRIMARY KEY (session_id, name),
        CONSTRAINT services_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE,
        CONSTRAINT services_session_id_port_key UNIQUE (session_id, port),
        CONSTRAINT services_protocol_check CHECK (protocol IN ('http', 'tcp')),
        CONSTRAINT services_port_check CHECK (port BETWEEN 1 AND 65535)
    )
    """,
    """
    CREATE TABLE service_instances (
        session_id uuid NOT NULL,
        name text NOT NULL,
        kernel_id uuid NOT NULL,
        attempt bigint NOT NULL DEFAULT 1,
        generation bigint NOT NULL DEFAULT 1,
        state text NOT NULL,
        restarts bigint NOT NULL DEFAULT 0,
        message text,
        log_tail text,
        run_id text,
        changed_at timestamptz NOT NULL,
        boot_no bigint NOT NULL DEFAULT 0,
        report_seq bigint NOT NULL DEFAULT 0,
        CONSTRAINT service_instances_pkey PRIMARY KEY (session_id, name, kernel_id),
        CONSTRAINT service_instances_kernel_id_fkey FOREIGN KEY (kernel_id) REFERENCES kernels (id) ON DELETE CASCADE,
        CONSTRAINT service_instances_service_fkey FOREIGN KEY (session_id, name)
            REFERENCES services (session_id, name) ON DELETE CASCADE,
        CONSTRAINT service_instances_state_check
            CHECK (state IN ('starting', 'healthy', 'unhealthy', 'failed', 'stopped'))
    )
    """,
    "CREATE INDEX service_instances_kernel_id_idx ON service_instances (kernel_id)",
    """
    CREATE TABLE service_tickets (
        token_hash bytea NOT NULL,
        kind text NOT NULL,
        session_id uuid NOT NULL,
        name text NOT NULL,
        user_id uuid NOT NULL,
        access_key text NOT NULL,
        expires_at timestamptz NOT NULL,
        used_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT service_tickets_pkey PRIMARY KEY (token_hash),
        CONSTRAINT service_tickets_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
        CONSTRAINT service_tickets_access_key_fkey FOREIGN KEY (access_key)
            REFERENCES keypairs (access_key) ON DELETE CASCADE,
        CONSTRAINT service_tickets_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE,
        CONSTRAINT service_tickets_kind_check CHECK (kind IN ('ticket', 'pass'))
    )
    """,
    "CREATE INDEX service_tickets_session_id_name_idx ON service_tickets (session_id, name)",
    "CREATE INDEX service_tickets_user_id_idx ON service_tickets (user_id)",
    "CREATE INDEX service_tickets_access_key_idx ON service_tickets (access_key)",
    "CREATE INDEX service_tickets_expires_at_idx ON service_tickets (expires_at)",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    for table in ("service_tickets", "service_instances", "services"):
        op.execute(f"DROP TABLE {table}")
