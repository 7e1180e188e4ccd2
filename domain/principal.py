"""Who is asking, what their role lets them do, and how far their credential reaches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from domain.ids import AccessKey


class Role(StrEnum):
    """What somebody is everywhere. Who administers a project says the membership, not the role."""

    SUPERADMIN = "superadmin"  #: everything, everywhere
    DOMAIN_ADMIN = "domain_admin"  #: people, projects, sessions and limits of one domain
    USER = "user"  #: one's own sessions, in one's projects
    MONITOR = "monitor"  #: may look at everything and change nothing


class TokenScope(StrEnum):
    """What an API token may be used for; a keypair may be used for all of it."""

    READ = "read"  #: look: lists, states, logs, output, usage; never files
    SESSIONS = "sessions"  #: create, change and end sessions, run code in them, terminals and SSH, snapshots, templates
    FILES = "files"  #: files of sessions, and volumes
    SERVICES = "services"  #: start, stop and reach services and ports of sessions
    ADMIN = "admin"  #: whatever administers: people, projects, limits, images, hosts


ALL_SCOPES: Final = frozenset(TokenScope)


class Credential(StrEnum):
    """How somebody has shown who they are."""

    KEYPAIR = "keypair"
    SIGNATURE = (
        "signature"  #: of a request, by a keypair that may sign; it says nothing of the body and makes no credentials
    )
    SIGN_IN = "sign_in"  #: a token that was given for a password
    TOKEN = "token"  # noqa: S105  #: an API token: it makes no credentials, which would outlive it
    PASSWORD = "password"  # noqa: S105  #: proven this moment; good for signing in and nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated user. Doors build it from a credential; in-process callers are trusted to name a keypair."""

    user_id: UUID
    access_key: AccessKey
    domain: str
    role: Role = Role.USER
    #: names of the projects the user is a member of, all of the user's domain; the first is used when none is named
    projects: tuple[str, ...] = ()
    #: those of them that the user administers
    administers: frozenset[str] = frozenset()
    #: of their containers and new volumes, for homes on NFS; None: the usual ones
    uid: int | None = None
    gid: int | None = None
    credential: Credential = Credential.KEYPAIR
    scopes: frozenset[TokenScope] = ALL_SCOPES
    token_id: UUID | None = None  #: of the token that was sent, if it was one
    requests_per_second: float | None = None  #: of the keypair, over all of its credentials; None: as many as it likes

    @property
    def is_admin(self) -> bool:
        return self.role is Role.SUPERADMIN

    @property
    def sees_all(self) -> bool:
        return self.role in (Role.SUPERADMIN, Role.MONITOR)

    @property
    def sees_others(self) -> bool:
        """Whether there may be sessions of others that they see: everybody's, the domain's, those of their projects."""
        return self.role is not Role.USER or bool(self.administers)

    @property
    def makes_credentials(self) -> bool:
        """Whether it may make, rotate or set what outlives the credential it came with."""
        return self.credential in (Credential.KEYPAIR, Credential.SIGN_IN)

    def administers_domain(self, domain: str) -> bool:
        return self.is_admin or (self.role is Role.DOMAIN_ADMIN and self.domain == domain)

    def administers_project(self, domain: str, project: str) -> bool:
        """As an administrator of any kind; a monitor administers nothing, whatever a membership says."""
        if self.administers_domain(domain):
            return True
        return self.role is Role.USER and self.domain == domain and project in self.administers

    def watches_domain(self, domain: str) -> bool:
        return self.role is Role.MONITOR or self.administers_domain(domain)

    def manages(self, domain: str, role: Role) -> bool:
        """Whether somebody of this domain and role is theirs to look after: nobody reaches above themselves."""
        if self.is_admin:
            return True
        return self.administers_domain(domain) and role in (Role.USER, Role.DOMAIN_ADMIN)

    def lost(self, before: Principal) -> bool:
        """Whether this is less than `before` was: what stands open on the old word has to be asked for again."""
        return (
            self.role is not before.role
            or self.domain != before.domain
            or not self.administers >= before.administers
            or not self.scopes >= before.scopes
            or not set(self.projects) >= set(before.projects)
        )
