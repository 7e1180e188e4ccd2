"""Whether what must always hold does hold: one query for each invariant, on one consistent view of the database.

The names I1 to I12 are those of docs/reliability.md. A query selects what breaks the invariant as `subject` and `detail`;
nothing that merely passes is ever selected, because triggers keep sums within the transactions that change them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.fsck import Expected, Finding
from domain.session import DEADLINES
from repositories import tables
from repositories.audit import Anchor
from repositories.audit_proof import verify_audit
from repositories.database import Connection
from repositories.transit import Cause, emit

#: Findings of one check that are told; how many there are in all is told as well.
MOST_FINDINGS: Final = 100
_PASSING: Final = ", ".join(f"'{status}'" for status in sorted(DEADLINES))
_LIVE: Final = "k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    invariant: str
    query: str  #: $1 is the present time
    remedy: str  #: what to do about it
    repair: str | None = None  #: a statement that puts right all that the query finds


CHECKS: Final = (
    Check(
        name="slots_in_use",
        invariant="I1",
        query="""
            SELECT r.agent_id || ' ' || r.name AS subject,
                format('%s in use by its counter, %s by its allocations', r.used, coalesce(a.amount, 0)) AS detail
            FROM resources r LEFT JOIN (
                SELECT agent_id, name, sum(amount) AS amount FROM allocations GROUP BY 1, 2) a USING (agent_id, name)
            WHERE r.used <> coalesce(a.amount, 0)
        """,
        remedy="'moorage admin fsck --repair' counts again",
        repair="""
            UPDATE resources r SET used = c.amount, capacity = greatest(r.reported, c.amount) FROM (
                SELECT r.agent_id, r.name, coalesce(sum(a.amount), 0)::bigint AS amount
                FROM resources r LEFT JOIN allocations a USING (agent_id, name) GROUP BY 1, 2) c
            WHERE r.agent_id = c.agent_id AND r.name = c.name AND r.used <> c.amount
        """,
    ),
    Check(
        name="slots_of_the_living",
        invariant="I1",
        query=f"""
            SELECT k.id::text AS subject, format('asks for %s of %s on %s, and holds %s', n.amount, n.name, k.agent_id,
                coalesce(a.amount, 0)) AS detail
            FROM kernels k CROSS JOIN LATERAL (
                SELECT key AS name, value::bigint AS amount FROM jsonb_each_text(k.slots)
                WHERE key NOT LIKE 'gpu%' AND value::bigint > 0) n
            LEFT JOIN allocations a ON a.kernel_id = k.id AND a.name = n.name
            WHERE {_LIVE} AND coalesce(a.amount, 0) <> n.amount
        """,
        remedy="restart the session, which places it anew",
    ),
    Check(
        name="slots_of_the_gone",
        invariant="I1",
        query="""
            SELECT k.id::text AS subject, format('is gone, and still holds %s of %s on %s', a.amount, a.name, a.agent_id) AS detail
            FROM allocations a JOIN kernels k ON k.id = a.kernel_id WHERE k.want = 'NONE' OR k.observed = 'GONE'
        """,
        remedy="'moorage admin fsck --repair' frees them",
        repair="""
            DELETE FROM allocations a USING kernels k
            WHERE k.id = a.kernel_id AND (k.want = 'NONE' OR k.observed = 'GONE')
        """,
    ),
    Check(
        name="devices_in_two_hands",
        invariant="I1",
        query="""
            SELECT a.agent_id || ' ' || a.name AS subject, format('is held by %s sessions, one of them as a whole', count(*)) AS detail
            FROM allocations a JOIN kernels k ON k.id = a.kernel_id WHERE a.name LIKE 'gpu/%'
            GROUP BY a.agent_id, a.name HAVING count(*) > 1 AND bool_or((k.slots ->> 'gpu')::bigint > 0)
        """,
        remedy="end one of them ('moorage top --gpu' names them)",
    ),
    Check(
        name="quota_counters",
        invariant="I1",
        query="""
            SELECT q.scope || ' ' || q.scope_id || ' ' || q.name AS subject,
                format('counts %s running and %s waiting, its sessions hold %s and %s', q.used, q.queued,
                    coalesce(u.used, 0), coalesce(u.queued, 0)) AS detail
            FROM quotas q LEFT JOIN (
                SELECT scope, scope_id, name, coalesce(sum(amount) FILTER (WHERE placed AND name <> 'pending_sessions'), 0) AS used,
                    coalesce(sum(amount) FILTER (WHERE NOT placed), 0) AS queued
                FROM quota_uses WHERE NOT quota_is_ceiling(name) GROUP BY 1, 2, 3
            ) u USING (scope, scope_id, name)
            WHERE (q.used, q.queued) <> (coalesce(u.used, 0), coalesce(u.queued, 0))
        """,
        remedy="'moorage admin fsck --repair' counts again",
        repair="""
            UPDATE quotas q SET used = c.used, queued = c.queued FROM (
                SELECT q.scope, q.scope_id, q.name,
                    coalesce(sum(u.amount) FILTER (WHERE u.placed AND q.name <> 'pending_sessions'), 0)::bigint AS used,
                    coalesce(sum(u.amount) FILTER (WHERE NOT u.placed), 0)::bigint AS queued
                FROM quotas q LEFT JOIN quota_uses u USING (scope, scope_id, name)
                WHERE NOT quota_is_ceiling(q.name) GROUP BY 1, 2, 3) c
            WHERE (q.scope, q.scope_id, q.name) = (c.scope, c.scope_id, c.name)
                AND (q.used, q.queued) <> (c.used, c.queued)
        """,
    ),
    Check(
        name="two_attempts",
        invariant="I3",
        query=f"""
            SELECT s.id::text AS subject, format('is at attempt %s, and attempt %s is to run too', s.attempt, k.attempt) AS detail
            FROM sessions s JOIN kernels k ON k.session_id = s.id
            WHERE k.want = 'RUN' AND {_LIVE} AND k.attempt <> s.attempt
        """,
        remedy="destroy the session by force and restart it",
    ),
    Check(
        name="ends_without_a_reason",
        invariant="I4",
        query=f"""
            SELECT id::text AS subject, format('%s since %s, and nothing says why', status, ended_at) AS detail
            FROM sessions WHERE NOT ({tables.NOT_FINAL}) AND coalesce(status_reason, '') = ''
        """,
        remedy="its history and the audit log tell more ('moorage history', 'moorage admin audit')",
    ),
    Check(
        name="no_deadline",
        invariant="I4",
        query=f"""
            SELECT id::text AS subject, format('%s since %s without a deadline', status, status_changed_at) AS detail
            FROM sessions WHERE status IN ({_PASSING}) AND deadline_at IS NULL
        """,
        remedy="'moorage admin fsck --repair' sets one",
        repair=f"UPDATE sessions SET deadline_at = $1::timestamptz WHERE status IN ({_PASSING}) AND deadline_at IS NULL",
    ),
    Check(
        name="no_kernels",
        invariant="I4",
        query=f"""
            SELECT s.id::text AS subject, format('%s, and attempt %s has no kernel', s.status, s.attempt) AS detail
            FROM sessions s WHERE {tables.NOT_FINAL} AND NOT EXISTS (
                SELECT FROM kernels k WHERE k.session_id = s.id AND k.attempt = s.attempt)
        """,
        remedy="destroy the session by force",
    ),
    Check(
        name="unmet_dependencies",
        invariant="I4",
        query="""
            SELECT s.id::text AS subject, format('waits for %s sessions by its counter, for %s in truth', s.unmet, count(d)) AS detail
            FROM sessions s LEFT JOIN session_dependencies d ON d.session_id = s.id AND d.met_at IS NULL
            WHERE s.status = 'PENDING' GROUP BY s.id HAVING s.unmet <> count(d)
        """,
        remedy="'moorage admin fsck --repair' counts again",
        repair="""
            UPDATE sessions s SET unmet = c.number FROM (
                SELECT s.id, count(d) AS number FROM sessions s
                LEFT JOIN session_dependencies d ON d.session_id = s.id AND d.met_at IS NULL
                WHERE s.status = 'PENDING' GROUP BY s.id) c
            WHERE c.id = s.id AND s.unmet <> c.number
        """,
    ),
    Check(
        name="history_head",
        invariant="I5",
        query="""
            SELECT s.id::text AS subject, format('is %s, its history ends with %s', s.status, coalesce(h.target, 'nothing')) AS detail
            FROM sessions s LEFT JOIN LATERAL (
                SELECT target FROM status_history h WHERE h.session_id = s.id ORDER BY version DESC LIMIT 1) h ON true
            WHERE h.target IS DISTINCT FROM s.status
        """,
        remedy="somebody has written to the database by hand; the audit log says what was asked",
    ),
    Check(
        name="history_chain",
        invariant="I5",
        query="""
            SELECT session_id::text AS subject,
                format('version %s leaves %s, where %s was reached before', version, source, before) AS detail
            FROM (SELECT session_id, version, source, lag(target) OVER w AS before, row_number() OVER w AS number
                FROM status_history WINDOW w AS (PARTITION BY session_id ORDER BY version)) h
            WHERE CASE WHEN number = 1 THEN source IS NOT NULL ELSE source IS DISTINCT FROM before END
        """,
        remedy="somebody has written to the database by hand; the audit log says what was asked",
    ),
    Check(
        name="keys_without_an_answer",
        invariant="I6",
        query="""
            SELECT key AS subject, format('was used for %s at %s, and has no answer yet', action, created_at) AS detail
            FROM idempotency_keys WHERE answer IS NULL AND created_at < $1::timestamptz - interval '1 hour'
        """,
        remedy="ask again with the same key: the request goes on where it was cut short",
    ),
    Check(
        name="durability",
        invariant="I7",
        query="""
            SELECT name AS subject, format('is %s: what was acknowledged may be lost with the machine', setting) AS detail
            FROM pg_settings WHERE $1::timestamptz IS NOT NULL
                AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
        """,
        remedy="switch it on in postgresql.conf",
    ),
    Check(
        name="left_behind",
        invariant="I8",
        query=f"""
            SELECT n.session_id::text AS subject, format('has ended, and keeps the network %s', n.subnet) AS detail
            FROM cluster_networks n JOIN sessions s ON s.id = n.session_id
            WHERE s.ended_at < $1::timestamptz - interval '1 hour' AND NOT EXISTS (
                SELECT FROM kernels k WHERE k.session_id = s.id AND {_LIVE})
            UNION ALL
            SELECT u.session_id::text, format('has ended, and keeps %s of the quota of %s %s', u.amount, u.scope, u.scope_id)
            FROM quota_uses u JOIN sessions s ON s.id = u.session_id WHERE s.ended_at IS NOT NULL AND NOT s.retrying
        """,
        remedy="'moorage admin fsck --repair' gives it back",
        repair="""
            WITH quota AS (
                DELETE FROM quota_uses u USING sessions s WHERE s.id = u.session_id AND s.ended_at IS NOT NULL AND NOT s.retrying)
            DELETE FROM cluster_networks n USING sessions s
            WHERE s.id = n.session_id AND s.ended_at < $1::timestamptz - interval '1 hour' AND NOT EXISTS (
                SELECT FROM kernels k WHERE k.session_id = s.id AND k.want <> 'NONE' AND k.observed IS DISTINCT FROM 'GONE')
        """,
    ),
    Check(
        name="held_transactions",
        invariant="I9",
        query="""
            SELECT coalesce(application_name, '') || ' ' || pid AS subject,
                format('holds a transaction open since %s (%s)', xact_start, state) AS detail
            FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND backend_type = 'client backend' AND xact_start < clock_timestamp() - interval '2 minutes'
                AND $1::timestamptz IS NOT NULL
        """,
        remedy="end what holds it: SELECT pg_terminate_backend(pid)",
    ),
    Check(
        name="overdue",
        invariant="I11",
        query=f"""
            SELECT id::text AS subject, format('is %s, and should not be any more since %s', status, deadline_at) AS detail
            FROM sessions WHERE status IN ({_PASSING}) AND deadline_at < $1::timestamptz - interval '30 seconds'
            UNION ALL
            SELECT k.id::text, format('%s has not been told what is wanted since %s', k.agent_id, k.next_try_at)
            FROM kernels k JOIN agents a ON a.id = k.agent_id
            WHERE k.seen_generation < k.generation AND k.next_try_at < $1::timestamptz - interval '2 minutes' AND NOT a.lost
            UNION ALL
            SELECT id::text, format('%s was left by its manager at %s', action, lease_until) FROM tasks
            WHERE status IN ('queued', 'running') AND coalesce(lease_until, created_at) < $1::timestamptz - interval '2 minutes'
            UNION ALL
            SELECT 'events', format('%s of them have no number yet, the oldest since %s', count(*), min(at)) FROM events
            WHERE seq IS NULL AND at < $1::timestamptz - interval '30 seconds' HAVING count(*) > 0
        """,
        remedy="see that a manager with the control role runs ('moorage status'), and read its log",
    ),
)
BY_NAME: Final[Mapping[str, Check]] = {check.name: check for check in CHECKS}


async def find(
    connection: Connection, *, now: datetime, audit_key: bytes | None = None, audit_kept: Anchor | None = None
) -> list[Finding]:
    """Everything that is wrong in the database, as it is at one moment; with the key, also what only that can prove."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _find(connection, now, audit_key, audit_kept)


