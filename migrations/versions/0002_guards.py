"""The guards: legal transitions, writers of `used`, an append-only audit, partitions; and the first rows."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As of this revision; a later one adds what the table in domain/session.py has gained since.
TRANSITIONS = (
    ("PENDING", "schedule", "SCHEDULED"),
    ("PENDING", "destroy", "CANCELLED"),
    ("PENDING", "expire", "CANCELLED"),
    ("PENDING", "force", "CANCELLED"),
    ("SCHEDULED", "prepare", "PREPARING"),
    ("SCHEDULED", "pull", "PULLING"),
    ("SCHEDULED", "start", "RUNNING"),
    ("SCHEDULED", "destroy", "TERMINATING"),
    ("SCHEDULED", "fail", "TERMINATING"),
    ("SCHEDULED", "force", "TERMINATED"),
    ("PREPARING", "pull", "PULLING"),
    ("PREPARING", "start", "RUNNING"),
    ("PREPARING", "destroy", "TERMINATING"),
    ("PREPARING", "fail", "TERMINATING"),
    ("PREPARING", "force", "TERMINATED"),
    ("PULLING", "prepare", "PREPARING"),
    ("PULLING", "start", "RUNNING"),
    ("PULLING", "destroy", "TERMINATING"),
    ("PULLING", "fail", "TERMINATING"),
    ("PULLING", "force", "TERMINATED"),
    ("RUNNING", "degrade", "RUNNING_DEGRADED"),
    ("RUNNING", "restart", "RESTARTING"),
    ("RUNNING", "destroy", "TERMINATING"),
    ("RUNNING", "finish", "TERMINATING"),
    ("RUNNING", "expire", "TERMINATING"),
    ("RUNNING", "fail", "TERMINATING"),
    ("RUNNING", "force", "TERMINATED"),
    ("RUNNING_DEGRADED", "recover", "RUNNING"),
    ("RUNNING_DEGRADED", "restart", "RESTARTING"),
    ("RUNNING_DEGRADED", "destroy", "TERMINATING"),
    ("RUNNING_DEGRADED", "finish", "TERMINATING"),
    ("RUNNING_DEGRADED", "expire", "TERMINATING"),
    ("RUNNING_DEGRADED", "fail", "TERMINATING"),
    ("RUNNING_DEGRADED", "force", "TERMINATED"),
    ("RESTARTING", "start", "RUNNING"),
    ("RESTARTING", "destroy", "TERMINATING"),
    ("RESTARTING", "fail", "TERMINATING"),
    ("RESTARTING", "force", "TERMINATED"),
    ("TERMINATING", "gone", "TERMINATED"),
    ("TERMINATING", "break", "ERROR"),
    ("TERMINATING", "force", "TERMINATED"),
    ("TERMINATED", "restart", "PENDING"),
    ("CANCELLED", "restart", "PENDING"),
    ("ERROR", "restart", "PENDING"),
)

FUNCTIONS = (
    # A session's status moves along the table or not at all, whoever writes.
    """
    CREATE FUNCTION session_status_guard() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM session_transition t WHERE t.source = OLD.status AND t.target = NEW.status) THEN
            RAISE EXCEPTION 'no transition leads from % to %', OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'sessions_transition_check';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER session_status_guard BEFORE UPDATE OF status ON sessions
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION session_status_guard()
    """,
    # The only writers of resources.used. Rows are locked in order, so that two bulk writers cannot deadlock.
    # NO KEY: the foreign keys of the inserted rows hold key-share locks, with which two writers would wait for each other.
    # capacity only ever shrinks here, towards what the agent reports.
    """
    CREATE FUNCTION allocations_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sign integer := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
    BEGIN
        PERFORM FROM resources r WHERE (r.agent_id, r.name) IN (SELECT c.agent_id, c.name FROM changed c)
            ORDER BY r.agent_id, r.name FOR NO KEY UPDATE;
        UPDATE resources r
            SET used = r.used + sign * c.amount,
                capacity = CASE WHEN sign > 0 THEN r.capacity ELSE GREATEST(r.reported, r.used - c.amount) END
            FROM (SELECT agent_id, name, sum(amount)::bigint AS amount FROM changed GROUP BY 1, 2) c
            WHERE r.agent_id = c.agent_id AND r.name = c.name;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER allocations_taken AFTER INSERT ON allocations
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION allocations_changed()
    """,
    """
    CREATE TRIGGER allocations_released AFTER DELETE ON allocations
        REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION allocations_changed()
    """,
    """
    CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% of % is not allowed', TG_OP, TG_TABLE_NAME USING ERRCODE = 'check_violation';
    END $$
    """,
    "CREATE TRIGGER allocations_are_not_edited BEFORE UPDATE ON allocations EXECUTE FUNCTION never()",
    # The same for quotas; a limit below present use forbids more, and takes nothing away.
    """
    CREATE FUNCTION quota_uses_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        sign integer := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
        full_one record;
    BEGIN
        PERFORM FROM quotas q
            WHERE (q.scope, q.scope_id, q.name) IN (SELECT c.scope, c.scope_id, c.name FROM changed c)
            ORDER BY q.scope, q.scope_id, q.name FOR NO KEY UPDATE;
        UPDATE quotas q SET used = q.used + sign * c.amount
            FROM (SELECT scope, scope_id, name, sum(amount)::bigint AS amount FROM changed GROUP BY 1, 2, 3) c
            WHERE q.scope = c.scope AND q.scope_id = c.scope_id AND q.name = c.name;
        IF sign > 0 THEN
            SELECT q.* INTO full_one FROM quotas q JOIN changed c USING (scope, scope_id, name)
                WHERE q.used > q.max_amount LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'quota exceeded' USING ERRCODE = 'check_violation', CONSTRAINT = 'quotas_limit_check',
                    DETAIL = format('The quota of %s %s allows %s of %s, and this would make it %s; end something, or ask an administrator for more.',
                        full_one.scope, full_one.scope_id, full_one.max_amount, full_one.name, full_one.used);
            END IF;
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER quota_uses_taken AFTER INSERT ON quota_uses
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION quota_uses_changed()
    """,
    """
    CREATE TRIGGER quota_uses_released AFTER DELETE ON quota_uses
        REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION quota_uses_changed()
    """,
    "CREATE TRIGGER quota_uses_are_not_edited BEFORE UPDATE ON quota_uses EXECUTE FUNCTION never()",
    # Audit rows are written once and stamped once; old ones go with their whole partition.
    """
    CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' OR OLD.seq IS NOT NULL
           OR (to_jsonb(NEW) - 'seq' - 'chain') <> (to_jsonb(OLD) - 'seq' - 'chain') THEN
            RAISE EXCEPTION 'audit rows are never changed' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()",
    "CREATE TABLE events_p_rest PARTITION OF events DEFAULT",
    "CREATE TABLE audit_p_rest PARTITION OF audit DEFAULT",
    # One partition per UTC day, made ahead; the names sort by time.
    """
    CREATE FUNCTION ensure_partitions(parent text, first_day date, days integer) RETURNS integer LANGUAGE plpgsql AS $$
    DECLARE
        day date;
        made integer := 0;
        part text;
    BEGIN
        FOR day IN SELECT first_day + n FROM generate_series(0, days - 1) n LOOP
            part := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
            IF to_regclass(part) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', part, parent,
                               day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
                made := made + 1;
            END IF;
        END LOOP;
        RETURN made;
    END $$
    """,
    """
    CREATE FUNCTION drop_partitions(parent text, before date) RETURNS integer LANGUAGE plpgsql AS $$
    DECLARE
        part text;
        dropped integer := 0;
    BEGIN
        FOR part IN
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
            WHERE p.relname = parent AND c.relname ~ ('^' || parent || '_p[0-9]{8}$')
              AND c.relname < format('%s_p%s', parent, to_char(before, 'YYYYMMDD'))
        LOOP
            EXECUTE format('DROP TABLE %I', part);
            dropped := dropped + 1;
        END LOOP;
        RETURN dropped;
    END $$
    """,
    # The default partition holds only what came before its day's partition was made; it is emptied by age.
    "SELECT ensure_partitions('events', (now() AT TIME ZONE 'UTC')::date, 8)",
    "SELECT ensure_partitions('audit', (now() AT TIME ZONE 'UTC')::date, 8)",
)

ROWS = (
    "INSERT INTO domains (name) VALUES ('default')",
    "INSERT INTO projects (id, domain, name) VALUES ('00000000-0000-7000-8000-000000000001', 'default', 'default')",
    "INSERT INTO sequencer (name) VALUES ('events'), ('audit')",
)


def upgrade() -> None:
    values = ", ".join(f"('{source}', '{event}', '{target}')" for source, event, target in TRANSITIONS)
    op.execute(f"INSERT INTO session_transition (source, event, target) VALUES {values}")
    for statement in (*FUNCTIONS, *ROWS):
        op.execute(statement)


def downgrade() -> None:
    for function in ("drop_partitions", "ensure_partitions", "audit_is_append_only", "quota_uses_changed", "never"):
        op.execute(f"DROP FUNCTION {function} CASCADE")
    for function in ("allocations_changed", "session_status_guard"):
        op.execute(f"DROP FUNCTION {function} CASCADE")
    op.execute(
        "DO $$ DECLARE part text; BEGIN FOR part IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname IN ('events', 'audit') "
        "LOOP EXECUTE format('DROP TABLE %I', part); END LOOP; END $$"
    )
    for table in ("session_transition", "sequencer", "projects", "domains"):
        op.execute(f"DELETE FROM {table}")
