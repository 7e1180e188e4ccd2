"""Intents on their way to the agents, and facts on their way back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from agent.wire import Fact, KernelSpec
from domain.ids import AgentId, KernelId, SessionId
from domain.names import as_uuid
from domain.session import DEADLINES, Event, KernelState, KernelView, OnAgentLost, Status, Want, derive
from repositories.clusters import free
from repositories.database import Connection
from repositories.retries import begin_work, retry
from repositories.transit import Asked, Cause, Moved, transit_many


# -- intents ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What an agent has not been heard to take on yet."""

    kernel_id: KernelId
    session_id: SessionId
    agent_id: AgentId
    attempt: int
    generation: int
    want: Want
    tries: int  #: with this one
    spec: KernelSpec | None


async def claim(
    connection: Connection,
    agents: Collection[AgentId],
    *,
    by: UUID,
    now: datetime,
    limit: int,
    claim_seconds: float,
) -> list[Intent]:
    """Intents of these agents' kernels that are due, oldest first. A new one is, whatever the clock of its writer said.

    A claim only avoids that two managers say the same at once, so it is short and does not wait for the disk.
    """
    if not agents or limit < 1:
        return []
    rows = await connection.fetch(
        """
        UPDATE kernels k SET claimed_by = $2, claimed_until = $4, tries = k.tries + 1
        WHERE k.id IN (
            SELECT id FROM kernels
            WHERE seen_generation < generation AND agent_id = ANY($1::text[]) AND (tries = 0 OR next_try_at <= $3)
                AND (claimed_until IS NULL OR claimed_until <= $3)
            ORDER BY next_try_at LIMIT $5 FOR UPDATE SKIP LOCKED
        ) AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
        RETURNING k.id, k.session_id, k.agent_id, k.attempt, k.generation, k.want, k.tries,
            CASE k.want WHEN 'RUN' THEN k.spec || jsonb_build_object('begun', k.observed IS NOT NULL) END AS spec
        """,
        list(agents),
        by,
        now,
        now + timedelta(seconds=claim_seconds),
        limit,
    )
    return [
        Intent(
            kernel_id=KernelId(row["id"]),
            session_id=SessionId(row["session_id"]),
            agent_id=AgentId(row["agent_id"]),
            attempt=row["attempt"],
            generation=row["generation"],
            want=Want(row["want"]),
            tries=row["tries"],
            spec=KernelSpec.unpack(row["spec"]) if row["spec"] is not None else None,
        )
        for row in rows
    ]


async def try_again(connection: Connection, intent: Intent, *, at: datetime) -> None:
    """Give the claim back; the intent is due again at `at`, unless another has taken its place."""
    await connection.execute(
        """
        UPDATE kernels SET next_try_at = $3, claimed_by = NULL, claimed_until = NULL
        WHERE id = $1 AND generation = $2 AND seen_generation < generation
        """,
        intent.kernel_id,
        intent.generation,
        at,
    )


async def overtake(connection: Connection, intent: Intent, generation: int, *, now: datetime) -> None:
    """Number this intent after `generation`, which its agent has seen and a restored database has forgotten."""
    await connection.execute(
        """
        UPDATE kernels SET generation = $3::bigint + 1, next_try_at = $4, claimed_until = NULL
        WHERE id = $1 AND generation = $2 AND $3::bigint < 2::bigint ^ 62
        """,
        intent.kernel_id,
        intent.generation,
        generation,
        now,
    )


def back_off_seconds(tries: int, jitter: float, *, most: float = 30.0) -> float:
    """0.1 s after the first failure, twice as long after each further one; `jitter` in [0, 1) spreads it by half."""
    return float(min(most, 0.1 * 2 ** min(tries - 1, 10))) * (0.75 + jitter / 2)


async def renew_pull(connection: Connection, agent_id: AgentId, kernel_id: KernelId, *, now: datetime) -> None:
    """An image is on its way: the deadline of PULLING counts from the last progress."""
    await connection.execute(
        """
        UPDATE sessions s SET deadline_at = $3 FROM kernels k
        WHERE k.id = $1 AND k.agent_id = $2 AND k.session_id = s.id AND k.attempt = s.attempt AND s.status = 'PULLING'
        """,
        kernel_id,
        agent_id,
        now + timedelta(seconds=DEADLINES[Status.PULLING].seconds),
    )


async def agents_of(connection: Connection, kernels: Sequence[UUID]) -> dict[UUID, AgentId]:
    """Where these kernels are; those that are nowhere, or of which nobody knows, are left out."""
    rows = await connection.fetch(
        "SELECT id, agent_id FROM kernels WHERE id = ANY($1::uuid[]) AND agent_id IS NOT NULL", list(kernels)
    )
    return {row["id"]: AgentId(row["agent_id"]) for row in rows}


