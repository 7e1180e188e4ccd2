"""What the scheduler looks at, and what it answers: values only.

Amounts are integers: milli-CPU, MiB, devices. A kernel asks for `cpu`, `mem`, and either `gpu` (whole devices) or
`gpu-mem` (MiB: a share of one device). A host has its devices as `gpu/UUID`, in MiB of their memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from domain.ids import AgentId, KernelId, SessionId
from domain.session import ClusterMode

NOBODY: Final = UUID(int=0)
DEFAULT_GROUP: Final = "default"
GPU: Final = "gpu"
GPU_SHARE: Final = "gpu-mem"
DEVICE: Final = "gpu/"  #: prefix of a device's name among a host's resources

Scope = tuple[str, str]  #: keypair, user, project or domain, and which


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingKernel:
    id: KernelId
    slots: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a session demands of its hosts besides room; stored with it as JSON."""

    agent: AgentId | None = None  #: this host and no other: for administrators
    labels: Mapping[str, str] = field(default_factory=dict)  #: that the host has
    #: not on a host with another live session of its owner that carries one of these labels
    apart_from: Mapping[str, str] = field(default_factory=dict)
    gpu_model: str | None = None  #: a word of the devices' model name, whatever its case: h100

    def to_json(self) -> dict[str, object]:
        """Only what is set."""
        said = {"agent": self.agent, "labels": dict(self.labels), "apart_from": dict(self.apart_from)}
        return {name: value for name, value in {**said, "gpu_model": self.gpu_model}.items() if value}


UNCONSTRAINED: Final = Constraints()


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSession:
    """A session in the queue, with every kernel of its present attempt."""

    id: SessionId
    architecture: str
    priority: int
    created_at: datetime
    kernels: tuple[PendingKernel, ...]
    name: str = ""
    user_id: UUID = NOBODY
    resource_group: str = DEFAULT_GROUP
    constraints: Constraints = UNCONSTRAINED
    labels: Mapping[str, str] = field(default_factory=dict)  #: its own
    lifetime_seconds: float | None = None  #: after which it is ended at the latest; None: nobody knows
    scopes: tuple[Scope, ...] = ()  #: whose limits bind it; none bind a system session
    cluster_mode: ClusterMode = ClusterMode.SINGLE_NODE
    clustered: bool = False  #: its kernels get a network of their own
    joins: bool = False  #: the session runs, and this kernel of it is a new one
    hosts: frozenset[AgentId] = frozenset()  #: those that hold kernels of it already
    images_on: frozenset[AgentId] = frozenset()  #: the only hosts that have its images: snapshots lie on one host
    stores: frozenset[str] = frozenset()  #: of its volumes: a host has to have all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a MIG instance, that may be handed out; what is free of it stands in its host's `free`."""

    name: str  #: gpu/UUID
    model: str = ""
    numa: int | None = None
    whole_only: bool = False  #: a MIG instance, for instance, is not shared
    shared_only: bool = False  #: people outside Moorage are on it: not to be given out whole
    #: how close other devices of the host are: the higher the closer, by name; 0 for those that are not named
    links: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An agent that takes sessions now. Amounts are by the names of its resources: cpu, mem, gpu/UUID, ...

    Devices that are taken out for a reason are in neither `free` nor `capacity`.
    """

    id: AgentId
    architecture: str
    free: Mapping[str, int]
    capacity: Mapping[str, int]  #: what it has when it is empty
    resource_group: str = DEFAULT_GROUP
    labels: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()  #: what is known of its gpu/UUID; one that is not listed has no model
    store: str | None = None  #: of volumes
    address: str | None = None  #: under which other hosts reach it; without one it shares no cluster with them


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a session that has been placed holds on one host."""

    session_id: SessionId
    agent_id: AgentId
    amounts: Mapping[str, int]  #: by the names of the host's resources
    name: str = ""
    user_id: UUID = NOBODY
    labels: Mapping[str, str] = field(default_factory=dict)
    apart_from: Mapping[str, str] = field(default_factory=dict)  #: its own constraint: it binds those that come later
    ends_at: datetime | None = None  #: at the latest; None: nobody knows


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A resource group: hosts that are shared by one policy."""

    name: str = DEFAULT_GROUP
    fair_share: bool = True  #: who held less comes first; otherwise who came first
    spread: bool = False  #: over many hosts; otherwise packed onto few
    backfill: bool = True  #: later sessions may pass one that waits for room, as long as they do not delay it
    gpu_sharing: bool = False  #: devices may be shared by memory
    half_life_seconds: float = 7 * 86400.0  #: after which what was held counts half
    active: bool = True  #: otherwise nothing is placed there


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a user holds and held in a resource group, by kinds of slots: cpu, mem, gpu (devices, fractions for shares).

    `past` is in the same units as `held`: the mean over time of what was held, weighted with 2^(-age / half-life).
    """

    resource_group: str
    user_id: UUID
    held: Mapping[str, float] = field(default_factory=dict)
    past: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0  #: of 2.0: entitled to twice as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Of what sessions may hold at once in one scope. `name` is a kind of slot (cpu, mem, gpu, ...) or `sessions`."""

    scope: Scope
    name: str
    max_amount: int
    held: int  #: by sessions that have been placed
    of: str = ""  #: the user's e-mail address, the project's or domain's name, the access key


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`holdings` may be left out as long as everything fits: they say when room comes free."""

    pending: tuple[PendingSession, ...]
    hosts: tuple[Host, ...]
    groups: tuple[Group, ...] = ()  #: one that is not named here has the defaults
    shares: tuple[Share, ...] = ()
    limits: tuple[Limit, ...] = ()
    holdings: tuple[Holding, ...] = ()
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
    passed: SessionId | None = None  #: it was placed before this one, which waits for room: backfill


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Why a session was not placed."""

    #: no_hosts, impossible, insufficient, quota, reserved, behind, image_elsewhere, and the codes of constraints
    code: str
    detail: str  #: one sentence
    behind: SessionId | None = None  #: the session for which room is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Room that is kept for a session that waits, so that those that pass it do not delay it."""

    session_id: SessionId
    hosts: tuple[AgentId, ...]
    at: datetime | None  #: when it starts at the latest; None: nobody knows, because somebody there has no lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    placements: tuple[Placement, ...]  #: in the order in which they were decided
    blocked: Mapping[SessionId, Blocked]
    reservations: tuple[Reservation, ...] = ()
    #: of each resource group, those that were considered, in their order: what a queue position is counted by
    order: Mapping[str, tuple[SessionId, ...]] = field(default_factory=dict)
