"""Usage by resource group, hosts that are cordoned and drained, and work that moves off them."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_FOLLOWS = """
    CREATE OR REPLACE FUNCTION usage_follows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO usage (kernel_id, session_id, session_name, user_id, project_id, domain, agent_id, name, amount,
                    share, since_at{column})
                SELECT c.kernel_id, s.id, s.name, s.user_id, s.project_id, s.domain, c.agent_id, c.name, c.amount,
                    c.amount / greatest(r.reported, c.amount)::double precision, now(){value}
                FROM changed c JOIN kernels k ON k.id = c.kernel_id JOIN sessions s ON s.id = k.session_id
                JOIN resources r ON r.agent_id = c.agent_id AND r.name = c.name;
        ELSE
            UPDATE usage u SET until_at = greatest(now(), u.since_at) FROM changed c
                WHERE u.kernel_id = c.kernel_id AND u.name = c.name AND u.until_at IS NULL;
        END IF;
        RETURN NULL;
    END $$
"""
#: `move` is new.
_EVENTS = (
    "schedule", "prepare", "pull", "start", "degrade", "recover", "restart", "destroy", "finish", "expire", "skip", "retry",
    "move", "fail", "gone", "break", "force",
)  # fmt: skip


def _events(words: tuple[str, ...]) -> tuple[str, str]:
    listed = ", ".join(f"'{word}'" for word in words)
    return (
        "ALTER TABLE session_transition DROP CONSTRAINT session_transition_event_check",
        f"ALTER TABLE session_transition ADD CONSTRAINT session_transition_event_check CHECK (event IN ({listed}))",
    )


UP = (
    # What has ended and is not in `fair_usage` yet; one writer counts it there, so that no two ends wait for each other.
    """
    ALTER TABLE usage
        ADD COLUMN resource_group text NOT NULL DEFAULT 'default',
        ADD COLUMN counted boolean NOT NULL DEFAULT false
    """,
    # Of before this revision there was one group. Two sums of 2^(-age / half-life), a week being its half-life.
    """
    INSERT INTO fair_usage (resource_group, user_id, name, amount, at)
    SELECT 'default', u.user_id, split_part(u.name, '/', 1),
        sum(CASE WHEN u.name LIKE 'gpu/%' THEN u.share ELSE u.amount END * 604800 / ln(2::double precision) * (
            power(2::double precision, -greatest(date_part('epoch', now() - u.until_at), 0) / 604800)
            - power(2::double precision, -greatest(date_part('epoch', now() - u.since_at), 0) / 604800))), now()
    FROM usage u JOIN users p ON p.id = u.user_id
    WHERE u.until_at > now() - interval '700 days' AND split_part(u.name, '/', 1) IN ('cpu', 'mem', 'gpu') GROUP BY 2, 3
    """,
    "UPDATE usage SET counted = true WHERE until_at IS NOT NULL",
    "CREATE INDEX usage_uncounted_idx ON usage (until_at) WHERE NOT counted",
    _FOLLOWS.format(column=", resource_group", value=", s.resource_group"),
    """
    ALTER TABLE agents
        ADD COLUMN cordoned_at timestamptz,
        ADD COLUMN cordon_reason text,
        ADD COLUMN draining boolean NOT NULL DEFAULT false,
        ADD COLUMN drain_moves boolean NOT NULL DEFAULT false,
        ADD COLUMN drain_until timestamptz,
        ADD COLUMN drained_at timestamptz,
        ADD CONSTRAINT agents_draining_check CHECK (NOT draining OR NOT schedulable)
    """,
    "UPDATE agents SET cordoned_at = now() WHERE NOT schedulable",
    "ALTER TABLE sessions ADD COLUMN moves_from text",
    *_events(_EVENTS),
    """
    INSERT INTO session_transition (source, event, target) SELECT source, 'move', 'TERMINATING'
    FROM unnest(ARRAY['SCHEDULED', 'PREPARING', 'PULLING', 'RUNNING', 'RUNNING_DEGRADED', 'RESTARTING']) AS source
    """,
)

DOWN = (
    "DELETE FROM status_history WHERE event = 'move'",
    "DELETE FROM session_transition WHERE event = 'move'",
    *_events(tuple(word for word in _EVENTS if word != "move")),
    "ALTER TABLE sessions DROP COLUMN moves_from",
    """
    ALTER TABLE agents DROP CONSTRAINT agents_draining_check, DROP COLUMN cordoned_at, DROP COLUMN cordon_reason,
        DROP COLUMN draining, DROP COLUMN drain_moves, DROP COLUMN drain_until, DROP COLUMN drained_at
    """,
    _FOLLOWS.format(column="", value=""),
    "DROP INDEX usage_uncounted_idx",
    "ALTER TABLE usage DROP COLUMN resource_group, DROP COLUMN counted",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
