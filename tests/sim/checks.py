"""What must hold after every step, and at the end. A violation ends the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from agent.hub import LEASE_SECONDS
from domain.session import DEADLINES, FINAL
from repositories.fsck import CHECKS
from tests.sim.engine import Container, Engine
from tests.sim.store import Backend

#: Of fsck's queries those that may never find anything, not even in passing.
ALWAYS: Final = (
    "slots_of_the_living", "slots_of_the_gone", "two_attempts", "ends_without_a_reason", "no_deadline", "no_kernels",
    "history_head", "history_chain",
)  # fmt: skip
#: Of the server's settings and of what other loops do, which do not run here.
NEVER: Final = ("durability", "held_transactions", "overdue", "keys_without_an_answer")
_LOOKED_AT: Final = ("sessions", "kernels", "allocations", "status_history", "quota")


class Violation(Exception):
    """What must hold does not."""


class Watcher:
    def __init__(
        self,
        backend: Backend,
        engines: Sequence[Engine],
        note: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._engines = {engine.host: engine for engine in engines}
        self._note = note
        self._sessions: dict[str, tuple[int, str, int]] = {}  #: version, status, attempt
        self._kernels: dict[str, dict[str, Any]] = {}
        self._forced: set[str] = set()
        self._told_twice: set[tuple[str, str, int]] = set()
        checks = [check for check in CHECKS if check.name in ALWAYS]
        assert len(checks) == len(ALWAYS)
        always = " UNION ALL ".join(
            f"SELECT '{check.invariant} {check.name}' AS name, subject, detail FROM ({check.query}) q"
            for check in checks
        )
        #: in one statement: it is asked after each commit
        self._look = f"""
            SELECT (SELECT jsonb_agg(b ORDER BY name, subject) FROM ({always}) b) AS broken,
                (SELECT jsonb_agg(s ORDER BY name) FROM ({_SESSIONS}) s) AS sessions,
                (SELECT jsonb_agg(k ORDER BY id) FROM ({_KERNELS}) k) AS kernels
        """
        self.failure: Violation | None = None

    def fail(self, said: str) -> None:
        """The first is the one that counts; production code must not swallow it, so it is kept, not raised."""
        if self.failure is None:
            self._note(f"VIOLATION {said}")
            self.failure = Violation(said)

    # -- the database --------------------------------------------------------------------------------------------------
    def look_at_database(self, statements: Sequence[str]) -> None:
        if not any(word in sql for sql in statements for word in _LOOKED_AT):
            return
        found = self._backend.call("fetchrow", self._look)
        for row in found["broken"] or ():
            self.fail(f"{row['name']}: {row['subject']} {row['detail']}")
        self._follow_sessions(found["sessions"] or ())
        self._follow_kernels(found["kernels"] or ())
        for engine in self._engines.values():
            self.look_at_host(engine.host)

    def _follow_sessions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            key, now = row["name"], (row["version"], row["status"], row["attempt"])
            before = self._sessions.get(key)
            if before == now:
                continue
            self._sessions[key] = now
            self._note(f"{key} is {now[1]} (attempt {now[2]}, version {now[0]}): {row['status_reason']}")
            if before is None:
                continue
            if now[0] < before[0] or now[2] < before[2] or (now[0] == before[0] and now[1] != before[1]):
                self.fail(f"I5 {key} went from {before} to {now}")
            if before[1] in FINAL and now[2] == before[2]:
                self.fail(f"I5 {key} left {before[1]} without a new attempt")
            if row["forced"]:
                self._forced.add(row["id"])

    def _follow_kernels(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            before = self._kernels.get(row["id"])
            if before == row:
                continue
            self._kernels[row["id"]] = row
            self._note("kernel " + " ".join(f"{name}={value}" for name, value in row.items() if name != "session_id"))
            if row["seen_generation"] > row["generation"]:
                self.fail(f"kernel {row['id']} has been seen with an intent that nobody had: {row}")
            if before is None or before["agent_id"] != row["agent_id"]:
                continue
            # what was seen may be asked for again; what was wanted and what was told only goes on
            for names in (("attempt", "generation"), ("boot_no", "report_seq")):
                if tuple(row[one] for one in names) < tuple(before[one] for one in names):
                    self.fail(f"{names} of kernel {row['id']} go back from {before} to {row}")

    # -- hosts -----------------------------------------------------------------------------------------------------------
    def look_at_host(self, host: str) -> None:
        """I1: no host has more than it has; what is told to be gone is gone. I3: no session runs twice."""
        containers = [one for one in self._engines[host].containers.values() if one.status in ("created", "running")]
        for name, most in (("cpu", 4000), ("mem", 8192)):
            used = sum(one.slots.get(name, 0) for one in containers)
            if used > most:
                self.fail(f"I1 {host} has {used} of {most} {name} in {sorted(one.name for one in containers)}")
        for one in containers:
            row = self._kernels.get(one.kernel_id)
            if row is None:
                self.fail(f"I2 {one.name} on {host} belongs to nothing")
            elif row["observed"] == "GONE" and row["attempt"] >= one.attempt and row["agent_id"] == host:
                self.fail(f"I1 {one.name} is on {host}, which has said that it is gone")
            elif row["agent_id"] not in (host, None):
                self.fail(f"I3 {one.name} is on {host}, and its kernel on {row['agent_id']}")
        self._no_session_twice()
        for (kernel, attempt), number in self._engines[host].started.items():
            if number > 1 and (host, kernel, attempt) not in self._told_twice:
                self._told_twice.add((host, kernel, attempt))
                self.fail(f"I3 the work of {kernel} began {number} times in attempt {attempt}")

    def _no_session_twice(self) -> None:
        running: dict[str, Container] = {}
        for engine in self._engines.values():
            for one in engine.containers.values():
                if one.status != "running":
                    continue
                other = running.setdefault(one.session_id, one)
                twice = other is not one and (other.attempt, other.kernel_id) != (one.attempt, one.kernel_id)
                if twice and one.session_id not in self._forced:
                    self.fail(f"I3 {one.name} and {other.name} run for one session")

    # -- the end -----------------------------------------------------------------------------------------------------------
    def unsettled(self) -> list[str]:
        """What has not come to rest: empty when nothing is left to do."""
        fresh = self._clock() + timedelta(seconds=LEASE_SECONDS / 2)
        found = [row["said"] for row in self._backend.call("fetch", _UNSETTLED, fresh)]
        rows = {row["id"]: row for row in map(dict, self._backend.call("fetch", _KERNELS))}
        there = {
            one.kernel_id: one for engine in self._engines.values() for one in engine.containers.values()
            if one.status == "running"
        }  # fmt: skip
        for kernel_id, row in rows.items():
            runs = row["want"] == "RUN" and row["observed"] == "RUNNING"
            if runs and (kernel_id not in there or there[kernel_id].attempt != row["attempt"]):
                found.append(f"kernel {kernel_id} is to run, and does not")
        found += [f"{one.name} runs, and is not wanted" for key, one in there.items() if _unwanted(rows.get(key), one)]
        return sorted(found)

    def lost(self) -> list[str]:
        return [row["id"] for row in self._backend.call("fetch", "SELECT id FROM agents WHERE lost ORDER BY id")]

    def unheard(self, known: Iterable[tuple[str, str, int, str]]) -> set[str]:
        """Of what hosts know of their kernels (host, kernel, attempt, observed): what the database does not."""
        rows = {row["id"]: row for row in self._backend.call("fetch", _KERNELS)}
        return {
            f"{host} knows that {kernel_id} is {observed}, and nobody has heard"
            for host, kernel_id, attempt, observed in known
            if (row := rows.get(kernel_id)) is not None
            and (row["agent_id"], row["attempt"]) == (host, attempt)
            and row["observed"] != observed
        }

    def too_early(self) -> list[str]:
        """What a deadline has ended before its time."""
        rows = self._backend.call(
            "fetch", _TOO_EARLY, {str(one): deadline.seconds for one, deadline in DEADLINES.items()}
        )
        return [row["said"] for row in rows]

    def leftovers(self) -> list[str]:
        """After everything was destroyed."""
        found = [
            f"{row['status']}: {row['name']}"
            for row in self._backend.call("fetch", _SESSIONS)
            if row["status"] not in FINAL
        ]
        found += [
            f"{row['agent_id']} {row['name']}: {row['used']} in use" for row in self._backend.call("fetch", _USED)
        ]
        found += [f"container {one.name}" for engine in self._engines.values() for one in engine.containers.values()]
        now = {"$1": "'2040-01-01T00:00:00Z'"}
        for check in CHECKS:
            if check.name not in NEVER:
                rows = self._backend.call("fetch", check.query.replace("$1", now["$1"]))
                found += [f"{check.invariant} {check.name}: {row['subject']} {row['detail']}" for row in rows]
        return sorted(found)


def _unwanted(row: dict[str, Any] | None, container: Container) -> bool:
    return row is None or row["want"] != "RUN" or row["attempt"] != container.attempt


_SESSIONS: Final = """
    SELECT s.id::text, s.name, s.status, s.version, s.attempt, s.status_reason, EXISTS (
        SELECT FROM status_history h WHERE h.session_id = s.id AND h.event = 'force') AS forced FROM sessions s ORDER BY s.name
