"""Session templates in Backend.AI's words. They are Moorage's own: what one client keeps, the other one finds."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from aiohttp import web

from actions import (
    CreateFromTemplateAction,
    CreateTemplateAction,
    DeleteTemplateAction,
    GetTemplateAction,
    ListProjectsAction,
    ListTemplatesAction,
    ModifyTemplateAction,
    WhoAmIAction,
)
from actions.scopes import TemplateScope
from actions.templates import TemplateData
from domain.errors import InvalidRequest, PermissionDenied
from domain.names import as_uuid
from manager.compat.backendai import shapes, task_template
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.creation import check_domain, fields_of, made, owner_of
from manager.compat.backendai.table import Route
from manager.world import validated

_MOST_BODY_BYTES: Final = 256 * 1024


async def create(ask: Ask) -> web.StreamResponse:
    """All that are sent, one after the other."""
    body = await _body(ask)
    told = []
    for name, document in task_template.read(body.get("payload")):
        kept = await ask.run(validated(CreateTemplateAction(name=name, document=document)))
        told.append({"id": kept.template.id.hex, "user": ask.by.user_id.hex})
    return ask.answer(told)


async def list_all(ask: Ask) -> web.StreamResponse:
    """Those that one may use; `all` makes no difference, because there is no reading of other people's."""
    templates = (await ask.run(ListTemplatesAction())).items
    me = (await ask.run(WhoAmIAction())).user
    group = await _group(ask)
    return ask.answer([_row(template, me.email, ask.by.user_id, group, ask.by.domain) for template in templates])


def _row(
    template: TemplateData, email: str, user_id: UUID, group: tuple[str | None, str | None], domain: str
) -> dict[str, Any]:
    own = template.scope is TemplateScope.USER and template.of == email
    return {
        "name": template.name,
        "id": template.id.hex,
        "created_at": shapes.moment(template.created_at),
        "is_owner": own,
        "user": str(user_id) if own else None,
        "group": group[0],
        "user_email": template.of if template.scope is TemplateScope.USER else None,
        "group_name": template.of if template.scope is TemplateScope.PROJECT else group[1],
        "domain_name": domain,
        "type": "task",
        "template": task_template.write(template),
    }


async def get(ask: Ask) -> web.StreamResponse:
    how = ask.query_value("format") or "yaml"
    if how not in ("yaml", "json"):
        raise InvalidRequest("The format is yaml or json.", field="format")
    template = (await ask.run(validated(GetTemplateAction(template=_named(ask))))).template
    document = task_template.write(template)
    if how == "yaml":
        import yaml

        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return web.Response(text=text, content_type="text/yaml")
    return ask.answer(
        {
            "template": document,
            "name": template.name,
            "user_uuid": str(ask.by.user_id) if template.scope is TemplateScope.USER else None,
            "group_id": (await _group(ask))[0],
            "domain_name": ask.by.domain,
        }
    )


async def put(ask: Ask) -> web.StreamResponse:
    found = task_template.read((await _body(ask)).get("payload"))
    if len(found) != 1:
        raise InvalidRequest("Send one template to replace one.", field="payload")
    ((name, document),) = found
    before = (await ask.run(validated(GetTemplateAction(template=_named(ask))))).template
    renamed = None if name == before.name else name
    await ask.run(validated(ModifyTemplateAction(template=_named(ask), document=document, name=renamed)))
    return ask.answer({"success": True})


async def delete(ask: Ask) -> web.StreamResponse:
    _check_own(ask, ask.owner)
    await ask.run(validated(DeleteTemplateAction(template=_named(ask))))
    return ask.answer({"success": True})


async def create_session(ask: Ask) -> web.StreamResponse:
    """The template, and whatever is said beside it over it."""
    body = await ask.body(max_bytes=4 * 1024 * 1024, required=True)
    template = body.get("template_id")
    if not isinstance(template, str):
        raise InvalidRequest("Say which template: 'template_id'.", field="template_id")
    owner = owner_of(ask, body)
    check_domain(ask, body, owner)
    over = task_template.as_json(fields_of(body, ask.door.world.service.now()))
    asked = CreateFromTemplateAction(template=_id(template), overrides=over, **owner)
    validated(asked)
    return await made(ask, asked, body, owner)


async def _body(ask: Ask) -> dict[str, Any]:
    body = await ask.body(max_bytes=_MOST_BODY_BYTES, required=True)
    _check_own(ask, owner_of(ask, body))
    return body


def _check_own(ask: Ask, owner: dict[str, Any]) -> None:
    if owner:
        raise PermissionDenied("Templates are kept, changed and removed by those whose they are; leave the owner out.")


async def _group(ask: Ask) -> tuple[str | None, str | None]:
    """The project that is used when none is named."""
    first = next(iter(ask.by.projects), None)
    projects = (await ask.run(ListProjectsAction())).items
    return next(((str(p.id), p.name) for p in projects if (p.domain, p.name) == (ask.by.domain, first)), (None, first))


def _named(ask: Ask) -> str:
    return _id(ask.path["template"])


def _id(text: str) -> str:
    """An id is written without dashes there; it may be a name as well."""
    found = as_uuid(text)
    return text if found is None else str(found)


ROUTES: Final = (
    Route("POST", "/template/session", create),
    Route("GET", "/template/session", list_all),
    Route("GET", "/template/session/{template}", get),
    Route("PUT", "/template/session/{template}", put),
    Route("DELETE", "/template/session/{template}", delete),
    Route("POST", "/session/_/create-from-template", create_session),
)
