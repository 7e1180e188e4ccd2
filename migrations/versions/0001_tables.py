"""Sessions, kernels, resources, and what happened."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_tokens",
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("agent_tokens_pkey")),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), server_default="", nullable=False),
        sa.Column("architecture", sa.Text(), server_default="", nullable=False),
        sa.Column("version", sa.Text(), server_default="", nullable=False),
        sa.Column("schedulable", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("boot_no", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("info", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("images", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lost", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("agents_pkey")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("access_key", sa.Text(), nullable=True),
        sa.Column("owner_access_key", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("repeats", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", "at", name=op.f("audit_pkey")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(op.f("audit_seq_idx"), "audit", ["seq"], unique=False)
    op.create_index("audit_unstamped_idx", "audit", ["id"], unique=False, postgresql_where=sa.text("seq IS NULL"))
    op.create_table(
        "domains",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("domains_pkey")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("cause", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", "at", name=op.f("events_pkey")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(op.f("events_seq_idx"), "events", ["seq"], unique=False)
    op.create_index("events_unstamped_idx", "events", ["id"], unique=False, postgresql_where=sa.text("seq IS NULL"))
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("answer", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index(op.f("idempotency_keys_created_at_idx"), "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "images",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("images_pkey")),
    )
    op.create_table(
        "managers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("agent_url", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("managers_pkey")),
    )
    op.create_table(
        "quotas",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("scope IN ('user', 'project', 'domain')", name=op.f("quotas_scope_check")),
        sa.CheckConstraint("max_amount >= 0 AND used >= 0", name=op.f("quotas_amounts_check")),
        sa.PrimaryKeyConstraint("scope", "scope_id", "name", name=op.f("quotas_pkey")),
    )
    op.create_table(
        "sequencer",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("sequencer_pkey")),
    )
    op.create_table(
        "session_transition",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "event IN ('schedule', 'prepare', 'pull', 'start', 'degrade', 'recover', 'restart', 'destroy', 'finish', 'expire', 'fail', 'gone', 'break', 'force')",
            name=op.f("session_transition_event_check"),
        ),
        sa.PrimaryKeyConstraint("source", "event", name=op.f("session_transition_pkey")),
        sa.UniqueConstraint("source", "event", "target", name=op.f("session_transition_source_event_target_key")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("cancel", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("claimed_by", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'done', 'failed', 'cancelled')", name=op.f("tasks_status_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
    )
    op.create_index(op.f("tasks_finished_at_idx"), "tasks", ["finished_at"], unique=False)
    op.create_index(
        "tasks_open_idx",
        "tasks",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(op.f("tasks_user_id_created_at_idx"), "tasks", ["user_id", "created_at"], unique=False)
    op.create_table(
        "image_aliases",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["image"], ["images.name"], name=op.f("image_aliases_image_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("alias", name=op.f("image_aliases_pkey")),
    )
    op.create_index(op.f("image_aliases_image_idx"), "image_aliases", ["image"], unique=False)
    op.create_table(
        "projects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name=op.f("projects_domain_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("projects_pkey")),
        sa.UniqueConstraint("domain", "name", name=op.f("projects_domain_name_key")),
    )
    op.create_table(
        "resources",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("capacity", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reported", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("reported BETWEEN 0 AND capacity", name=op.f("resources_reported_check")),
        sa.CheckConstraint("used BETWEEN 0 AND capacity", name=op.f("resources_used_check")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("resources_agent_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "name", name=op.f("resources_pkey")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), server_default="user", nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('superadmin', 'domain_admin', 'user', 'monitor')", name=op.f("users_role_check")),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name=op.f("users_domain_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("email", name=op.f("users_email_key")),
    )
    op.create_table(
        "keypairs",
        sa.Column("access_key", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("keypairs_user_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("access_key", name=op.f("keypairs_pkey")),
    )
    op.create_index(op.f("keypairs_user_id_idx"), "keypairs", ["user_id"], unique=False)
    op.create_table(
        "project_members",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("project_members_project_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("project_members_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "user_id", name=op.f("project_members_pkey")),
    )
    op.create_index(op.f("project_members_user_id_idx"), "project_members", ["user_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("access_key", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("session_type", sa.Text(), nullable=False),
        sa.Column("cluster_mode", sa.Text(), nullable=False),
        sa.Column("cluster_size", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("prev_status", sa.Text(), nullable=True),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("activity", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "requested_slots", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("tag", sa.Text(), nullable=True),
        sa.Column("environ", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("bootstrap_script", sa.Text(), nullable=True),
        sa.Column("bootstrap_required", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("startup_command", sa.Text(), nullable=True),
        sa.Column("shm_mib", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.BigInteger(), server_default=sa.text("10"), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("max_wait_seconds", sa.Double(), nullable=True),
        sa.Column("result", sa.Text(), server_default="UNDEFINED", nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("failed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("agent_lost", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("notices", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("status_changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_activity_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("execution_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("main_kernel_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED'))",
            name=op.f("sessions_ended_at_check"),
        ),
        sa.CheckConstraint("result IN ('UNDEFINED', 'SUCCESS', 'FAILURE')", name=op.f("sessions_result_check")),
        sa.CheckConstraint(
            "session_type IN ('interactive', 'batch', 'inference', 'worker', 'system')",
            name=op.f("sessions_session_type_check"),
        ),
        sa.CheckConstraint(
            "status IN ('PENDING', 'SCHEDULED', 'PREPARING', 'PULLING', 'RUNNING', 'RUNNING_DEGRADED', 'RESTARTING', 'TERMINATING', 'TERMINATED', 'CANCELLED', 'ERROR')",
            name=op.f("sessions_status_check"),
        ),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name=op.f("sessions_domain_fkey")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("sessions_project_id_fkey")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("sessions_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pkey")),
    )
    op.create_index("sessions_all_idx", "sessions", ["created_at", "id"], unique=False)
    op.create_index(
        "sessions_deadline_idx",
        "sessions",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.create_index(
        "sessions_ended_idx", "sessions", ["ended_at"], unique=False, postgresql_where=sa.text("ended_at IS NOT NULL")
    )
    op.create_index(
        "sessions_expires_idx",
        "sessions",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.create_index("sessions_list_idx", "sessions", ["user_id", "created_at", "id"], unique=False)
    op.create_index(
        "sessions_live_name_key",
        "sessions",
        ["user_id", "name"],
        unique=True,
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.create_index(
        "sessions_queue_idx",
        "sessions",
        ["priority", "created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_table(
        "executions",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tail", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(finished_at IS NULL) = (status = 'running')", name=op.f("executions_finished_at_check")),
        sa.CheckConstraint("status IN ('running', 'done')", name=op.f("executions_status_check")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("executions_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("executions_pkey")),
    )
    op.create_index("executions_finished_idx", "executions", ["finished_at"], unique=False)
    op.create_index(
        "executions_running_idx",
        "executions",
        ["kernel_id"],
        unique=False,
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(
        op.f("executions_session_id_started_at_idx"), "executions", ["session_id", "started_at"], unique=False
    )
    op.create_table(
        "kernels",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("role", sa.Text(), server_default="main", nullable=False),
        sa.Column("idx", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("slots", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("want", sa.Text(), server_default="NONE", nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_by", sa.Uuid(), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("observed", sa.Text(), nullable=True),
        sa.Column("seen_generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("exit", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("container_id", sa.Text(), nullable=True),
        sa.Column("boot_no", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("report_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(want = 'NONE') = (agent_id IS NULL)", name=op.f("kernels_agent_check")),
        sa.CheckConstraint(
            "observed IN ('PREPARING', 'PULLING', 'RUNNING', 'EXITED', 'FAILED', 'GONE')",
            name=op.f("kernels_observed_check"),
        ),
        sa.CheckConstraint("want IN ('NONE', 'RUN', 'GONE')", name=op.f("kernels_want_check")),
        sa.CheckConstraint("seen_generation <= generation", name=op.f("kernels_seen_generation_check")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("kernels_agent_id_fkey")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("kernels_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("kernels_pkey")),
    )
    op.create_index(
        "kernels_intent_idx",
        "kernels",
        ["agent_id", "next_try_at"],
        unique=False,
        postgresql_where=sa.text("seen_generation < generation"),
    )
    op.create_index(
        "kernels_on_agent_idx",
        "kernels",
        ["agent_id"],
        unique=False,
        postgresql_where=sa.text("want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'"),
    )
    op.create_index(op.f("kernels_session_id_attempt_idx"), "kernels", ["session_id", "attempt"], unique=False)
    op.create_table(
        "quota_uses",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("quota_uses_amount_check")),
        sa.ForeignKeyConstraint(
            ["scope", "scope_id", "name"],
            ["quotas.scope", "quotas.scope_id", "quotas.name"],
            name=op.f("quota_uses_scope_scope_id_name_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("quota_uses_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "scope", "scope_id", "name", name=op.f("quota_uses_pkey")),
    )
    op.create_table(
        "status_history",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("event", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(source IS NULL) = (event IS NULL) AND (source IS NOT NULL OR target = 'PENDING')",
            name=op.f("status_history_creation_check"),
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("status_history_session_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["source", "event", "target"],
            ["session_transition.source", "session_transition.event", "session_transition.target"],
            name="status_history_transition_fkey",
        ),
        sa.PrimaryKeyConstraint("session_id", "version", name=op.f("status_history_pkey")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("access_key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["access_key"], ["keypairs.access_key"], name=op.f("tokens_access_key_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("tokens_pkey")),
        sa.UniqueConstraint("token_hash", name=op.f("tokens_token_hash_key")),
    )
    op.create_index(op.f("tokens_access_key_idx"), "tokens", ["access_key"], unique=False)
    op.create_table(
        "allocations",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("allocations_amount_check")),
        sa.ForeignKeyConstraint(
            ["agent_id", "name"], ["resources.agent_id", "resources.name"], name=op.f("allocations_agent_id_name_fkey")
        ),
        sa.ForeignKeyConstraint(["kernel_id"], ["kernels.id"], name=op.f("allocations_kernel_id_fkey")),
        sa.PrimaryKeyConstraint("kernel_id", "name", name=op.f("allocations_pkey")),
    )
    op.create_index(op.f("allocations_agent_id_name_idx"), "allocations", ["agent_id", "name"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("allocations_agent_id_name_idx"), table_name="allocations")
    op.drop_table("allocations")
    op.drop_index(op.f("tokens_access_key_idx"), table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("status_history")
    op.drop_table("quota_uses")
    op.drop_index(op.f("kernels_session_id_attempt_idx"), table_name="kernels")
    op.drop_index(
        "kernels_on_agent_idx",
        table_name="kernels",
        postgresql_where=sa.text("want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'"),
    )
    op.drop_index("kernels_intent_idx", table_name="kernels", postgresql_where=sa.text("seen_generation < generation"))
    op.drop_table("kernels")
    op.drop_index(op.f("executions_session_id_started_at_idx"), table_name="executions")
    op.drop_index("executions_running_idx", table_name="executions", postgresql_where=sa.text("status = 'running'"))
    op.drop_index("executions_finished_idx", table_name="executions")
    op.drop_table("executions")
    op.drop_index("sessions_queue_idx", table_name="sessions", postgresql_where=sa.text("status = 'PENDING'"))
    op.drop_index(
        "sessions_live_name_key",
        table_name="sessions",
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.drop_index("sessions_list_idx", table_name="sessions")
    op.drop_index(
        "sessions_expires_idx",
        table_name="sessions",
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.drop_index("sessions_ended_idx", table_name="sessions", postgresql_where=sa.text("ended_at IS NOT NULL"))
    op.drop_index(
        "sessions_deadline_idx",
        table_name="sessions",
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ERROR', 'TERMINATED')"),
    )
    op.drop_index("sessions_all_idx", table_name="sessions")
    op.drop_table("sessions")
    op.drop_index(op.f("project_members_user_id_idx"), table_name="project_members")
    op.drop_table("project_members")
    op.drop_index(op.f("keypairs_user_id_idx"), table_name="keypairs")
    op.drop_table("keypairs")
    op.drop_table("users")
    op.drop_table("resources")
    op.drop_table("projects")
    op.drop_index(op.f("image_aliases_image_idx"), table_name="image_aliases")
    op.drop_table("image_aliases")
    op.drop_index(op.f("tasks_user_id_created_at_idx"), table_name="tasks")
    op.drop_index("tasks_open_idx", table_name="tasks", postgresql_where=sa.text("status IN ('queued', 'running')"))
    op.drop_index(op.f("tasks_finished_at_idx"), table_name="tasks")
    op.drop_table("tasks")
    op.drop_table("session_transition")
    op.drop_table("sequencer")
    op.drop_table("quotas")
    op.drop_table("managers")
    op.drop_table("images")
    op.drop_index(op.f("idempotency_keys_created_at_idx"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index("events_unstamped_idx", table_name="events", postgresql_where=sa.text("seq IS NULL"))
    op.drop_index(op.f("events_seq_idx"), table_name="events")
    op.drop_table("events")
    op.drop_table("domains")
    op.drop_index("audit_unstamped_idx", table_name="audit", postgresql_where=sa.text("seq IS NULL"))
    op.drop_index(op.f("audit_seq_idx"), table_name="audit")
    op.drop_table("audit")
    op.drop_table("agents")
    op.drop_table("agent_tokens")
