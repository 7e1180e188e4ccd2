"""What Schemathesis has to know of this API beyond the document: loaded by it, not by pytest."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis.internal import lambda_sources

#: What would make a request wait for what never comes here, or follow without end.
_NOT_FOR_LONG = {"wait": 0, "follow": "false", "hosts": "false"}
_lambda_sources: Any = lambda_sources
_described = _lambda_sources._lambda_description


def _description(function: Any, *given: Any, **more: Any) -> Any:
    """Hypothesis reads a lambda's source in order to name it; near the bottom of the stack CPython 3.11's parser fails at
    that ("AST constructor recursion depth mismatch"), and the whole operation would be left out for the want of a name."""
    try:
        return _described(function, *given, **more)
    except Exception:
        return "lambda: <unknown>"


_lambda_sources._lambda_description = _description


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    for name, value in _NOT_FOR_LONG.items():
        if case.query and name in case.query:
            case.query[name] = value
    if case.operation.path == "/v1/events":
        case.query = {**(case.query or {}), "follow": "false"}
    # A task that goes on is followed to its end; the tasks here never end.
    if case.operation.path == "/v1/tasks/{task}/events":
        case.path_parameters = {"task": "00000000-0000-7000-8000-000000000000"}
    # What HTTP's own header fields cannot hold is not for a client library to send: see test_wire.py.
    for name, value in list((case.headers or {}).items()):
        if not str(value).isprintable() or not str(value).isascii():
            case.headers[name] = "x"


@schemathesis.check
def planned(ctx: Any, response: Any, case: Any) -> None:
    """No 5xx but "come again", which says when; and every refusal is a problem with a stable code."""
    status = response.status_code
    retry = response.headers.get("retry-after")
    if status >= 500 and not (status == 503 and retry):
        raise AssertionError(f"{status} is not planned: {response.text[:500]}")
    kind = (response.headers.get("content-type") or [""])[0]
    if status >= 400 and case.method != "HEAD" and not kind.startswith("application/problem+json"):
        raise AssertionError(f"{status} is answered as {kind!r}: {response.text[:500]}")


@schemathesis.serializer("application/x-tar", "application/zip")
def archive(ctx: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
