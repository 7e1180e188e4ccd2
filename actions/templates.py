"""Session templates: written once, used by a user, a project or a domain, and overridden where it matters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Result, Rules, ScopeAction, Service, Settles, Work, action, any_user, anyone
from actions.lifecycle import CreatedSession, CreateFromParamsAction
from actions.scopes import TemplateScope, check_may_change, scope_of
from actions.template_document import Scalar, TemplateDocument, fill, parse
from actions.views import Done
from domain.errors import InvalidName, InvalidRequest
from domain.names import as_uuid
from domain.principal import Principal, TokenScope
from repositories.template import Template

_NAME: Final = re.compile(r"\w(?:[\w.-]{0,62}\w)?")
TemplateName = Annotated[str, Field(min_length=1, max_length=64)]
Document = Mapping[str, Any] | str  #: JSON, or text in YAML


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateVersion:
    version: int
    by: str  #: an access key
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateData:
    """A template, in its newest version or the one that was asked for."""

    id: UUID
    name: str
    scope: TemplateScope
    of: str  #: the user, project or domain that has it
    version: int
    latest: int
    description: str
    parameters: Mapping[str, Any]
    session: Mapping[str, Any]  #: the fields of the creation
    source: str  #: as it was written
    created_at: datetime
    changed_at: datetime
    versions: tuple[TemplateVersion, ...] = ()  #: where one template is asked for

    @classmethod
    def of_row(cls, t: Template, versions: tuple[TemplateVersion, ...] = ()) -> TemplateData:
        return cls(
            id=t.id,
            name=t.name,
            scope=TemplateScope(t.scope),
            of=t.of,
            version=t.version,
            latest=t.latest,
            description=t.document.get("description", ""),
            parameters=t.document.get("parameters", {}),
            session=t.document["session"],
            source=t.source,
            created_at=t.created_at,
            changed_at=t.changed_at,
            versions=versions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateResult(Result):
    template: TemplateData


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates(Result):
    items: list[TemplateData]
    next_cursor: str | None = None


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CreateTemplateAction(ScopeAction[Work, TemplateResult]):
    """Keep a template for one's own sessions, for a project or, as an administrator, for the domain."""

    name: TemplateName
    document: Document
    scope: TemplateScope = TemplateScope.USER
    project: str | None = None  #: with scope project

    def target(self) -> str | None:
        return self.name

    async def run(self, call: Work, /) -> TemplateResult:
        name, (document, source) = _checked_name(self.name), parse(self.document)
        scope = await scope_of(call, "a template", self.scope, self.project)
        made = await call.db.templates.create(call.new_id(), name, scope, _stored(document), source)
        return TemplateResult(template=TemplateData.of_row(made))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListTemplatesAction(ScopeAction[Reading, Templates]):
    """Templates that one may use: one's own, those of one's projects and of the domain."""

    async def run(self, call: Reading, /) -> Templates:
        return Templates(items=[TemplateData.of_row(template) for template in await call.db.templates.all()])


@action(Rules(allow=anyone, effect=Effect.READ))
class GetTemplateAction(ScopeAction[Reading, TemplateResult]):
    """A template by name or id, in its newest or an earlier version."""

    template: TemplateName
    version: Annotated[int, Field(ge=1, lt=2**63)] | None = None

    async def run(self, call: Reading, /) -> TemplateResult:
        found = await call.db.templates.get(self.template, version=self.version)
        versions = tuple(TemplateVersion(**row) for row in await call.db.templates.versions(found.id))
        return TemplateResult(template=TemplateData.of_row(found, versions))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class ModifyTemplateAction(ScopeAction[Work, TemplateResult]):
    """Give a template a new document, which is its next version, or another name."""

    template: TemplateName
    document: Document | None = None
    name: TemplateName | None = None
    version: Annotated[int, Field(ge=0, lt=2**63)] | None = None  #: only while this is the newest (If-Match)

    def target(self) -> str | None:
        return self.template

    async def run(self, call: Work, /) -> TemplateResult:
        if self.document is None and self.name is None:
            raise InvalidRequest("Nothing to change was given; name one of document, name.")
        found = await call.db.templates.get(self.template)
        _check_may_change(call.by, found)
        name = None if self.name is None else _checked_name(self.name)
        parsed = None if self.document is None else parse(self.document)
        document = None if parsed is None else (_stored(parsed[0]), parsed[1])
        changed = await call.db.templates.change(found, name=name, document=document, version=self.version)
        return TemplateResult(template=TemplateData.of_row(changed))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class DeleteTemplateAction(ScopeAction[Work, Done]):
    """Forget a template with all its versions; sessions that were made of it go on."""

    template: TemplateName

    def target(self) -> str | None:
        return self.template

    async def run(self, call: Work, /) -> Done:
        found = await call.db.templates.get(self.template)
        _check_may_change(call.by, found)
        await call.db.templates.remove(found)
        return Done()


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CreateFromTemplateAction(ScopeAction[Work, CreatedSession], Settles):
    """Queue a session as a template describes it, with values for its parameters and any field of a creation over it."""

    template: TemplateName  #: its name or id
    template_version: Annotated[int, Field(ge=1, lt=2**63)] | None = None  #: the newest when left out
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    #: fields of create_from_params (or create_cluster) that go over the template's; resource_slots, environ, labels, main
    #: and worker name by name, others as a whole
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def target(self) -> str | None:
        return self.template

    async def run(self, call: Work, /) -> CreatedSession:
        found = await call.db.templates_of(call.owner).get(self.template, version=self.template_version)
        document = TemplateDocument.model_validate(found.document)
        return await fill(document, self.parameters, self.overrides).run(call)

    async def settled(self, service: Service, answer: CreatedSession, seconds: float | None) -> CreatedSession:
        return await CreateFromParamsAction.settled(self, service, answer, seconds)  # type: ignore[arg-type]


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or as_uuid(name) is not None:
        raise InvalidName(
            f"'{name[:64]}' cannot name a template: use up to 64 letters, digits, '_', '-' and '.', and begin and end with "
            "a letter, digit or '_'.",
            field="name",
        )
    return name


def _check_may_change(by: Principal, template: Template) -> None:
    said = (
        f"The template '{template.name}' belongs to the {template.scope} {template.of}: use it, or copy it to one of your "
        "own."
    )
    check_may_change(by, template, said)


def _stored(document: TemplateDocument) -> dict[str, Any]:
    return document.model_dump(mode="json", exclude_unset=True)
