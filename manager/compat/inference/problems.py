"""Failures as clients of inference.sh read them: the code at the end of the problem's `type`, and in the older envelope."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import web

from domain.errors import MoorageError, SessionNotFound
from manager.rest.json import dumps

#: By our code, or else by the status: the client's word for it. Those of sessions are written in capitals.
_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "session_not_found": "SESSION_NOT_FOUND",
        "session_expired": "SESSION_EXPIRED",
        "session_ended": "SESSION_ENDED",
        "scope_missing": "insufficient_scope",
        "quota_exceeded": "limit_exceeded",
        "file_exists": "already_exists",
    }
)
_BY_STATUS: Final[Mapping[int, str]] = MappingProxyType(
    {
        400: "invalid_request",
        401: "unauthorized",
        403: "forbidden",
        404: "not_found",
        405: "method_not_allowed",
        409: "conflict",
        413: "limit_exceeded",
        422: "validation_error",
        429: "rate_limited",
    }
)
_STATUS: Final[Mapping[str, int]] = MappingProxyType({"session_expired": 410, "session_ended": 410})


def problem(error: MoorageError, request_id: str, *, close: bool = False) -> web.Response:
    status = _STATUS.get(error.code, error.http_status)
    # what only this front refuses says the word itself
    code = str(error.facts.get("said", "")) or _CODES.get(error.code) or _BY_STATUS.get(status) or "internal_error"
    detail = _detail(error)
    document = {
        "type": f"/errors/{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
        "success": False,
        "error": {"code": code, "message": detail},
    }
    response = web.Response(status=status, body=dumps(document))
    response.headers["Content-Type"] = "application/problem+json"
    response.headers["Cache-Control"] = "no-store"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="moorage"'
    if status in (429, 503):
        response.headers["Retry-After"] = str(error.facts.get("retry_after", 1))
    if status == 405:
        response.headers["Allow"] = str(error.facts.get("allow", ""))
    if close:
        response.force_close()
    return response


def _detail(error: MoorageError) -> str:
    """Programs look for 'session not found' in what they are told of a session that is not there, or not any more."""
    if isinstance(error, SessionNotFound) or error.code == "session_expired":
        return f"Session not found: {error.message}"
    return error.message
