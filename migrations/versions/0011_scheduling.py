"""Resource groups, fair shares, policies, devices."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

UP = (
    """
    CREATE TABLE resource_groups (
        name text NOT NULL,
        description text NOT NULL DEFAULT '',
        ordering text NOT NULL DEFAULT 'fair_share',
        fit text NOT NULL DEFAULT 'pack',
        backfill boolean NOT NULL DEFAULT true,
        gpu_sharing boolean NOT NULL DEFAULT false,
        half_life_seconds double precision NOT NULL DEFAULT 604800,
        open boolean NOT NULL DEFAULT false,
        active boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT resource_groups_pkey PRIMARY KEY (name),
        CONSTRAINT resource_groups_ordering_check CHECK (ordering IN ('fifo', 'fair_share')),
        CONSTRAINT resource_groups_fit_check CHECK (fit IN ('pack', 'spread')),
        CONSTRAINT resource_groups_half_life_check CHECK (half_life_seconds BETWEEN 60 AND 315360000)
    )
    """,
    "INSERT INTO resource_groups (name, description, open) VALUES ('default', 'Hosts that are in no other group.', true)",
    """
    CREATE TABLE resource_group_access (
        resource_group text NOT NULL,
        scope text NOT NULL,
        scope_id text NOT NULL,
        CONSTRAINT resource_group_access_pkey PRIMARY KEY (resource_group, scope, scope_id),
        CONSTRAINT resource_group_access_resource_group_fkey FOREIGN KEY (resource_group)
            REFERENCES resource_groups (name) ON DELETE CASCADE,
        CONSTRAINT resource_group_access_scope_check CHECK (scope IN ('user', 'project', 'domain'))
    )
    """,
    """
    CREATE TABLE fair_shares (
        resource_group text NOT NULL,
        user_id uuid NOT NULL,
        weight double precision NOT NULL,
        CONSTRAINT fair_shares_pkey PRIMARY KEY (resource_group, user_id),
        CONSTRAINT fair_shares_resource_group_fkey FOREIGN KEY (resource_group)
            REFERENCES resource_groups (name) ON DELETE CASCADE,
        CONSTRAINT fair_shares_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
        CONSTRAINT fair_shares_weight_check CHECK (weight BETWEEN 0.001 AND 1000)
    )
    """,
    "CREATE INDEX fair_shares_user_id_idx ON fair_shares (user_id)",
    """
    CREATE TABLE fair_usage (
        resource_group text NOT NULL,
        user_id uuid NOT NULL,
        name text NOT NULL,
        amount double precision NOT NULL,
        at timestamptz NOT NULL,
        CONSTRAINT fair_usage_pkey PRIMARY KEY (resource_group, user_id, name),
        CONSTRAINT fair_usage_resource_group_fkey FOREIGN KEY (resource_group)
            REFERENCES resource_groups (name) ON DELETE CASCADE,
        CONSTRAINT fair_usage_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX fair_usage_user_id_idx ON fair_usage (user_id)",
    """
    ALTER TABLE agents
        ADD COLUMN resource_group text NOT NULL DEFAULT 'default'
            CONSTRAINT agents_resource_group_fkey REFERENCES resource_groups (name),
        ADD COLUMN labels jsonb NOT NULL DEFAULT '{}'
    """,
    """
    ALTER TABLE sessions
        ADD COLUMN resource_group text NOT NULL DEFAULT 'default'
            CONSTRAINT sessions_resource_group_fkey REFERENCES resource_groups (name),
        ADD COLUMN constraints jsonb NOT NULL DEFAULT '{}'
    """,
    # Policies: limits with a name, for many scopes. What binds a scope stands in `quotas`, wherever it comes from.
    """
    CREATE TABLE policies (
        name text NOT NULL,
        description text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT policies_pkey PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE policy_limits (
        policy text NOT NULL,
        name text NOT NULL,
        max_amount bigint NOT NULL,
        waits boolean NOT NULL DEFAULT false,
        CONSTRAINT policy_limits_pkey PRIMARY KEY (policy, name),
        CONSTRAINT policy_limits_policy_fkey FOREIGN KEY (policy) REFERENCES policies (name) ON DELETE CASCADE,
        CONSTRAINT policy_limits_max_amount_check CHECK (max_amount >= 0)
    )
    """,
    """
    CREATE TABLE policy_assignments (
        scope text NOT NULL,
        scope_id text NOT NULL,
        policy text NOT NULL,
        CONSTRAINT policy_assignments_pkey PRIMARY KEY (scope, scope_id),
        CONSTRAINT policy_assignments_policy_fkey FOREIGN KEY (policy) REFERENCES policies (name),
        CONSTRAINT policy_assignments_scope_check CHECK (scope IN ('keypair', 'user', 'project', 'domain'))
    )
    """,
    "CREATE INDEX policy_assignments_policy_idx ON policy_assignments (policy)",
    """
    ALTER TABLE quotas
        ADD COLUMN queued bigint NOT NULL DEFAULT 0,
        ADD COLUMN waits boolean NOT NULL DEFAULT false,
        ADD COLUMN policy text CONSTRAINT quotas_policy_fkey REFERENCES policies (name),
        DROP CONSTRAINT quotas_scope_check,
        ADD CONSTRAINT quotas_scope_check CHECK (scope IN ('keypair', 'user', 'project', 'domain')),
        DROP CONSTRAINT quotas_amounts_check,
        ADD CONSTRAINT quotas_amounts_check CHECK (max_amount >= 0 AND used >= 0 AND queued >= 0)
    """,
    "ALTER TABLE quota_uses ADD COLUMN placed boolean NOT NULL DEFAULT false",
    """
    CREATE TABLE devices (
        agent_id text NOT NULL,
        name text NOT NULL,
        model text NOT NULL DEFAULT '',
        memory_mib bigint NOT NULL,
        info jsonb NOT NULL DEFAULT '{}',
        seen_at timestamptz NOT NULL,
        out_since timestamptz,
        out_reason text,
        out_by text,
        CONSTRAINT devices_pkey PRIMARY KEY (agent_id, name),
        CONSTRAINT devices_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
        CONSTRAINT devices_out_check CHECK ((out_since IS NULL) = (out_reason IS NULL) AND (out_since IS NULL) = (out_by IS NULL)),
        CONSTRAINT devices_out_by_check CHECK (out_by IN ('admin', 'health'))
    )
    """,
    """
    CREATE TABLE device_checks (
        id bigint GENERATED ALWAYS AS IDENTITY,
        agent_id text NOT NULL,
        name text NOT NULL,
        session_id uuid,
        kernel_id uuid,
        phase text NOT NULL,
        passed boolean NOT NULL,
        data jsonb NOT NULL DEFAULT '{}',
        at timestamptz NOT NULL,
        CONSTRAINT device_checks_pkey PRIMARY KEY (id),
        CONSTRAINT device_checks_phase_check CHECK (phase IN ('handover', 'release', 'watch'))
    )
    """,
    "CREATE INDEX device_checks_session_id_idx ON device_checks (session_id)",
    "CREATE INDEX device_checks_at_idx ON device_checks (at)",
)

DOWN = (
    "DROP TABLE device_checks",
    "DROP TABLE devices",
    "ALTER TABLE quota_uses DROP COLUMN placed",
    "DELETE FROM quotas WHERE scope = 'keypair'",
    """
    ALTER TABLE quotas
        DROP COLUMN queued, DROP COLUMN waits, DROP COLUMN policy,
        DROP CONSTRAINT quotas_scope_check,
        ADD CONSTRAINT quotas_scope_check CHECK (scope IN ('user', 'project', 'domain')),
        DROP CONSTRAINT IF EXISTS quotas_amounts_check,
        ADD CONSTRAINT quotas_amounts_check CHECK (max_amount >= 0 AND used >= 0)
    """,
    "DROP TABLE policy_assignments",
    "DROP TABLE policy_limits",
    "DROP TABLE policies",
    "ALTER TABLE sessions DROP COLUMN resource_group, DROP COLUMN constraints",
    "ALTER TABLE agents DROP COLUMN resource_group, DROP COLUMN labels",
    "DROP TABLE fair_usage",
    "DROP TABLE fair_shares",
    "DROP TABLE resource_group_access",
    "DROP TABLE resource_groups",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