"""
_KERNELS: Final = """
    SELECT id::text, session_id::text, agent_id, attempt, want, generation, seen_generation, observed, boot_no, report_seq
    FROM kernels ORDER BY id
"""
_USED: Final = "SELECT agent_id, name, used FROM resources WHERE used <> 0 ORDER BY 1, 2"
_UNSETTLED: Final = """
    SELECT format('%s is %s', name, status) AS said FROM sessions
    WHERE status IN ('SCHEDULED', 'PREPARING', 'PULLING', 'RESTARTING', 'TERMINATING')
    UNION ALL
    SELECT format('%s has not heard of generation %s of %s', agent_id, generation, id) FROM kernels
    WHERE seen_generation < generation AND agent_id IS NOT NULL
    UNION ALL
    SELECT format('%s waits, and %s has room', s.name, a.id) FROM sessions s JOIN kernels k ON k.session_id = s.id
        AND k.attempt = s.attempt JOIN agents a ON NOT EXISTS (
            SELECT FROM resources r WHERE r.agent_id = a.id AND r.capacity - r.used < (k.slots ->> r.name)::bigint)
    WHERE s.status = 'PENDING' AND NOT EXISTS (  -- room is kept for who waits longer, and outlasts none
        SELECT FROM sessions o WHERE o.status = 'PENDING' AND o.created_at < s.created_at)
    UNION ALL
    SELECT format('%s is taken for lost', id) FROM agents WHERE lost
    UNION ALL
    SELECT format('the lease of %s is not renewed', id) FROM agents WHERE lease_until < $1
    ORDER BY 1
"""
#: $1 seconds by status. Of what is meant to pass, since it began; of a wait and a life, the shortest that may be meant.
_TOO_EARLY: Final = """
    SELECT format('I11 %s was %s for %s s, and a deadline ended it by %s', s.name, h.source, h.at - b.at, h.event) AS said
    FROM status_history h
    JOIN status_history b ON b.session_id = h.session_id AND b.version = h.version - 1
    JOIN sessions s ON s.id = h.session_id
    WHERE h.cause ->> 'by' = 'deadline' AND h.at - b.at < make_interval(secs => coalesce(CASE h.source
        WHEN 'PENDING' THEN s.max_wait_seconds
        WHEN 'RUNNING' THEN least(s.timeout_seconds, s.batch_timeout_seconds)
        ELSE ($1::jsonb ->> h.source)::double precision END, 1e9))
    ORDER BY 1
"""
