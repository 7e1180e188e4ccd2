"""A compute session, and the one table of everything that may happen to its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from domain.apps import EndReason, WorkerState
from domain.ids import AccessKey, AgentId, KernelId, SessionId
from domain.resources import ResourceSlot


class SessionTypes(StrEnum):
    INTERACTIVE = "interactive"  #: lives until destroyed, runs what it is sent
    BATCH = "batch"  #: runs one command and ends with it
    INFERENCE = "inference"  #: keeps a declared service healthy
    WORKER = "worker"  #: answers calls, ends after idle time
    SYSTEM = "system"  #: an administrator's, exempt from quota


class ClusterMode(StrEnum):
    SINGLE_NODE = "single-node"
    MULTI_NODE = "multi-node"


class OnAgentLost(StrEnum):
    """What becomes of a session whose host is not heard of."""

    KEEP = "keep"  #: it goes on there, and nobody starts it elsewhere
    REPLACE = "replace"  #: its host ends it once its lease is over, and after that it begins anew elsewhere


#: Of a session that is replaced when its host is lost: with less, a moment's trouble would end it.
SHORTEST_LEASE_SECONDS: Final = 20.0
DEFAULT_LEASE_SECONDS: Final = 60.0
LONGEST_LEASE_SECONDS: Final = 86400.0


class Status(StrEnum):
    PENDING = "PENDING"  #: waiting in the queue for a host with free slots
    SCHEDULED = "SCHEDULED"  #: slots are taken on a host; the host does not know yet
    PREPARING = "PREPARING"  #: the host creates the containers
    PULLING = "PULLING"  #: the host fetches the image
    RUNNING = "RUNNING"  #: every container answers
    RUNNING_DEGRADED = "RUNNING_DEGRADED"  #: the main container answers, another does not
    RESTARTING = "RESTARTING"  #: the containers are being replaced; slots stay taken
    TERMINATING = "TERMINATING"  #: the host removes the containers
    TERMINATED = "TERMINATED"  #: gone as asked, or its work is done
    CANCELLED = "CANCELLED"  #: ended before any container existed
    ERROR = "ERROR"  #: gone for a reason nobody asked for; `status_reason` says which


class Event(StrEnum):
    SCHEDULE = "schedule"  #: a host with room was found
    PREPARE = "prepare"  #: the host has taken the job
    PULL = "pull"  #: the host fetches the image
    START = "start"  #: every kernel answers
    DEGRADE = "degrade"  #: a worker kernel ended, the main one goes on
    RECOVER = "recover"  #: every kernel answers again
    RESTART = "restart"  #: somebody asked for a new attempt
    DESTROY = "destroy"  #: somebody asked for the end
    FINISH = "finish"  #: the main work is done
    EXPIRE = "expire"  #: max_wait, batch_timeout or the lifetime is over
    SKIP = "skip"  #: what it depends on failed, so it will never run
    RETRY = "retry"  #: its work failed, nothing of it is left, and another attempt follows
    MOVE = "move"  #: its host is drained: nothing of it stays there, and its work begins again on another
    FAIL = "fail"  #: something broke, or a deadline passed
    GONE = "gone"  #: the hosts say that nothing is left
    BREAK = "break"  #: the same, after a failure
    FORCE = "force"  #: ended without waiting for the hosts; their slots stay taken until they answer


@dataclass(frozen=True, slots=True)
class Transition:
    source: Status
    event: Event
    target: Status


S, E, T = Status, Event, Transition
# fmt: off
TRANSITIONS: Final = (
    # from                  event        to
    T(S.PENDING,            E.SCHEDULE,  S.SCHEDULED),
    T(S.PENDING,            E.DESTROY,   S.CANCELLED),
    T(S.PENDING,            E.EXPIRE,    S.CANCELLED),
    T(S.PENDING,            E.SKIP,      S.CANCELLED),
    T(S.PENDING,            E.FORCE,     S.CANCELLED),
    T(S.SCHEDULED,          E.PREPARE,   S.PREPARING),
    T(S.SCHEDULED,          E.PULL,      S.PULLING),
    T(S.SCHEDULED,          E.START,     S.RUNNING),
    T(S.SCHEDULED,          E.DESTROY,   S.TERMINATING),
    T(S.SCHEDULED,          E.MOVE,      S.TERMINATING),
    T(S.SCHEDULED,          E.FAIL,      S.TERMINATING),
    T(S.SCHEDULED,          E.FORCE,     S.TERMINATED),
    T(S.PREPARING,          E.PULL,      S.PULLING),
    T(S.PREPARING,          E.START,     S.RUNNING),
    T(S.PREPARING,          E.DESTROY,   S.TERMINATING),
    T(S.PREPARING,          E.MOVE,      S.TERMINATING),
    T(S.PREPARING,          E.FAIL,      S.TERMINATING),
    T(S.PREPARING,          E.FORCE,     S.TERMINATED),
    T(S.PULLING,            E.PREPARE,   S.PREPARING),
    T(S.PULLING,            E.START,     S.RUNNING),
    T(S.PULLING,            E.DESTROY,   S.TERMINATING),
    T(S.PULLING,            E.MOVE,      S.TERMINATING),
    T(S.PULLING,            E.FAIL,      S.TERMINATING),
    T(S.PULLING,            E.FORCE,     S.TERMINATED),
    T(S.RUNNING,            E.DEGRADE,   S.RUNNING_DEGRADED),
    T(S.RUNNING,            E.RESTART,   S.RESTARTING),
    T(S.RUNNING,            E.DESTROY,   S.TERMINATING),
    T(S.RUNNING,            E.FINISH,    S.TERMINATING),
    T(S.RUNNING,            E.EXPIRE,    S.TERMINATING),
    T(S.RUNNING,            E.MOVE,      S.TERMINATING),
    T(S.RUNNING,            E.FAIL,      S.TERMINATING),
    T(S.RUNNING,            E.FORCE,     S.TERMINATED),
    T(S.RUNNING_DEGRADED,   E.RECOVER,   S.RUNNING),
    T(S.RUNNING_DEGRADED,   E.RESTART,   S.RESTARTING),
    T(S.RUNNING_DEGRADED,   E.DESTROY,   S.TERMINATING),
    T(S.RUNNING_DEGRADED,   E.FINISH,    S.TERMINATING),
    T(S.RUNNING_DEGRADED,   E.EXPIRE,    S.TERMINATING),
    T(S.RUNNING_DEGRADED,   E.MOVE,      S.TERMINATING),
    T(S.RUNNING_DEGRADED,   E.FAIL,      S.TERMINATING),
    T(S.RUNNING_DEGRADED,   E.FORCE,     S.TERMINATED),
    T(S.RESTARTING,         E.START,     S.RUNNING),
    T(S.RESTARTING,         E.DESTROY,   S.TERMINATING),
    T(S.RESTARTING,         E.MOVE,      S.TERMINATING),
    T(S.RESTARTING,         E.FAIL,      S.TERMINATING),
    T(S.RESTARTING,         E.FORCE,     S.TERMINATED),
    T(S.TERMINATING,        E.GONE,      S.TERMINATED),
    T(S.TERMINATING,        E.BREAK,     S.ERROR),
    T(S.TERMINATING,        E.RETRY,     S.PENDING),
    T(S.TERMINATING,        E.FORCE,     S.TERMINATED),
    T(S.TERMINATED,         E.RESTART,   S.PENDING),
    T(S.CANCELLED,          E.RESTART,   S.PENDING),
    T(S.ERROR,              E.RESTART,   S.PENDING),
)
# fmt: on
del S, E, T


def _index(rows: tuple[Transition, ...]) -> Mapping[Event, Mapping[Status, Status]]:
    """`{event: {source: target}}`; two rows for one (source, event) is a mistake in the table."""
    table: dict[Event, dict[Status, Status]] = {event: {} for event in Event}
    for row in rows:
        if row.source in table[row.event]:
            raise ValueError(f"{row.source} has two targets for {row.event}")
        table[row.event][row.source] = row.target
    return MappingProxyType({e: MappingProxyType(t) for e, t in table.items()})


TARGETS: Final = _index(TRANSITIONS)
#: Declared, not derived: a final session leaves its status only by a restart, as a new attempt.
FINAL: Final = frozenset({Status.TERMINATED, Status.CANCELLED, Status.ERROR})
LIVE: Final = frozenset(Status) - FINAL
#: Statuses in which containers answer.
ANSWERING: Final = frozenset({Status.RUNNING, Status.RUNNING_DEGRADED})
ANY_STATUS: Final = frozenset(Status)


def sources(event: Event) -> frozenset[Status]:
    """Where `event` is legal."""
    return frozenset(TARGETS[event])


class Lease(StrEnum):
    """What says that somebody is at work on a status; once it is over, the next one takes over, or the deadline comes."""

    CLAIM = "claim"  #: of the manager that tells the host: kernels.claimed_until
    HOST = "host"  #: of the agent that does the work: agents.lease_until


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a session may stay in a status that is meant to pass, whose lease holds it, and what happens then."""

    seconds: float
    lease: Lease
    compensation: Event
    reason: str