# -- facts -----------------------------------------------------------------------------------------------------------
@dataclass(slots=True, kw_only=True)
class Recorded:
    """What a batch of facts did."""

    accepted: int = 0
    moved: list[Moved] = field(default_factory=list)
    changed: set[SessionId] = field(default_factory=set)  #: whose rows, or whose kernels' rows, are different now
    released: bool = False  #: slots came free
    refused: list[tuple[AgentId, KernelId]] = field(default_factory=list)  #: agents speaking of kernels not their own

    @property
    def intents(self) -> bool:
        """Some kernels have to go now."""
        return any(one.target is Status.TERMINATING for one in self.moved)


#: A hello whose inventory was older makes intents due again that had been answered: the same answer settles them.
_ASKED_AGAIN: Final = "((k.boot_no, k.report_seq) = (f.boot_no, f.seq) AND k.seen_generation < f.generation)"
#: $1 kernel, $2 agent, $3 attempt, $4 generation, $5 boot_no, $6 seq: what is news, from the agent that may tell it.
_NEWS: Final = f"""
    unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS f(id, agent_id, attempt, generation, boot_no, seq)
    JOIN kernels k ON k.id = f.id AND k.agent_id = f.agent_id AND k.attempt = f.attempt AND f.generation <= k.generation
        AND ((k.boot_no, k.report_seq) < (f.boot_no, f.seq) OR {_ASKED_AGAIN})
"""
_SESSION: Final = """
    s.id, s.status, s.failed, s.attempt, s.notices, s.main_kernel_id, s.user_id, s.domain, s.name, s.retrying,
    s.replaced, s.on_agent_lost
"""


async def record_facts(connection: Connection, reports: Sequence[tuple[AgentId, Fact]], *, now: datetime) -> Recorded:
    """Write what agents say of their own kernels, and move their sessions by it. Inside the caller's transaction.

    Any order, any number of times: an older or equal (boot_no, seq), another attempt, an intent that was never sent,
    and a kernel of another agent change nothing. Sessions are locked first, in the order of their ids.
    """
    news = _newest(reports)
    if not news:
        return Recorded()
    keys = _columns([_key(agent_id, fact) for agent_id, fact in news.values()], 6)
    sessions = {
        row["id"]: row
        for row in await connection.fetch(
            f"SELECT {_SESSION} FROM sessions s WHERE id IN (SELECT k.session_id FROM {_NEWS}) ORDER BY s.id FOR NO KEY UPDATE",
            *keys,
        )
    }
    recorded = Recorded()
    if not sessions:
        recorded.refused = await _not_their_own(connection, news)
        return recorded
    rows = await _write(connection, list(news.values()), list(sessions))
    recorded.accepted = len(rows)
    recorded.changed = {SessionId(row["session_id"]) for row in rows}
    if len(rows) < len(news):
        told = {row["id"] for row in rows}
        rest = {kernel_id: report for kernel_id, report in news.items() if kernel_id not in told}
        recorded.refused = await _not_their_own(connection, rest)
    await _add_notices(connection, sessions, rows, {kernel_id: fact for kernel_id, (_, fact) in news.items()})
    causes = {row["session_id"]: Cause(by=f"agent:{row['agent_id']}") for row in rows}
    recorded.moved = await _derive(connection, [sessions[one] for one in sorted(recorded.changed)], causes, now)
    gone = [row["id"] for row in rows if row["observed"] == KernelState.GONE]
    if gone:
        recorded.released = await release(connection, gone, now=now)
        await free(connection, recorded.changed)
    return recorded


async def settle(connection: Connection, session_id: SessionId, *, now: datetime, cause: Cause) -> list[Moved]:
    """Move one session to where the facts that are known already say it should be; the steps that were taken."""
    session = await connection.fetchrow(
        f"SELECT {_SESSION} FROM sessions s WHERE id = $1 FOR NO KEY UPDATE", session_id
    )
    return [] if session is None else await _derive(connection, [session], {session_id: cause}, now)