async def _find(
    connection: Connection, now: datetime, key: bytes | None = None, kept: Anchor | None = None
) -> list[Finding]:
    found = []
    for check in CHECKS:
        counted = (
            f"SELECT subject, detail, count(*) OVER () AS number FROM ({check.query}) broken ORDER BY 1, 2 LIMIT $2"
        )
        needs_time = "$1" in check.query
        query = counted if needs_time else counted.replace("LIMIT $2", "LIMIT $1")
        rows = await connection.fetch(query, *([now] if needs_time else []), MOST_FINDINGS)
        found += [_finding(check, row["subject"], row["detail"], row["number"]) for row in rows]
    verdict = await verify_audit(connection, key=key, kept=kept)
    if verdict.broken_at is not None:
        found.append(
            Finding(
                check="audit_chain",
                invariant="I12",
                subject=f"seq {verdict.broken_at}",
                detail=str(verdict.why),
                remedy="somebody has written to the audit by hand; 'moorage admin audit verify --head FILE' says more",
            )
        )
    return found


def _finding(check: Check, subject: str, detail: str, number: int) -> Finding:
    return Finding(
        check=check.name,
        invariant=check.invariant,
        subject=subject,
        detail=detail,
        remedy=check.remedy,
        repairable=check.repair is not None,
        of=number,
    )