#: PENDING is bounded by the session's own `max_wait`, RUNNING by its `timeout`. Progress renews PULLING's.
DEADLINES: Final[Mapping[Status, Deadline]] = MappingProxyType(
    {
        Status.SCHEDULED: Deadline(120, Lease.CLAIM, Event.FAIL, "the host did not take the session in time"),
        Status.PREPARING: Deadline(300, Lease.HOST, Event.FAIL, "the containers did not come up in time"),
        Status.PULLING: Deadline(1800, Lease.HOST, Event.FAIL, "the image could not be fetched in time"),
        Status.RESTARTING: Deadline(300, Lease.HOST, Event.FAIL, "the containers did not come up again in time"),
        Status.TERMINATING: Deadline(
            180, Lease.HOST, Event.FORCE, "the host did not confirm the end; its slots stay taken until it does"
        ),
    }
)


class Want(StrEnum):
    """What the manager wants of a kernel."""

    NONE = "NONE"  #: no host has been chosen yet
    RUN = "RUN"
    GONE = "GONE"


class KernelState(StrEnum):
    """What a host says of a kernel."""

    PREPARING = "PREPARING"
    PULLING = "PULLING"
    RUNNING = "RUNNING"  #: its runner answers
    EXITED = "EXITED"  #: it ran, and its container or main work has ended; `exit` says how
    FAILED = "FAILED"  #: it could not be brought up; `exit` says why
    GONE = "GONE"  #: nothing of it is left but its output


