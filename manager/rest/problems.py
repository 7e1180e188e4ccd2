"""Every failure as a problem document (RFC 9457) with a stable code."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from domain.errors import MoorageError
from manager.rest.json import dumps

MEDIA_TYPE: Final = "application/problem+json"
#: Retryable errors come with a hint when to try again; `retry_after` among an error's facts says it better.
RETRY_AFTER_SECONDS: Final = 1
_OWN: Final = frozenset({"type", "title", "status", "detail", "code", "request_id"})


def document(error: MoorageError, request_id: str) -> dict[str, Any]:
    facts = {name: value for name, value in error.facts.items() if name not in _OWN}
    return {
        "type": f"/docs#{error.code}",
        "title": HTTPStatus(error.http_status).phrase,
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
        **facts,
    }


def problem(error: MoorageError, request_id: str, *, close: bool = False) -> web.Response:
    """`close` ends the connection after the answer: for requests whose end cannot be found."""
    response = web.Response(
        status=error.http_status, body=dumps(document(error, request_id)), headers={"Content-Type": MEDIA_TYPE}
    )
    headers = response.headers
    headers["Cache-Control"] = "no-store"
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="moorage"'
    if error.http_status in (429, 503):
        headers["Retry-After"] = str(error.facts.get("retry_after", RETRY_AFTER_SECONDS))
    if error.http_status == 405 and "allow" in error.facts:
        headers["Allow"] = str(error.facts["allow"])
    if close:
        response.force_close()
    return response