async def repair(connection: Connection, names: Collection[str], *, now: datetime, cause: Cause) -> dict[str, int]:
    """Put right what these checks find, by their own statements. Inside the caller's transaction; rows by check."""
    done: dict[str, int] = {}
    for check in CHECKS:
        if check.name in names and check.repair is not None:
            status = await connection.execute(check.repair, *([now] if "$1" in check.repair else []))
            done[check.name] = int(status.rsplit(" ", 1)[-1])
            await emit(
                connection, "fsck.repaired", now=now, cause=cause, data={"check": check.name, "rows": done[check.name]}
            )
    return done


async def expected(connection: Connection, agents: Sequence[str]) -> list[Expected]:
    """What has to be on these hosts, as the database says."""
    rows = await connection.fetch(
        f"""
        SELECT k.id, k.session_id, k.agent_id, k.attempt, k.want = 'RUN' AS wanted, k.observed,
            k.seen_generation >= k.generation AS settled, k.slots
        FROM kernels k JOIN sessions s ON s.id = k.session_id WHERE k.agent_id = ANY($1::text[]) AND {_LIVE}
        """,
        list(agents),
    )
    return [
        Expected(
            kernel_id=row["id"],
            session_id=row["session_id"],
            agent_id=row["agent_id"],
            attempt=row["attempt"],
            runs=row["wanted"] and row["settled"] and row["observed"] == "RUNNING",
            slots=row["slots"],
        )
        for row in rows
    ]


async def known(connection: Connection, kernels: Collection[Any]) -> set[UUID]:
    """Which of these kernels are on record at all."""
    rows = await connection.fetch("SELECT id FROM kernels WHERE id = ANY($1::uuid[])", list(kernels))
    return {row["id"] for row in rows}
