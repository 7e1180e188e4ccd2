"""What the scheduler looks at, and what it answers: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from domain.ids import AgentId, KernelId, SessionId
from domain.session import ClusterMode


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingKernel:
    id: KernelId
    slots: Mapping[str, int]  #: milli-CPU, MiB, units


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSession:
    """A session in the queue, with every kernel of its present attempt."""

    id: SessionId
    architecture: str
    priority: int
    created_at: datetime
    kernels: tuple[PendingKernel, ...]
    cluster_mode: ClusterMode = ClusterMode.SINGLE_NODE
    clustered: bool = False  #: its kernels get a network of their own
    joins: bool = False  #: the session runs, and this kernel of it is a new one
    hosts: frozenset[AgentId] = frozenset()  #: those that hold kernels of it already
    images_on: frozenset[AgentId] = frozenset()  #: the only hosts that have its images: snapshots lie on one host
    stores: frozenset[str] = frozenset()  #: of its volumes: a host has to have all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An agent that takes sessions now. Amounts are by the names of its resources: cpu, mem, gpu/UUID, ..."""

    id: AgentId
    architecture: str
    free: Mapping[str, int]
    capacity: Mapping[str, int]  #: what it has when it is empty
    store: str | None = None  #: of volumes
    address: str | None = None  #: under which other hosts reach it; without one it shares no cluster with them


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    pending: tuple[PendingSession, ...]
    hosts: tuple[Host, ...]
    next_start_at: datetime | None = None  #: of those in the queue whose time has not come


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlacement:
    kernel_id: KernelId
    agent_id: AgentId
    amounts: Mapping[str, int]  #: by the names of the agent's resources
    devices: Mapping[str, int] = field(default_factory=dict)  #: of these, the devices: gpu/UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A session and hosts for all of its kernels: all are taken, or none."""

    session_id: SessionId
    kernels: tuple[KernelPlacement, ...]
    clustered: bool = False
    joins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Why a session was not placed."""

    code: str  #: no_hosts, impossible, insufficient
    detail: str  #: one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    placements: tuple[Placement, ...]  #: in the order in which they were decided
    blocked: Mapping[SessionId, Blocked]
