"""The words every other package speaks: sessions, their statuses, slots, who asks, what can go wrong."""

from domain.ids import AccessKey, AgentId, KernelId, RunId, SessionId
from domain.principal import Principal, Role
from domain.resources import ResourceSlot
from domain.session import ClusterMode, Event, KernelState, Session, SessionTypes, Status, Want

__all__ = [
    "AccessKey",
    "AgentId",
    "ClusterMode",
    "Event",
    "KernelId",
    "KernelState",
    "Principal",
    "ResourceSlot",
    "Role",
    "RunId",
    "Session",
    "SessionId",
    "SessionTypes",
    "Status",
    "Want",
]
