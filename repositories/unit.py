"""The repositories of one unit of work, on one connection."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from uuid import UUID

from domain.principal import Principal, Role
from domain.session import Session
from repositories.apps import AppRepository
from repositories.calls import CallRepository
from repositories.credentials import CredentialRepository
from repositories.database import Connection
from repositories.dependencies import DependencyRepository
from repositories.execution import ExecutionRepository
from repositories.gateway import SshKeyRepository
from repositories.identity import IdentityRepository
from repositories.image import ImageRepository
from repositories.metrics import MetricsRepository
from repositories.policies import PolicyRepository
from repositories.registry import RegistryRepository
from repositories.service import ServiceRepository
from repositories.session import AdminSessionRepository, SessionRepository
from repositories.task import TaskRepository
from repositories.template import TemplateRepository
from repositories.transit import Cause
from repositories.volumes import VolumeRepository
from repositories.watch import WatchRepository
from repositories.webhook import WebhookRepository


class Repositories:
    """Built by the processor for each call; every method runs on `connection` and commits nothing."""

    def __init__(self, connection: Connection, *, by: Principal, owner: Principal, now: datetime, cause: Cause) -> None:
        self.connection = connection
        self.now = now
        self.cause = cause
        self._by = by
        self._owner = owner

    @cached_property
    def sessions(self) -> SessionRepository:
        """The owner's sessions."""
        return SessionRepository(self.connection, self.scope, now=self.now, cause=self.cause)

    @cached_property
    def all_sessions(self) -> AdminSessionRepository:
        """Everybody's sessions, as far as the asker administers or watches them."""
        by = self._by
        domain = None if by.sees_all else by.domain
        projects = sorted(by.administers) if by.role is Role.USER else None
        return AdminSessionRepository(
            self.connection, domain, now=self.now, cause=self.cause, projects=projects, viewer=by.user_id
        )

    def sessions_of(self, session: Session) -> SessionRepository:
        """For writing to a session that was loaded and checked; an administrator's scope may be wider than its owner."""
        return SessionRepository(self.connection, session.user_id, now=self.now, cause=self.cause)

    @property
    def scope(self) -> UUID:
        return self._owner.user_id

    def dependencies_of(self, session: Session) -> DependencyRepository:
        """Of the session's owner: nobody waits for another's."""
        return DependencyRepository(self.connection, session.user_id, now=self.now)

    def services_of(self, session: Session) -> ServiceRepository:
        return ServiceRepository(self.connection, session.id, now=self.now, cause=self.cause)

    @cached_property
    def apps(self) -> AppRepository:
        """As far as the owner may see them."""
        return AppRepository(self.connection, self._owner, now=self.now)

    @cached_property
    def calls(self) -> CallRepository:
        return CallRepository(self.connection, now=self.now, cause=self.cause)

    @cached_property
    def executions(self) -> ExecutionRepository:
        return ExecutionRepository(self.connection, now=self.now, cause=self.cause)

    @cached_property
    def identity(self) -> IdentityRepository:
        return IdentityRepository(self.connection, now=self.now, cause=self.cause)

    @cached_property
    def credentials(self) -> CredentialRepository:
        return CredentialRepository(self.connection, now=self.now)

    @cached_property
    def policies(self) -> PolicyRepository:
        """Limits, and the policies that set them."""
        return PolicyRepository(self.connection, self.identity, self.credentials, now=self.now)

    @cached_property
    def ssh_keys(self) -> SshKeyRepository:
        """The asker's own."""
        return SshKeyRepository(self.connection, self._by.user_id, now=self.now)

    @cached_property
    def images(self) -> ImageRepository:
        """As far as the owner may see them; administrators see all."""
        owner = self._owner
        return ImageRepository(
            self.connection, now=self.now, cause=self.cause, viewer=owner.user_id, sees_all=owner.sees_all
        )

    @cached_property
    def registries(self) -> RegistryRepository:
        return RegistryRepository(self.connection, now=self.now)

    @cached_property
    def watch(self) -> WatchRepository:
        return WatchRepository(self.connection, now=self.now)

    @cached_property
    def templates(self) -> TemplateRepository:
        """As far as the asker may see."""
        return self.templates_of(self._by)

    def templates_of(self, viewer: Principal) -> TemplateRepository:
        return TemplateRepository(self.connection, viewer, now=self.now)

    @cached_property
    def webhooks(self) -> WebhookRepository:
        return WebhookRepository(self.connection, now=self.now)

    @cached_property
    def metrics(self) -> MetricsRepository:
        return MetricsRepository(self.connection)

    @cached_property
    def volumes(self) -> VolumeRepository:
        """The owner's, and what is shared with the owner; administrators and monitors reach all by id."""
        owner, by = self._owner, self._by
        sees_all = by.is_admin if by.sees_all and owner is by else None
        return VolumeRepository(self.connection, owner.user_id, sees_all=sees_all, now=self.now, domain=owner.domain)

    @cached_property
    def tasks(self) -> TaskRepository:
        return TaskRepository(self.connection, now=self.now, cause=self.cause)