async def release(connection: Connection, kernels: Sequence[UUID], *, now: datetime) -> bool:
    """Free the slots of kernels that their agents say are gone; False when they held none."""
    return bool(
        await connection.fetchval(
            """
            WITH freed AS (
                DELETE FROM allocations WHERE kernel_id = ANY($1::uuid[]) RETURNING kernel_id, agent_id, name, amount
            ), told AS (
                INSERT INTO events (at, type, session_id, user_id, domain, cause, data)
                SELECT $2::timestamptz, 'resources.released', s.id, s.user_id, s.domain,
                    jsonb_build_object('by', 'agent:' || f.agent_id),
                    jsonb_build_object('name', s.name, 'agents', jsonb_build_array(f.agent_id),
                        'slots', jsonb_object_agg(f.name, f.amount))
                FROM (SELECT k.session_id, f.agent_id, f.name, sum(f.amount) AS amount
                      FROM freed f JOIN kernels k ON k.id = f.kernel_id GROUP BY 1, 2, 3) f
                JOIN sessions s ON s.id = f.session_id GROUP BY s.id, f.agent_id
            )
            SELECT count(*) FROM freed
            """,
            list(kernels),
            now,
        )
    )


def reason_of(exit: Mapping[str, Any] | None, role: str = "main") -> str:
    """Why a kernel ended, in plain words."""
    said = str((exit or {}).get("message") or "").strip()
    what = _REASONS.get(
        str((exit or {}).get("reason")), "a container of the session ended, and its host does not say why"
    )
    if role != "main":
        what = f"worker container: {what}"
    return f"{what}: {said}"[:2000] if said else what


_REASONS: Final = {
    "finished": "the session's work ended",
    "ended": "the app ended its session",
    "worker_lost": "the app's process was lost, and with it what it had in memory",
    "out_of_memory": "the session ran out of memory",
    "killed": "the session's container was killed",
    "disappeared": "the session's container was removed by someone else",
    "runner_lost": "the session's runner ended",
    "image_missing": "the host could not get the image",
    "create_failed": "the host could not create the container",
    "bootstrap_failed": "the bootstrap script failed",
    "mount_refused": "a volume could not be mounted",
    "device_failed": "a GPU of its host failed its check, and is offered no more",
    "gpu_unsupported": "the host's container engine hands out no GPUs",
    "fenced": "its lease on its host was over",
    "superseded": "the database was restored from a backup that is older than the session's last restart",
    "gpu_overused": "it used more GPU memory than its share",
    "quota_exceeded": "it wrote more than its disk quota",
    "disk_full": "its host's disk was nearly full, and it had written most of what came last",
    "agent_restarted": "the host's agent restarted and did not find the container again",
}
_STATES: Final = frozenset(str(state) for state in KernelState)
_MAX_NOTICES: Final = 50
#: So often a session is placed again because a device of its host failed its check; then it fails.
MOST_REPLACEMENTS: Final = 3
_BIG: Final = 2**62

Row = Mapping[str, Any]


def _newest(reports: Iterable[tuple[AgentId, Fact]]) -> dict[UUID, tuple[AgentId, Fact]]:
    """The newest of each kernel, of those that make sense at all."""
    news: dict[UUID, tuple[AgentId, Fact]] = {}
    for agent_id, fact in reports:
        kernel_id = as_uuid(str(fact.kernel_id))
        numbers = (fact.attempt, fact.generation, fact.boot_no, fact.seq)
        sane = all(isinstance(n, int) and 0 <= n < _BIG for n in numbers) and str(fact.observed) in _STATES
        if kernel_id is None or not sane:
            continue
        known = news.get(kernel_id)
        if known is None or known[0] != agent_id or (known[1].boot_no, known[1].seq) < (fact.boot_no, fact.seq):
            news[kernel_id] = agent_id, fact
    return news


def _key(agent_id: AgentId, fact: Fact) -> tuple[object, ...]:
    return as_uuid(str(fact.kernel_id)), agent_id, fact.attempt, fact.generation, fact.boot_no, fact.seq


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[at] for row in rows] for at in range(width)]


async def _write(
    connection: Connection, reports: Sequence[tuple[AgentId, Fact]], sessions: Sequence[UUID]
) -> list[Row]:
    values = [
        (
            *_key(agent_id, fact),
            fact.observed,
            plain(fact.exit) if isinstance(fact.exit, dict) else None,
            _text(fact.container_id),
            _time(fact.started_at),
        )
        for agent_id, fact in reports
    ]
    return list(
        await connection.fetch(
            f"""
            UPDATE kernels k SET observed = f.observed, exit = f.exit,
                container_id = coalesce(f.container_id, k.container_id),
                started_at = coalesce(f.started_at, k.started_at), boot_no = f.boot_no, report_seq = f.seq,
                seen_generation = greatest(k.seen_generation, f.generation),
                tries = CASE WHEN f.generation = k.generation THEN 0 ELSE k.tries END
            FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[],
                $8::jsonb[], $9::text[], $10::timestamptz[])
                AS f(id, agent_id, attempt, generation, boot_no, seq, observed, exit, container_id, started_at)
            WHERE k.id = f.id AND k.agent_id = f.agent_id AND k.attempt = f.attempt AND f.generation <= k.generation
                AND ((k.boot_no, k.report_seq) < (f.boot_no, f.seq) OR {_ASKED_AGAIN})
                AND k.session_id = ANY($11::uuid[])
            RETURNING k.id, k.session_id, k.agent_id, k.observed
            """,
            *_columns(values, 10),
            sessions,
        )
    )


