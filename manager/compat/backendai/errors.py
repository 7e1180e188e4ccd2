"""Failures in the words of Backend.AI: problem documents whose `type` its client and its users know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from domain import errors as e
from manager.rest.json import dumps
from manager.rest.problems import RETRY_AFTER_SECONDS

MEDIA_TYPE: Final = "application/problem+json"
_PROBS: Final = "https://api.backend.ai/probs/"


@dataclass(frozen=True)
class Prob:
    slug: str
    title: str
    status: int | None = None  #: as the error itself has it


_SESSION_EXISTS: Final = Prob("session-already-exists", "The session already exists but not reused.", 400)
_NO_SESSION: Final = Prob("object-not-found", "No such session.")
_BAD_PARAMS: Final = Prob("invalid-api-params", "Missing or invalid API parameters.", 400)
_AGENT: Final = Prob("kernel-execution-failed", "Executing user code in the kernel has failed.", 500)
#: The first kind that an error is of. What is nowhere here keeps its own code and status.
_KINDS: Final[tuple[tuple[type[e.MoorageError], Prob], ...]] = (
    (e.RouteNotFound, Prob("url-not-found", "Unknown URL path.")),
    (e.MethodNotAllowed, Prob("method-not-allowed", "HTTP Method Not Allowed.")),
    (e.Unauthenticated, Prob("auth-failed", "Credential/signature mismatch.")),
    (e.TooManyRequests, Prob("rate-limit-exceeded", "You have reached your API query rate limit.")),
    (e.PermissionDenied, Prob("generic-forbidden", "Forbidden operation.")),
    (e.FileNotFound, Prob("object-not-found", "No such file.")),
    (e.InvalidPath, _BAD_PARAMS),
    (e.NotARegularFile, _BAD_PARAMS),
    (e.FilePermissionDenied, Prob("generic-forbidden", "Forbidden operation.")),
    (e.SessionNotFound, _NO_SESSION),
    (e.ImageNotFound, Prob("object-not-found", "No such environment image.")),
    (e.NotFound, Prob("object-not-found", "No such object.")),
    (e.NameTaken, _SESSION_EXISTS),
    (e.RequestTooLarge, Prob("content-too-large", "Too large request.")),
    (e.QuotaExceeded, Prob("quota-exceeded", "You have reached your resource limit.", 412)),
    (e.StateFull, _BAD_PARAMS),
    (e.InvalidRequest, _BAD_PARAMS),
    (e.InvalidConfiguration, _BAD_PARAMS),
    (e.UnsupportedMediaType, _BAD_PARAMS),
    (e.NoAgents, Prob("instance-not-available", "There is no available instance.")),
    (e.ResourceUnavailable, Prob("instance-not-available", "There is no available instance.")),
    (e.RunnerLost, _AGENT),
    (e.ExecutionTimeout, _AGENT),
    (e.StartFailed, _AGENT),
    (e.FileError, _AGENT),
    (e.ServiceError, _AGENT),
    (e.AgentUnavailable, Prob("service-unavailable", "Service unavailable.")),
    (e.DatabaseUnavailable, Prob("service-unavailable", "Service unavailable.")),
    (e.Internal, Prob("internal-server-error", "Internal server error.")),
)


class InvalidAuthParameters(e.InvalidRequest):
    """The authorization parameters are missing or malformed."""


class GenericBadRequest(e.InvalidRequest):
    """The request cannot be understood."""


_OWN_KINDS: Final[tuple[tuple[type[e.MoorageError], Prob], ...]] = (
    (InvalidAuthParameters, Prob("invalid-auth-params", "Missing or invalid authorization parameters.")),
    (GenericBadRequest, Prob("generic-bad-request", "Bad request.")),
)


def prob_of(error: e.MoorageError) -> Prob:
    for kind, prob in _OWN_KINDS + _KINDS:
        if isinstance(error, kind):
            return prob
    return Prob(error.code.replace("_", "-"), error.code.replace("_", " ").capitalize() + ".")


def document(error: e.MoorageError, request_id: str) -> dict[str, Any]:
    """`data` is what the error knows; `code` and `request_id` are what Moorage's own doors say."""
    prob = prob_of(error)
    told: dict[str, Any] = {"type": _PROBS + prob.slug, "title": prob.title, "msg": error.message}
    data = {name: value for name, value in error.facts.items() if name != "allow"}
    if data:
        told["data"] = data
    if prob is _AGENT:
        told["agent-details"] = {
            "type": _PROBS + "agent-failure",
            "title": "Agent-side exception occurred.",
            "exception": error.message,
        }
    return {**told, "code": error.code, "request_id": request_id}


def response_of(error: e.MoorageError, request_id: str, *, close: bool = False) -> web.Response:
    """`close` ends the connection after the answer: for requests whose body nobody has read."""
    status = prob_of(error).status or error.http_status
    response = web.Response(status=status, body=dumps(document(error, request_id)))
    headers = response.headers
    headers["Content-Type"] = f"{MEDIA_TYPE}; charset=utf-8"
    headers["Cache-Control"] = "no-store"
    if status in (429, 503):
        headers["Retry-After"] = str(error.facts.get("retry_after", RETRY_AFTER_SECONDS))
    if status == 405 and "allow" in error.facts:
        headers["Allow"] = str(error.facts["allow"])
    if close:
        response.force_close()
    return response
