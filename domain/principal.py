"""Who is asking, and what their role lets them do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from domain.ids import AccessKey


class Role(StrEnum):
    SUPERADMIN = "superadmin"  #: everything, everywhere
    DOMAIN_ADMIN = "domain_admin"  #: everything within one domain
    USER = "user"  #: one's own sessions, in one's projects
    MONITOR = "monitor"  #: may look at everything and change nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated user. Doors build it from a credential; in-process callers are trusted to name a keypair."""

    user_id: UUID
    access_key: AccessKey
    domain: str
    role: Role = Role.USER
    #: names of the projects the user is a member of; the first is used when none is named
    projects: tuple[str, ...] = ()
    #: of their containers and new volumes, for homes on NFS; None: the usual ones
    uid: int | None = None
    gid: int | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is Role.SUPERADMIN

    @property
    def sees_all(self) -> bool:
        return self.role in (Role.SUPERADMIN, Role.MONITOR)
