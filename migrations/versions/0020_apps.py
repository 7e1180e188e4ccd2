"""Apps with their versions and archives; worker sessions, and what they are asked for."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_TABLES = (
    """
    CREATE TABLE apps (
        id uuid NOT NULL,
        name text NOT NULL,
        user_id uuid,
        project_id uuid,
        domain text,
        created_by uuid,
        version bigint NOT NULL DEFAULT 1,
        created_at timestamptz NOT NULL DEFAULT now(),
        changed_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT apps_pkey PRIMARY KEY (id),
        CONSTRAINT apps_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
        CONSTRAINT apps_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id) ON DELETE CASCADE,
        CONSTRAINT apps_domain_fkey FOREIGN KEY (domain) REFERENCES domains (name) ON DELETE CASCADE,
        CONSTRAINT apps_created_by_fkey FOREIGN KEY (created_by) REFERENCES users (id) ON DELETE SET NULL,
        CONSTRAINT apps_scope_check CHECK (num_nonnulls(user_id, project_id, domain) = 1)
    )
    """,
    *(
        f"CREATE UNIQUE INDEX apps_{scope}_name_key ON apps ({scope}, name) WHERE {scope} IS NOT NULL"
        for scope in ("user_id", "project_id", "domain")
    ),
    """
    CREATE TABLE app_versions (
        app_id uuid NOT NULL,
        version bigint NOT NULL,
        definition jsonb NOT NULL DEFAULT '{}',
        archive_bytes bigint NOT NULL DEFAULT 0,
        archive_sha256 text,
        by_access_key text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT app_versions_pkey PRIMARY KEY (app_id, version),
        CONSTRAINT app_versions_app_id_fkey FOREIGN KEY (app_id) REFERENCES apps (id) ON DELETE CASCADE,
        CONSTRAINT app_versions_archive_check CHECK ((archive_sha256 IS NULL) = (archive_bytes = 0))
    )
    """,
    """
    CREATE TABLE app_chunks (
        app_id uuid NOT NULL,
        version bigint NOT NULL,
        number bigint NOT NULL,
        content bytea NOT NULL,
        CONSTRAINT app_chunks_pkey PRIMARY KEY (app_id, version, number),
        CONSTRAINT app_chunks_version_fkey FOREIGN KEY (app_id, version)
            REFERENCES app_versions (app_id, version) ON DELETE CASCADE
    )
    """,
    # packed already
    "ALTER TABLE app_chunks ALTER COLUMN content SET STORAGE EXTERNAL",
    """
    CREATE TABLE workers (
        session_id uuid NOT NULL,
        app_id uuid NOT NULL,
        app_version bigint NOT NULL,
        app jsonb NOT NULL DEFAULT '{}',
        ready_attempt bigint,
        ready_at timestamptz,
        idle_until_at timestamptz,
        open_calls bigint NOT NULL DEFAULT 0,
        call_count bigint NOT NULL DEFAULT 0,
        last_call_at timestamptz,
        tries bigint NOT NULL DEFAULT 0,
        claimed_until timestamptz,
        CONSTRAINT workers_pkey PRIMARY KEY (session_id),
        CONSTRAINT workers_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE,
        CONSTRAINT workers_open_calls_check CHECK (open_calls >= 0),
        CONSTRAINT workers_idle_check CHECK (open_calls = 0 OR idle_until_at IS NULL)
    )
    """,
    "CREATE INDEX workers_idle_idx ON workers (idle_until_at) WHERE idle_until_at IS NOT NULL",
    "CREATE INDEX workers_app_idx ON workers (app_id, app_version)",
    """
    CREATE TABLE calls (
        id uuid NOT NULL,
        session_id uuid NOT NULL,
        attempt bigint NOT NULL DEFAULT 1,
        user_id uuid NOT NULL,
        request_hash bytea NOT NULL,
        function text NOT NULL,
        input text,
        input_bytes bigint NOT NULL DEFAULT 0,
        timeout_seconds double precision,
        status text NOT NULL DEFAULT 'open',
        output text,
        output_kept boolean NOT NULL DEFAULT true,
        error text,
        progress text,
        partials bigint NOT NULL DEFAULT 0,
        reason text,
        created_at timestamptz NOT NULL DEFAULT now(),
        sent_at timestamptz,
        started_at timestamptz,
        finished_at timestamptz,
        cancel_at timestamptz,
        CONSTRAINT calls_pkey PRIMARY KEY (id),
        CONSTRAINT calls_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE,
        CONSTRAINT calls_status_check CHECK (status IN ('open', 'completed', 'failed', 'cancelled')),
        CONSTRAINT calls_finished_at_check CHECK ((finished_at IS NULL) = (status = 'open'))
    )
    """,
    "CREATE INDEX calls_session_id_created_at_idx ON calls (session_id, created_at)",
    "CREATE INDEX calls_open_idx ON calls (session_id) WHERE status = 'open'",
    "CREATE INDEX calls_finished_at_idx ON calls (finished_at)",
)
#: Alone writes open_calls, call_count, last_call_at; and idle_until_at, but for the beginning (a load that is done) and
#: `keepalive`. A call that was cancelled is not counted.
_CALLS_CHANGED = """
    CREATE FUNCTION calls_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            IF NEW.status = 'open' THEN
                UPDATE workers SET open_calls = open_calls + 1, idle_until_at = NULL WHERE session_id = NEW.session_id;
            END IF;
        ELSIF OLD.status = 'open' AND (TG_OP = 'DELETE' OR NEW.status <> 'open') THEN
            UPDATE workers w SET open_calls = w.open_calls - 1,
                call_count = w.call_count + (TG_OP = 'UPDATE' AND NEW.status <> 'cancelled')::integer,
                last_call_at = CASE WHEN TG_OP = 'UPDATE' THEN greatest(w.last_call_at, NEW.finished_at) ELSE w.last_call_at END,
                idle_until_at = CASE WHEN w.open_calls = 1 AND w.ready_at IS NOT NULL AND TG_OP = 'UPDATE'
                    THEN greatest(NEW.finished_at, w.ready_at)
                        + make_interval(secs => (SELECT s.idle_timeout_seconds FROM sessions s WHERE s.id = w.session_id)) END
            WHERE w.session_id = OLD.session_id;
        END IF;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    for statement in _TABLES:
        op.execute(statement)
    op.execute(_CALLS_CHANGED)
    op.execute(
        "CREATE TRIGGER calls_changed AFTER INSERT OR UPDATE OF status OR DELETE ON calls"
        " FOR EACH ROW EXECUTE FUNCTION calls_changed()"
    )


def downgrade() -> None:
    for table in ("calls", "workers", "app_chunks", "app_versions", "apps"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION calls_changed()")