async def _not_their_own(
    connection: Connection, reports: Mapping[UUID, tuple[AgentId, Fact]]
) -> list[tuple[AgentId, KernelId]]:
    rows = await connection.fetch("SELECT id, agent_id FROM kernels WHERE id = ANY($1::uuid[])", list(reports))
    return [
        (reports[row["id"]][0], KernelId(row["id"]))
        for row in rows
        if row["agent_id"] not in (None, reports[row["id"]][0])
    ]


async def _add_notices(
    connection: Connection, sessions: Mapping[UUID, Row], rows: Sequence[Row], facts: Mapping[UUID, Fact]
) -> None:
    for row in rows:
        known = sessions[row["session_id"]]["notices"]
        told = [plain(one) for one in facts[row["id"]].notices if isinstance(one, dict)]
        new = [notice for notice in told if notice not in known]
        if new and len(known) < _MAX_NOTICES:
            known.extend(new[: _MAX_NOTICES - len(known)])
            await connection.execute(
                "UPDATE sessions SET notices = $2, activity = activity + 1 WHERE id = $1", row["session_id"], known
            )


async def _derive(
    connection: Connection, sessions: Sequence[Row], causes: Mapping[UUID, Cause], now: datetime
) -> list[Moved]:
    """Move each session by what its kernels are, until nothing follows from it."""
    kernels = await connection.fetch(
        """
        SELECT k.id, k.session_id, k.want, k.observed, k.exit, k.role, k.agent_id, k.fenced_at,
            k.id = s.main_kernel_id AS is_main
        FROM kernels k JOIN sessions s ON s.id = k.session_id AND s.attempt = k.attempt
        WHERE s.id = ANY($1::uuid[]) AND (k.left_at IS NULL OR k.want <> 'NONE')
        ORDER BY k.session_id, k.id = s.main_kernel_id DESC, k.idx
        """,
        [session["id"] for session in sessions],
    )
    by_session = {session_id: list(rows) for session_id, rows in groupby(kernels, key=itemgetter("session_id"))}
    status = {session["id"]: Status(session["status"]) for session in sessions if session["id"] in by_session}
    failed = {session["id"]: bool(session["failed"]) for session in sessions}
    retrying = {session["id"]: bool(session["retrying"]) for session in sessions}
    replaced = {session["id"]: int(session["replaced"]) for session in sessions}
    replaces = {session["id"]: session["on_agent_lost"] == OnAgentLost.REPLACE for session in sessions}
    moved: list[Moved] = []
    waiting = list(status)
    while waiting:
        following: dict[tuple[Event, Cause], list[Asked]] = defaultdict(list)
        for one in waiting:
            event = derive(status[one], failed[one], _views(by_session[one], status[one]), retrying=retrying[one])
            if event is Event.FAIL and _placed_again(status[one], replaced[one], by_session[one]):
                event = Event.MOVE
            elif event is Event.FAIL and replaces[one] and _fenced_by_its_host(by_session[one]):
                await _note_host(connection, one)
                event = Event.MOVE
            if event is not None:
                following[event, causes[one]].append(_asked(SessionId(one), event, by_session[one]))
        waiting = []
        for (event, cause), asked in following.items():
            for step in await _move(connection, event, asked, cause, now):
                status[step.session_id], retrying[step.session_id] = step.target, step.retrying
                failed[step.session_id] |= event is Event.FAIL
                moved.append(step)
                waiting.append(step.session_id)
    pulling = [one for one, now_is in status.items() if now_is is Status.PULLING]
    if pulling:
        await connection.execute(
            "UPDATE sessions SET deadline_at = $2 WHERE id = ANY($1::uuid[]) AND status = 'PULLING'",
            pulling,
            now + timedelta(seconds=DEADLINES[Status.PULLING].seconds),
        )
    return moved


