"""What most rows are: a JSON question, an action, a JSON answer."""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from actions.views import SessionData
from domain.errors import InvalidRequest, PreconditionFailed
from manager.rest.exchange import OWNER, Exchange, Row, unknown_parameter
from manager.rest.json import dumps
from manager.world import adapter, in_words

MAX_WAIT_SECONDS: Final = 3600.0
_PAGE: Final = 1000


async def run(exchange: Exchange) -> web.StreamResponse:
    """One JSON question, one JSON answer: what most rows are."""
    values, settle_seconds, page = await gather(exchange)
    asked = action(exchange.route, values)
    if not settle_seconds:
        return finish(exchange, await exchange.run(asked), page)
    from manager.rest.streams import permitted  # which begin with rows

    async with permitted(exchange):
        return finish(exchange, await exchange.run(asked, settle_seconds=settle_seconds), page)


async def gather(exchange: Exchange) -> tuple[dict[str, Any], float, tuple[int, int] | None]:
    """The action's fields from path, query and body; how long to wait; which page."""
    route, values = exchange.route, exchange.path
    if route.has_body:
        body = await exchange.json(max_bytes=route.max_body_bytes, required=route.body_required)
        for name, value in body.items():
            if (inside := route.told.get(name)) is None:
                raise InvalidRequest(
                    f"There is no field '{name[:80]}'; check the spelling against /docs.", field=name[:80]
                )
            values[inside] = value
    settle_seconds = 0.0
    page: tuple[int, int] | None = None
    if route.paged:
        page = _asked_page(exchange)
    query = exchange.query
    for name in query:
        if not route.has_body and (inside := route.told.get(name)) is not None:
            if inside in route.lists:
                values[inside] = [word for value in query[name] for word in value.split(",") if word]
            else:
                values[inside] = exchange.query_value(name)
        elif name == OWNER and route.owned:
            values[OWNER] = exchange.query_value(name)
        elif name == "wait" and route.settles:
            settle_seconds = exchange.number("wait", most=MAX_WAIT_SECONDS) or 0.0
        elif name not in route.query and not (route.paged and name in ("cursor", "limit")):
            raise unknown_parameter(name)
    if route.if_match:
        values["version"] = _if_match(exchange)
    return values, settle_seconds, page


def action(route: Row, values: dict[str, Any]) -> Any:
    """The action that these fields make. Raises InvalidRequest, which names what is wrong."""
    try:
        return adapter(route.action).validate_python(values)
    except ValidationError as error:
        raise refusal(error, route) from None


def finish(exchange: Exchange, result: Any, page: tuple[int, int] | None = None) -> web.StreamResponse:
    route = exchange.route
    status = route.status if isinstance(route.status, int) else route.status(result)
    if status == 204:
        return web.Response(status=204)
    value = route.answer(result)
    if page is not None:
        offset, limit = page
        items = value["items"]
        more = offset + limit < len(items)
        value = {"items": items[offset : offset + limit], "next_cursor": str(offset + limit) if more else None}
    body = dumps(value)
    response = web.Response(status=status, body=body, headers={"Content-Type": "application/json"})
    if status == 202:
        response.headers["Location"] = f"/v1/tasks/{value.id}"
    if route.etag:
        etag = etag_of(value, body)
        response.headers["ETag"] = etag
        response.headers["Cache-Control"] = "private, no-cache"
        if (
            not route.has_body
            and route.method == "GET"
            and matches(exchange.request.headers.get("If-None-Match"), etag)
        ):
            return web.Response(status=304, headers={"ETag": etag, "Cache-Control": "private, no-cache"})
        if status == 201:
            response.headers["Location"] = f"/v1/sessions/{value.id}"
    return response


def etag_of(session: SessionData, body: bytes) -> str:
    """The version, which If-Match compares, and a sum of all the rest, which changes without it."""
    return f'"{session.version}-{zlib.crc32(body):08x}"'


def matches(header: str | None, etag: str) -> bool:
    return header is not None and (
        header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))
    )


def _if_match(exchange: Exchange) -> int | None:
    header = exchange.request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    if (match := _VERSION.fullmatch(header.strip())) is None:
        raise PreconditionFailed("If-Match is not an ETag of a session; read the session again.")
    return int(match[1])


_VERSION: Final = re.compile(r'"(\d{1,18})(?:-[0-9a-f]{8})?"')


def _asked_page(exchange: Exchange) -> tuple[int, int]:
    cursor, limit = exchange.query_value("cursor") or "0", exchange.query_value("limit") or str(_PAGE)
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
        raise InvalidRequest("The cursor is not one that a list has given; begin again without it.", field="cursor")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _PAGE:
        raise InvalidRequest(f"The limit is a number from 1 to {_PAGE}.", field="limit")
    return int(cursor), int(limit)


def refusal(error: ValidationError, route: Row) -> InvalidRequest:
    """Everything that is wrong with a request, by the names that it has outside."""
    outside = {inside: name for name, inside in {**route.told, **route.field_in_path}.items()}
    found = []
    for one in error.errors(include_url=False, include_input=False, include_context=False)[:10]:
        loc = [str(part) for part in one["loc"]]
        if loc:
            loc[0] = outside.get(loc[0], loc[0])
        message = "is required" if one["type"].startswith("missing") else f"is wrong: {in_words(one)}"
        found.append({"field": ".".join(loc), "message": message})
    first = found[0]
    return InvalidRequest(f"The field '{first['field']}' {first['message']}.", field=first["field"], errors=found)
