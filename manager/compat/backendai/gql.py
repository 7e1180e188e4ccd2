"""`POST /admin/gql`: queries are bounded before they run, and answered by actions; nothing is changed through them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from domain.errors import InvalidRequest, MoorageError
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route

if TYPE_CHECKING:
    from graphql import GraphQLError

    from manager.compat.backendai.gql_lists import Asker

log = logging.getLogger("moorage.compat.backendai")
#: A query, its variables and what JSON adds to them.
_MOST_BODY_BYTES: Final = 128 * 1024
_MOST_ERRORS: Final = 10


async def post(ask: Ask) -> web.StreamResponse:
    """HTTP 200 whatever becomes of it, as GraphQL has it; the client makes failures of `errors`."""
    body = await ask.body(max_bytes=_MOST_BODY_BYTES, required=True)
    service = ask.door.world.service
    return ask.answer(await execute(ask, body, now=service.now(), proxy_url=service.proxy_url.replace("*.", "")))


async def execute(asker: Asker, body: Mapping[str, Any], *, now: datetime, proxy_url: str) -> dict[str, Any]:
    import graphql  # 0.3 s, and only where somebody asks

    from manager.compat.backendai import gql_limits
    from manager.compat.backendai.gql_lists import Lists
    from manager.compat.backendai.gql_queries import schema

    try:
        query, variables, operation = _read(body)
        if len(query.encode("utf-8", "replace")) > gql_limits.MOST_BYTES:
            raise InvalidRequest(f"A query has at most {gql_limits.MOST_BYTES // 1024} KiB.", field="query")
        document = graphql.parse(query, max_tokens=gql_limits.MOST_TOKENS)
        gql_limits.check(document, variables, operation)
        wrong = graphql.validate(schema(), document, max_errors=_MOST_ERRORS)
    except (graphql.GraphQLError, RecursionError) as error:
        return {"data": None, "errors": [_told(_as_error(error))]}
    except InvalidRequest as error:
        return {"data": None, "errors": [{"message": error.message}]}
    if wrong:
        return {"data": None, "errors": [_told(error) for error in wrong]}
    found = graphql.execute(
        schema(),
        document,
        context_value=Lists(asker, now, proxy_url),
        variable_values=dict(variables),
        operation_name=operation,
    )
    result: Any = found if isinstance(found, graphql.ExecutionResult) else await found
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [_told(error) for error in result.errors[:_MOST_ERRORS]]
    return answer


def _read(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str | None]:
    query, variables, operation = body.get("query"), body.get("variables") or {}, body.get("operation_name")
    if not isinstance(query, str) or not isinstance(variables, Mapping) or not isinstance(operation, str | None):
        raise InvalidRequest("Send the query as text in 'query', and its values in 'variables'.", field="query")
    return query, variables, operation


def _as_error(error: Exception) -> GraphQLError:
    from graphql import GraphQLError

    return error if isinstance(error, GraphQLError) else GraphQLError("The query is nested too deeply.")


def _told(error: GraphQLError) -> dict[str, Any]:
    """What went wrong in the words of actions; what nobody expected stays in the log."""
    cause = error.original_error
    message = error.message
    if isinstance(cause, MoorageError):
        message = cause.message
    elif cause is not None and not isinstance(cause, type(error)):
        log.error("a field of GraphQL failed", exc_info=cause)
        message = "Internal server error."
    told: dict[str, Any] = {"message": message}
    if error.locations:
        told["locations"] = [{"line": one.line, "column": one.column} for one in error.locations]
    if error.path:
        told["path"] = list(error.path)
    if isinstance(cause, MoorageError):
        told["extensions"] = {"code": cause.code}
    return told


ROUTES: Final = (Route("POST", "/admin/gql", post), Route("POST", "/admin/graphql", post))
