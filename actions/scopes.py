"""Whose something is that users, projects and domains keep, and who may change it."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol
from uuid import UUID

from actions.base import Work
from domain.errors import InvalidRequest, PermissionDenied
from domain.principal import Principal, Role
from repositories.scope import Scope


class TemplateScope(StrEnum):
    USER = "user"  #: seen and changed by its owner
    PROJECT = "project"  #: seen by the members, changed by who made it and by administrators
    DOMAIN = "domain"  #: seen by everybody in the domain, changed by its administrators


class Kept(Protocol):
    @property
    def scope(self) -> str: ...
    @property
    def owner_domain(self) -> str: ...
    @property
    def created_by(self) -> UUID | None: ...


async def scope_of(call: Work, a: str, scope: TemplateScope, project: str | None) -> Scope:
    """Where one of the asker's is kept; `a` says what: a template, an app."""
    if (scope is TemplateScope.PROJECT) != (project is not None):
        raise InvalidRequest(f"{a.capitalize()} of scope project, and only that, names its project.", field="project")
    if project is not None:
        member = None if call.by.is_admin else call.by.user_id
        return Scope(project_id=await call.db.identity.project_id(project, domain=call.by.domain, member=member))
    if scope is TemplateScope.USER:
        return Scope(user_id=call.by.user_id)
    if not (call.by.is_admin or call.by.role is Role.DOMAIN_ADMIN):
        raise PermissionDenied(f"Only administrators keep {a.split()[-1]}s for a whole domain.")
    return Scope(domain=call.by.domain)


def check_may_change(by: Principal, kept: Kept, said: str) -> None:
    """Raises PermissionDenied with `said`."""
    administers = by.is_admin or (by.role is Role.DOMAIN_ADMIN and by.domain == kept.owner_domain)
    own = kept.scope != "domain" and kept.created_by == by.user_id
    if not administers and not own:
        raise PermissionDenied(said)