#: Of a kernel that has come to its end.
ENDED: Final = frozenset({KernelState.EXITED, KernelState.FAILED, KernelState.GONE})


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelView:
    """What `derive` needs to know of one kernel of the session's present attempt."""

    want: Want
    is_main: bool
    observed: KernelState | None = None
    finished: bool = False  #: EXITED because its main work was done


def derive(status: Status, failed: bool, kernels: Iterable[KernelView], *, retrying: bool = False) -> Event | None:
    """What the hosts' facts mean for the session: the next event, or None when nothing follows.

    `failed`: it ends because of a failure. `retrying`: another attempt follows once nothing of this one is left.

    Pure; reports, and `check_and_transit_status`, move a status by this and by nothing else.
    """
    views = list(kernels)
    if status is Status.TERMINATING:
        nothing_left = all(v.want is Want.NONE or v.observed is KernelState.GONE for v in views)
        if not nothing_left:
            return None
        return Event.RETRY if retrying else Event.BREAK if failed else Event.GONE
    views = [view for view in views if view.want is not Want.GONE]  # the others were taken out of the cluster
    states = {view.observed for view in views}
    if status in (Status.SCHEDULED, Status.PREPARING, Status.PULLING, Status.RESTARTING):
        if states & ENDED:
            return Event.FINISH if _main_finished(views) and status in TARGETS[Event.FINISH] else _start_or_fail(views)
        if {view.observed for view in views if view.want is Want.RUN} == {KernelState.RUNNING}:
            return Event.START
        if KernelState.PULLING in states:
            return Event.PULL if status in TARGETS[Event.PULL] else None
        if KernelState.PREPARING in states and status in TARGETS[Event.PREPARE]:
            return Event.PREPARE
        return None
    if status in ANSWERING:
        main = next((view.observed for view in views if view.is_main), KernelState.GONE)
        if main in ENDED:
            return Event.FINISH if _main_finished(views) else Event.FAIL
        if states & ENDED:
            return Event.DEGRADE if status is Status.RUNNING else None
        return Event.RECOVER if status is Status.RUNNING_DEGRADED and states == {KernelState.RUNNING} else None
    return None