async def _move(
    connection: Connection, event: Event, asked: Sequence[Asked], cause: Cause, now: datetime
) -> Sequence[Moved]:
    if event is Event.RETRY:
        return await retry(connection, [one.session_id for one in asked], cause=cause, now=now)
    moved = await transit_many(connection, event, asked, cause=cause, now=now)
    if event is Event.MOVE and moved:
        await _note_replacement(connection, [one.session_id for one in moved])
    if event is Event.START and moved:
        await begin_work(connection, [one.session_id for one in moved], now=now)
    return moved


def _placed_again(status: Status, replaced: int, kernels: Sequence[Row]) -> bool:
    """A device was found to be bad before any work began there: that is no failure of the session's."""
    began = status not in (Status.SCHEDULED, Status.PREPARING, Status.PULLING)
    bad = any((row["exit"] or {}).get("reason") == "device_failed" for row in kernels)
    return bad and not began and replaced < MOST_REPLACEMENTS


def _fenced_by_its_host(kernels: Sequence[Row]) -> bool:
    """It has ended them because nobody renewed their lease, as it was to."""
    return any((row["exit"] or {}).get("reason") == "fenced" for row in kernels)


async def _note_host(connection: Connection, session_id: SessionId) -> None:
    await connection.execute(
        """
        UPDATE sessions s SET moves_from = coalesce((
            SELECT min(k.agent_id) FROM kernels k
            WHERE k.session_id = s.id AND k.attempt = s.attempt AND k.exit ->> 'reason' = 'fenced'), '?')
        WHERE s.id = $1
        """,
        session_id,
    )


async def _note_replacement(connection: Connection, sessions: Sequence[SessionId]) -> None:
    await connection.execute(
        """
        UPDATE sessions s SET replaced = s.replaced + 1,
            moves_from = coalesce((SELECT k.agent_id FROM kernels k WHERE k.id = s.main_kernel_id), '?')
        WHERE s.id = ANY($1::uuid[]) AND s.moves_from IS NULL
        """,
        list(sessions),
    )


def _views(kernels: Sequence[Row], status: Status) -> list[KernelView]:
    ending = status is Status.TERMINATING
    return [
        KernelView(
            want=Want.GONE if ending and row["want"] == Want.RUN else Want(row["want"]),
            is_main=row["is_main"],
            # who is fenced runs no more, whatever its host has not said yet
            observed=KernelState.GONE
            if row["fenced_at"]
            else KernelState(row["observed"])
            if row["observed"]
            else None,
            finished=bool(row["exit"] and row["exit"].get("finished")),
        )
        for row in kernels
    ]


def _asked(session_id: SessionId, event: Event, kernels: Sequence[Row]) -> Asked:
    """With the exit of the kernel that decided it: the main one where it ended, else the first that did."""
    if event not in (Event.FINISH, Event.FAIL, Event.DEGRADE, Event.MOVE):
        return Asked(session_id=session_id)
    ended = [row for row in kernels if row["observed"] in ("EXITED", "FAILED", "GONE")]
    broken = [row for row in ended if not (row["exit"] or {}).get("finished")]
    if event is Event.MOVE:
        broken = [row for row in broken if (row["exit"] or {}).get("reason") in ("device_failed", "fenced")]
    row = (ended if event is Event.FINISH else broken or ended)[0]
    if event is Event.FINISH:
        return Asked(session_id=session_id, reason=reason_of(row["exit"]), exit_code=_exit_code(row["exit"]))
    reason = "the host says that the container is gone" if row["exit"] is None else reason_of(row["exit"], row["role"])
    return Asked(session_id=session_id, reason=reason, exit_code=_exit_code(row["exit"]))


def _exit_code(exit: Mapping[str, Any] | None) -> int | None:
    """As a shell reports it: 128 and the signal's number when a signal ended it."""
    code, signal = (exit or {}).get("exit_code"), (exit or {}).get("signal")
    if isinstance(code, int) and abs(code) < 2**31:
        return code
    return 128 + signal if isinstance(signal, int) and 0 < signal < 128 else None


def plain(value: Any) -> Any:
    """What PostgreSQL's jsonb takes: no NUL in texts, no number that is none, nothing without end."""
    if isinstance(value, str):
        return value[:65536].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(plain(str(k))): plain(v) for k, v in list(value.items())[:64]}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value[:64]]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < _BIG else None
    return (
        value
        if value is None or isinstance(value, bool) or (isinstance(value, float) and value == value)
        else str(value)
    )


def _text(value: str | None) -> str | None:
    return None if value is None else str(plain(str(value)))[:256]


def _time(seconds: float | None) -> datetime | None:
    if not isinstance(seconds, int | float) or not 0 < seconds < 4e9:
        return None
    return datetime.fromtimestamp(seconds, UTC)
