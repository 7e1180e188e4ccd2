"""What sessions hold of quotas: asked for while they wait, taken when they are placed."""

from __future__ import annotations

from typing import Final

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

#: The rows of `quota_uses` that a statement added (+1) and took away (-1).
_CHANGES: Final = {
    "INSERT": "SELECT 1 AS sign, n.* FROM fresh n",
    "DELETE": "SELECT -1 AS sign, o.* FROM stale o",
    "UPDATE": "SELECT 1 AS sign, n.* FROM fresh n UNION ALL SELECT -1, o.* FROM stale o",
}
#: What is asked for anew: everything, or what has become more than it was.
_ASKED: Final = {
    "INSERT": "fresh",
    "UPDATE": """(SELECT n.* FROM fresh n JOIN stale o USING (session_id, scope, scope_id, name) WHERE n.amount > o.amount)""",
}

#: The only writer of quotas.used and quotas.queued. Rows are locked in order, so that two bulk writers cannot deadlock;
#: in a transaction, sessions are locked before quotas, and quotas before resources.
_COUNT: Final = """
    PERFORM FROM quotas q WHERE (q.scope, q.scope_id, q.name) IN (SELECT c.scope, c.scope_id, c.name FROM ({changes}) c)
        ORDER BY q.scope, q.scope_id, q.name FOR NO KEY UPDATE;
    UPDATE quotas q SET used = q.used + c.used, queued = q.queued + c.queued
        FROM (
            SELECT scope, scope_id, name,
                coalesce(sum(sign * amount) FILTER (WHERE placed AND name <> 'pending_sessions'), 0)::bigint AS used,
                coalesce(sum(sign * amount) FILTER (WHERE NOT placed), 0)::bigint AS queued
            FROM ({changes}) c WHERE NOT quota_is_ceiling(name) GROUP BY 1, 2, 3
        ) c
        WHERE q.scope = c.scope AND q.scope_id = c.scope_id AND q.name = c.name AND (c.used <> 0 OR c.queued <> 0);
"""
#: A limit below present use forbids more, and takes nothing away. `repositories.database` makes a sentence of the detail.
_CHECK: Final = """
    SELECT q.*, a.amount AS asked, a.placed, quota_is_ceiling(q.name) OR a.amount > q.max_amount AS alone INTO full_one
        FROM {asked} a JOIN quotas q USING (scope, scope_id, name)
        WHERE a.amount > q.max_amount OR (NOT quota_is_ceiling(q.name) AND CASE
            WHEN NOT q.waits THEN q.used + q.queued > q.max_amount WHEN a.placed THEN q.used > q.max_amount END)
        ORDER BY alone DESC, q.name, q.max_amount - q.used - q.queued, position(q.scope IN 'keypair user project domain') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'quota exceeded' USING ERRCODE = 'check_violation', CONSTRAINT = 'quotas_limit_check',
            DETAIL = jsonb_build_object('scope', full_one.scope, 'of', quota_owner(full_one.scope, full_one.scope_id),
                'name', full_one.name, 'policy', full_one.policy, 'max', full_one.max_amount, 'asked', full_one.asked,
                'alone', full_one.alone, 'used', full_one.used - CASE WHEN full_one.placed THEN full_one.asked ELSE 0 END,
                'queued', full_one.queued - CASE WHEN full_one.placed THEN 0 ELSE full_one.asked END);
    END IF;
"""


def _function(event: str, name: str) -> str:
    check = _CHECK.format(asked=_ASKED[event]) if event in _ASKED else ""
    return f"""
    CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        full_one record;
    BEGIN
        IF NOT EXISTS (SELECT FROM ({_CHANGES[event]}) c) THEN
            RETURN NULL;
        END IF;
        {_COUNT.format(changes=_CHANGES[event])}
        {check}
        RETURN NULL;
    END $$
    """


def _trigger(event: str, name: str) -> str:
    tables = {"INSERT": "NEW TABLE AS fresh", "DELETE": "OLD TABLE AS stale"}
    tables["UPDATE"] = f"{tables['INSERT']} {tables['DELETE']}"
    return (
        f"CREATE TRIGGER {name} AFTER {event} ON quota_uses REFERENCING {tables[event]} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
    )


_NAMES: Final = {"INSERT": "quota_uses_taken", "DELETE": "quota_uses_released", "UPDATE": "quota_uses_moved"}

UP = (
    "DROP TRIGGER quota_uses_taken ON quota_uses",
    "DROP TRIGGER quota_uses_released ON quota_uses",
    "DROP TRIGGER quota_uses_are_not_edited ON quota_uses",
    "DROP FUNCTION quota_uses_changed()",
    # Limits of each session by itself: nothing is summed up. `domain.limits` says the same.
    """
    CREATE FUNCTION quota_is_ceiling(name text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
        $$ SELECT name LIKE 'session.%' OR name IN ('lifetime', 'priority', 'idle') $$
    """,
    # As people know it.
    """
    CREATE FUNCTION quota_owner(scope text, scope_id text) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT coalesce(CASE scope
            WHEN 'user' THEN (SELECT email FROM users WHERE id = scope_id::uuid)
            WHEN 'project' THEN (SELECT name FROM projects WHERE id = scope_id::uuid) END, scope_id)
    $$
    """,
    *(_function(event, name) for event, name in _NAMES.items()),
    """
    UPDATE quota_uses u SET placed = true FROM sessions s WHERE s.id = u.session_id AND s.status <> 'PENDING'
    """,
    """
    UPDATE quotas q SET
        used = (SELECT coalesce(sum(amount), 0) FROM quota_uses u
                WHERE (u.scope, u.scope_id, u.name) = (q.scope, q.scope_id, q.name) AND u.placed),
        queued = (SELECT coalesce(sum(amount), 0) FROM quota_uses u
                  WHERE (u.scope, u.scope_id, u.name) = (q.scope, q.scope_id, q.name) AND NOT u.placed)
    """,
    *(_trigger(event, name) for event, name in _NAMES.items()),
    "CREATE INDEX quota_uses_scope_scope_id_name_idx ON quota_uses (scope, scope_id, name)",  # for limits that are lifted
    """
    CREATE TRIGGER quota_uses_are_not_edited BEFORE UPDATE OF session_id, scope, scope_id, name ON quota_uses
        EXECUTE FUNCTION never()
    """,
)

DOWN = (
    "DROP INDEX quota_uses_scope_scope_id_name_idx",
    *(f"DROP TRIGGER {name} ON quota_uses" for name in _NAMES.values()),
    "DROP TRIGGER quota_uses_are_not_edited ON quota_uses",
    *(f"DROP FUNCTION {name}()" for name in _NAMES.values()),
    "DELETE FROM quotas WHERE quota_is_ceiling(name) OR name IN ('pending_sessions', 'volumes')",
    "UPDATE quotas SET used = used + queued, queued = 0",
    "DROP FUNCTION quota_is_ceiling(text)",
    "DROP FUNCTION quota_owner(text, text)",
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
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
