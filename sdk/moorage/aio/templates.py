"""Session templates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from moorage import _wire
from moorage._models import TemplateInfo
from moorage.aio._transport import Transport, decoded

TemplateList = list[TemplateInfo]
#: YAML or JSON as text, or what JSON would be.
Document = Mapping[str, Any] | str


class Templates:
    """`client.templates`; a template is named by its name or id. `client.sessions.create_from_template` uses it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[TemplateInfo]:
        """One's own, those of one's projects and of the domain. Fetched as they are looked at."""
        return self._transport.items(TemplateInfo.from_json, _wire.path("templates"), limit=limit)

    async def list(self, *, limit: int | None = None) -> TemplateList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, template: str, *, version: int | None = None) -> TemplateInfo:
        """One template, with its versions; an earlier version of it when asked."""
        params = _wire.query(version=version)
        return TemplateInfo.from_json(await self._transport.get(_wire.path("templates", template), **params))

    async def create(
        self, name: str, document: Document, *, scope: str | None = None, project: str | None = None
    ) -> TemplateInfo:
        """Keep a template for oneself, with `project` for its members, with scope "domain" for everybody in it."""
        scope = scope or ("project" if project is not None else None)
        fields = _wire.body(name=name, document=_plain(document), scope=scope, project=project)
        answer = await self._transport.request("POST", _wire.path("templates"), json=fields)
        return TemplateInfo.from_json(decoded(answer))

    async def edit(
        self,
        template: str,
        document: Document | None = None,
        *,
        name: str | None = None,
        if_version: int | None = None,
    ) -> TemplateInfo:
        """A new document is its next version. With `if_version` only while that is the newest."""
        headers = None if if_version is None else {"If-Match": f'"{if_version}"'}
        fields = _wire.body(name=name, document=None if document is None else _plain(document))
        address = _wire.path("templates", template)
        answer = await self._transport.request("PATCH", address, json=fields, headers=headers)
        return TemplateInfo.from_json(decoded(answer))

    async def remove(self, template: str) -> None:
        """Forget it; sessions that were made of it go on."""
        await self._transport.request("DELETE", _wire.path("templates", template))


def _plain(document: Document) -> str | dict[str, Any]:
    return document if isinstance(document, str) else dict(document)
