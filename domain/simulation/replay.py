"""Virtual time: sessions come, the scheduler's `plan` places them, and they end. Nothing sleeps, nothing is random."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID, uuid5

from domain.ids import AgentId, KernelId, SessionId
from domain.placement import (
    NOBODY,
    Blocked,
    Constraints,
    Limit,
    PendingKernel,
    PendingSession,
    Placement,
    Plan,
    Snapshot,
)
from domain.scheduler import plan
from domain.scheduler.order import Standing, capacity_of
from domain.session import ClusterMode
from domain.simulation import excerpt
from domain.simulation.fleet import Fleet
from domain.simulation.policy import Policy
from domain.simulation.room import Shape, shape
from domain.simulation.standing import Holdings
from domain.simulation.workload import Job, Workload

Planner: TypeAlias = Callable[[Snapshot, datetime], Plan]
_MS: Final = timedelta(milliseconds=1)
_KERNELS: Final = 1 << 64  #: kernels' ids begin where no session's is


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one session."""

    job: Job
    started_at: datetime | None = None  #: None: never
    ended_at: datetime | None = None
    placement: Placement | None = None
    gpus: float = 0.0  #: devices, or fractions of them
    cut_short: bool = False  #: by its timeout
    never: Blocked | None = None  #: why not

    @property
    def waited_seconds(self) -> float | None:
        return None if self.started_at is None else (self.started_at - self.job.ready_at).total_seconds()

    @property
    def hosts(self) -> tuple[AgentId, ...]:
        """Of its kernels."""
        return tuple(kernel.agent_id for kernel in self.placement.kernels) if self.placement else ()

    @property
    def backfilled(self) -> bool:
        """It passed one that waited for room."""
        return self.placement is not None and self.placement.passed is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How the fleet was from this time on."""

    at: datetime
    cpu: float  #: thousandths that are held
    mem: float
    gpu: float  #: devices; shares count as fractions
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    fleet: Fleet
    policy: Policy
    outcomes: tuple[Outcome, ...]  #: in the order of the workload
    moments: tuple[Moment, ...]
    plans: int  #: how often was planned


def replay(
    workload: Workload, fleet: Fleet, policy: Policy, *, planner: Planner = plan, always: bool = False
) -> Replayed:
    """All of it, to its end. `always`: plan at every event with the whole queue, which gives the same and takes longer."""
    return _Replay(workload.jobs, fleet, policy, planner, always).run()


class _Replay:
    def __init__(self, jobs: Sequence[Job], fleet: Fleet, policy: Policy, planner: Planner, always: bool) -> None:
        self._jobs, self._fleet, self._policy, self._planner, self._always = jobs, fleet, policy, planner, always
        self._origin = min((job.submitted_at for job in jobs), default=datetime(2026, 1, 1, tzinfo=UTC))
        self._sessions = [_session(number, job, policy) for number, job in enumerate(jobs)]
        self._shapes = [shape(job) for job in jobs]
        groups = sorted({job.resource_group for job in jobs} | fleet.groups)
        self._groups = tuple(policy.group(name) for name in groups)
        weights = {user_id(name): weight for name, weight in policy.weights.items()}
        self._standing = Holdings(fleet, policy, groups, weights)
        self._arrivals = sorted(((self._ms(job.ready_at), at) for at, job in enumerate(jobs)), reverse=True)
        self._capacity = capacity_of(fleet.hosts)
        self._queue: dict[SessionId, PendingSession] = {}
        self._waiting: Counter[Shape] = Counter()  #: shapes of those in the queue
        self._outcomes: list[Outcome] = [Outcome(job=job) for job in jobs]
        self._ends: list[tuple[int, int]] = []
        self._may_start = False  #: somebody was placed by the last plan
        self._latest: tuple[int, datetime, SessionId] | None = None  #: who came last by priority and age
        self._never: dict[Shape, Blocked | None] = {}
        self._plans = 0

    def run(self) -> Replayed:
        moments = []
        for now_ms, ending, coming in self._events():
            self._end(ending, now_ms)
            entered = [number for number in coming if self._comes(number, now_ms)]
            last = not self._arrivals and not self._ends
            if self._queue and (self._always or last or self._is_worth_planning(bool(ending), entered)):
                self._place(now_ms)
            moments.append(Moment(at=self._at(now_ms), queued=len(self._queue), **self._standing.totals))
        if moments:
            self._leave(moments[-1].at)
        return Replayed(
            fleet=self._fleet,
            policy=self._policy,
            outcomes=tuple(self._outcomes),
            moments=tuple(moments),
            plans=self._plans,
        )

    def _events(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """Times at which something happens, each once: who ends, and who comes."""
        arrivals = self._arrivals
        while arrivals or self._ends:
            now_ms = min(at for at, _ in (*arrivals[-1:], *self._ends[:1]))
            ending, coming = [], []
            while self._ends and self._ends[0][0] == now_ms:
                ending.append(heapq.heappop(self._ends)[1])
            while arrivals and arrivals[-1][0] == now_ms:
                coming.append(arrivals.pop()[1])
            yield now_ms, ending, coming[::-1]

    def _end(self, ending: Sequence[int], now_ms: int) -> None:
        freed: set[AgentId] = set()
        for number in ending:
            freed.update(self._standing.release(self._sessions[number].id, now_ms))
        if freed:
            self._standing.room.freed(freed, self._waiting)

    def _comes(self, number: int, now_ms: int) -> bool:
        """Whether it takes its place in the queue: not when the empty fleet has no room for it."""
        session, one = self._sessions[number], self._shapes[number]
        if one not in self._never:
            alone = Snapshot(
                pending=(session,), hosts=self._fleet.hosts, groups=self._groups, limits=self._limits_of_nobody(session)
            )
            self._never[one] = self._planner(alone, self._at(now_ms)).blocked.get(session.id)
        if (never := self._never[one]) is not None:
            self._outcomes[number] = replace(self._outcomes[number], never=never)
            return False
        self._queue[session.id] = session
        self._waiting[one] += 1
        return True

    def _limits_of_nobody(self, session: PendingSession) -> tuple[Limit, ...]:
        return tuple(replace(limit, held=0) for limit in self._standing.limits((session.user_id,)))

    def _is_worth_planning(self, freed: bool, coming: Sequence[int]) -> bool:
        """Whether somebody may start now who did not at the last plan.

        Room and limits change only by ends, and who comes last in line changes nothing for the others. Fair shares drift
        with time as well: then everybody who fits may have come first by now.
        """
        room, anybody = self._standing.room, freed or self._may_start or self._policy.fair_share
        for number in coming:
            key = _order(self._sessions[number])
            anybody = anybody or (self._latest is not None and key < self._latest)
            self._latest = key if self._latest is None else max(self._latest, key)
        return any(room.fits(one) for one in (self._waiting if anybody else [self._shapes[at] for at in coming]))

    def _place(self, now_ms: int) -> None:
        now, planned = self._at(now_ms), self._plan_the_queue(now_ms)
        for placement in planned.placements:
            session = self._queue.pop(placement.session_id)
            number = _number(session.id)
            self._waiting[self._shapes[number]] -= 1
            if not self._waiting[self._shapes[number]]:
                del self._waiting[self._shapes[number]]
            seconds, cut_short = _holds(self._jobs[number], session.lifetime_seconds)
            ends_ms = now_ms + max(1, round(seconds * 1000))
            lifetime = session.lifetime_seconds
            known = None if lifetime is None else now + timedelta(seconds=lifetime)
            kinds = self._standing.take(session, placement, known, now_ms)
            heapq.heappush(self._ends, (ends_ms, number))
            self._outcomes[number] = replace(
                self._outcomes[number],
                started_at=now,
                ended_at=self._at(ends_ms),
                placement=placement,
                gpus=kinds["gpu"],
                cut_short=cut_short,
            )
        self._may_start = bool(planned.placements)

    def _plan_the_queue(self, now_ms: int) -> Plan:
        queue, policy = list(self._queue.values()), self._policy
        if self._always or policy.per_user:  # who is over a limit is no obstacle to others
            return self._plan(tuple(queue), now_ms)
        if not policy.backfill:
            return excerpt.in_line(queue, lambda some: self._plan(some, now_ms), fair_share=policy.fair_share)
        fitting = {one for one in self._waiting if self._standing.room.fits(one)}

        def fits(session: PendingSession) -> bool:
            return self._shape(session) in fitting

        if not policy.fair_share:
            return self._plan(tuple(excerpt.in_order(queue, fits, self._shape, lambda _: 0.0)), now_ms)
        if len(self._groups) == 1 and sum(self._waiting[one] for one in fitting) == 1:
            shares = self._standing.shares({(one.resource_group, one.user_id): None for one in queue}, now_ms)
            standing = Standing(shares, self._capacity)
            some = excerpt.in_order(queue, fits, self._shape, lambda one: standing.share(one.user_id))
        else:
            some = excerpt.passing(queue, fits, self._shape)
        return self._plan(tuple(some), now_ms)

    def _shape(self, session: PendingSession) -> Shape:
        return self._shapes[_number(session.id)]

    def _plan(self, pending: tuple[PendingSession, ...], now_ms: int) -> Plan:
        self._plans += 1
        users = {(session.resource_group, session.user_id): None for session in pending}
        snapshot = Snapshot(
            pending=pending,
            hosts=self._standing.hosts,
            groups=self._groups,
            shares=self._standing.shares(users, now_ms) if self._policy.fair_share else (),
            limits=self._standing.limits({user: None for _, user in users}) if self._policy.per_user else (),
            holdings=self._standing.holdings,
        )
        return self._planner(snapshot, self._at(now_ms))

    def _leave(self, at: datetime) -> None:
        """Whoever is still in the queue of an empty fleet never starts; the plan says why."""
        if not self._queue:
            return
        blocked = self._plan(tuple(self._queue.values()), self._ms(at)).blocked
        unknown = Blocked(code="insufficient", detail="it did not fit")
        for session_id in self._queue:
            number = _number(session_id)
            self._outcomes[number] = replace(self._outcomes[number], never=blocked.get(session_id, unknown))

    def _ms(self, at: datetime) -> int:
        return -((self._origin - at) // _MS)

    def _at(self, now_ms: int) -> datetime:
        return self._origin + now_ms * _MS


def user_id(name: str) -> UUID:
    return uuid5(NOBODY, name)


def _order(session: PendingSession) -> tuple[int, datetime, SessionId]:
    return -session.priority, session.created_at, session.id


def _number(session_id: SessionId) -> int:
    return session_id.int - 1


def _holds(job: Job, lifetime: float | None) -> tuple[float, bool]:
    """For how long, and whether that is less than it would work."""
    if lifetime is None or lifetime >= job.duration_seconds:
        return job.duration_seconds, False
    return lifetime, True


def _session(number: int, job: Job, policy: Policy) -> PendingSession:
    first = _KERNELS + number * _KERNELS
    slots = job.slots
    user = user_id(job.user)
    return PendingSession(
        id=SessionId(UUID(int=number + 1)),
        architecture=job.architecture,
        priority=job.priority if policy.priorities else 0,
        created_at=job.submitted_at,
        kernels=tuple(PendingKernel(id=KernelId(UUID(int=first + each)), slots=slots) for each in range(job.kernels)),
        user_id=user,
        resource_group=job.resource_group,
        constraints=Constraints(gpu_model=job.gpu_model),
        lifetime_seconds=job.timeout_seconds if job.timeout_seconds is not None else policy.lifetime_seconds,
        scopes=(("user", str(user)),) if policy.per_user else (),
        cluster_mode=ClusterMode.MULTI_NODE if job.kernels > 1 else ClusterMode.SINGLE_NODE,
        clustered=job.kernels > 1,
    )
