"""What an explanation is made of: sentences for people, and beside each of them what it says for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from domain.ids import AgentId, SessionId
from domain.placement import Reservation, Scope

#: Of what a session counts for limits: {(scope, name of the limit): amount}.
Counted: TypeAlias = Mapping[tuple[Scope, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """A host of the session's group that takes no sessions now."""

    id: AgentId
    architecture: str
    code: str  #: cordoned, draining, lost, away
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an explanation says more with than the snapshot alone; all of it may be left out."""

    viewer: UUID | None = None  #: who reads it; other users' sessions are not named. None: an administrator
    groups: tuple[str, ...] = ()  #: resource groups that the session's owner may use
    most_priority: int | None = None  #: that its owner may ask for; None: as it is
    away: tuple[Away, ...] = ()
    counted: Mapping[SessionId, Counted] = field(default_factory=dict)  #: of sessions that have been placed
    search: bool = True  #: for ways out; otherwise only why it waits
    most_plans: int = 200
    is_over: Callable[[], bool] = lambda: False  #: the time is up: what is found until then is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Sessions that come before this one, by one rule."""

    rule: str  #: priority, share, age
    sessions: int
    own: int  #: of these, sessions of the same user
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One thing that keeps a session from a host."""

    code: str
    text: str  #: 2 GPUs too few


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """What a host lacks now; nothing: it would do by itself."""

    agent: AgentId
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCount:
    """Hosts that lack the same."""

    hosts: int
    text: str
    codes: tuple[str, ...]
    agents: tuple[AgentId, ...]  #: the first few of them


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """A limit that would have to be higher."""

    scope: str
    of: str
    name: str
    more: int
    max_amount: int  #: then


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A session whose end would help."""

    session_id: SessionId | None  #: None: it is another user's
    name: str | None
    own: bool
    agents: tuple[AgentId, ...]
    ends_at: datetime | None  #: at the latest


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A change with which the session would start: `plan` was run with it, and places the session.

    Of the fields, those are set that tell what has to change.
    """

    kind: str  #: fewer, kernels, without, group, quota, ends, time, lifetime, priority
    text: str  #: with 3 GPUs
    now: bool = True  #: False: it could start with it at some time, but not now
    slots: Mapping[str, int] = field(
        default_factory=dict
    )  #: at most so much for each of its kernels; cpu in thousandths
    kernels: int | None = None  #: at most so many
    without: tuple[str, ...] = ()  #: constraints
    resource_group: str | None = None
    limits: tuple[LimitChange, ...] = ()
    endings: tuple[Ending, ...] = ()
    at: datetime | None = None  #: when everything with a lifetime has ended as late as it may
    lifetime_seconds: float | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Room that is kept for this session, or from it."""

    own: bool  #: kept for this session
    agents: tuple[AgentId, ...]
    at: datetime | None
    text: str

    @classmethod
    def of(cls, reservation: Reservation, *, own: bool, text: str) -> Held:
        return cls(own=own, agents=reservation.hosts, at=reservation.at, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a session waits, and what it would start with."""

    code: str  #: starting, or as in `domain.placement.Blocked`
    text: str  #: one sentence
    resource_group: str | None = None
    position: int | None = None  #: 1: it is the first
    queued: int | None = None
    before: tuple[Before, ...] = ()
    hosts: tuple[HostCount, ...] = ()
    per_host: tuple[HostReport, ...] = ()
    reservation: Held | None = None
    never: bool = False  #: no change in time helps
    ways: tuple[Way, ...] = ()
    plans: int = 0  #: that were made to find this out
    cut_off: bool = False  #: there may be further ways
    on: tuple[AgentId, ...] = ()  #: of one that starts: where