def _main_finished(views: list[KernelView]) -> bool:
    return any(view.is_main and view.observed is KernelState.EXITED and view.finished for view in views)


def _start_or_fail(views: list[KernelView]) -> Event:
    """Work so short that it was over before RUNNING was reported still ran: START now, FINISH follows."""
    others_run = all(v.observed is KernelState.RUNNING or v.is_main for v in views)
    return Event.START if _main_finished(views) and others_run else Event.FAIL


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKernel:
    """One container of a session."""

    id: KernelId
    role: str = "main"  #: main, or worker
    index: int = 1  #: counts from 1 within the role
    agent_id: AgentId | None = None
    observed: KernelState | None = None
    pending: bool = False  #: what is wanted of it, or who its cluster's others are, has not reached its host yet

    @property
    def name(self) -> str:
        """By which the session's other kernels, and its owner, call it: main1, worker1, ..."""
        return f"{self.role}{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session's row, as actions see it."""

    id: SessionId
    name: str
    user_id: UUID
    access_key: AccessKey
    domain: str
    project: str
    session_type: SessionTypes = SessionTypes.INTERACTIVE
    cluster_mode: ClusterMode = ClusterMode.SINGLE_NODE
    cluster_size: int = 1
    image: str
    architecture: str
    status: Status = Status.PENDING
    status_reason: str | None = None
    attempt: int = 1
    version: int = 1
    activity: int = 0  #: counts runs and transfers, which change the row but not its version
    requested_slots: ResourceSlot
    occupied_slots: ResourceSlot = field(default_factory=ResourceSlot)  #: what its kernels hold on their hosts
    tag: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    bootstrap_script: str | None = None
    bootstrap_required: bool = False
    startup_command: str | None = None
    shm_mib: int | None = None
    priority: int = 10
    timeout_seconds: float | None = None
    max_wait_seconds: float | None = None
    starts_at: datetime | None = None  #: not placed before
    batch_timeout_seconds: float | None = None  #: of a batch session's work, from RUNNING on
    max_retries: int = 0
    retry_delay_seconds: float = 0.0  #: before the first retry; twice as long before each further one
    retries: int = 0  #: that have been begun
    retrying: bool = False  #: it ends, and another attempt follows
    mounts: tuple[Mapping[str, Any], ...] = ()  #: its volumes, as in agent.wire.KernelSpec
    outputs: tuple[str, ...] = ()  #: what is kept of a batch session's files: globs below /home/work
    waits_for: tuple[str, ...] = ()  #: names of sessions whose end it waits for
    labels: Mapping[str, str] = field(default_factory=dict)
    preopen_ports: tuple[int, ...] = ()
    callback_url: str | None = None  #: is told what happens to it
    idle_timeout_seconds: float | None = None  #: without a call or run, it ends after so long
    resource_group: str = "default"  #: whose hosts it may get
    constraints: Mapping[str, Any] = field(default_factory=dict)  #: on its hosts: domain.placement.Constraints as JSON
    profile: str | None = None  #: domain.isolation.Profile of its containers, from its placement on
    egress: str | None = None  #: domain.isolation.Egress of its containers, from its placement on
    result: str = "UNDEFINED"
    exit_code: int | None = None
    failed: bool = False
    agent_lost: bool = False
    on_agent_lost: OnAgentLost = OnAgentLost.KEEP
    agent_lease_seconds: float | None = None  #: so long its containers outlive the silence of their host
    created_at: datetime
    status_changed_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: the end of its lifetime; counted from RUNNING
    expires_at: datetime | None = None
    last_activity_at: datetime | None = None
    execution_count: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    #: the kernel that executions, files and logs go to, and its host
    main_kernel_id: KernelId
    agent_id: AgentId | None = None
    #: all of the present attempt, the main one first, without those that were taken out of the cluster
    kernels: tuple[SessionKernel, ...] = ()
    notices: tuple[Mapping[str, Any], ...] = ()
    #: {checker, reason, warned_at, due_at}: it will be ended then, unless it is used
    idle_warning: Mapping[str, Any] | None = None
    worker: WorkerState | None = None  #: of a worker session
    end_reason: EndReason | None = None  #: of a worker session that has ended, or is about to
