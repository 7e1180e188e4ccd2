"""Requests and answers as values: addresses, errors, when to try again. No input or output."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from moorage import errors
from moorage._errors import MoorageError, UnexpectedAnswer

#: Retryable by their class, but only by the caller's decision: waiting is what has just been tried.
_NOT_AGAIN = frozenset({"resource_unavailable", "storage_full", "session_not_ready", "transfer_failed"})
_GPUS = re.compile(
    r"(?:(?P<model>[A-Za-z][^:]*):)?(?P<number>\d{1,9}(?:\.\d{1,9})?)|(?P<alone>[A-Za-z][^:]*)", re.ASCII
)
_STANDARD = frozenset({"type", "title", "status", "detail", "code", "request_id", "instance"})


def path(*segments: str) -> str:
    """`/v1/...`, each segment percent-encoded as a whole, dots included, so that none can climb."""
    return "/v1/" + "/".join(segment(part) for part in segments)


def segment(text: str) -> str:
    encoded = quote(text, safe="")
    return encoded.replace(".", "%2E") if text in (".", "..") else encoded


def file_path(base: str, name: str) -> str:
    """The address of a session's file: slashes stay, a leading one is encoded, dot segments are kept from cleaners."""
    if name in ("archive", "manage", "unpack"):  # words of the server's own at this place
        return f"{base}/files/%{ord(name[0]):X}{name[1:]}"
    absolute = name.startswith("/")
    segments = [segment(part) for part in name.removeprefix("/").split("/")]
    return f"{base}/files/" + ("%2F" if absolute else "") + "/".join(segments)


def query(**params: Any) -> dict[str, str]:
    """Query parameters without the unset ones, booleans in lower case."""
    return {
        name: str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
        for name, value in params.items()
        if value is not None
    }


def body(**fields: Any) -> dict[str, Any]:
    """A JSON body without the unset fields."""
    return {name: value for name, value in fields.items() if value is not None}


def slots(**amounts: Any) -> dict[str, Any]:
    """What a session asks for, as the server takes it."""
    return {name: amount for name, amount in amounts.items() if amount not in (None, 0)}


def gpus(gpu: float | str | None) -> tuple[float | None, str | None]:
    """How many devices, and of which model: 2, "h100:2", or "h100" for one."""
    if not isinstance(gpu, str):
        return gpu, None
    if (found := _GPUS.fullmatch(gpu.strip())) is None:
        raise ValueError(f"'{gpu}' is neither a number of GPUs nor MODEL:NUMBER, such as h100:1")
    number = found["number"] or "1"
    return float(number) if "." in number else int(number), found["model"] or found["alone"]


def error_from(status: int, content: bytes, headers: Mapping[str, str]) -> MoorageError:
    """The error class that an answer stands for."""
    request_id = headers.get("x-request-id")
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        what = content[:200].decode("utf-8", "replace").strip().replace("\n", " ")
        return UnexpectedAnswer(
            f"The server answered {status} without saying why" + (f": {what}" if what else "."),
            http_status=status,
            request_id=request_id,
        )
    code = str(problem["code"])
    return errors.BY_CODE.get(code, MoorageError)(
        problem.get("detail") or problem.get("title"),
        code=code,
        http_status=status,
        request_id=problem.get("request_id") or request_id,
        facts={name: value for name, value in problem.items() if name not in _STANDARD},
    )


def worth_retrying(error: MoorageError) -> bool:
    """Whether the server itself says that the same request will do shortly."""
    if error.code in _NOT_AGAIN:
        return False
    if error.code in errors.BY_CODE:
        return error.retryable
    return error.http_status in (429, 502, 503, 504)  # of a proxy in between


def pause_seconds(attempt: int, retry_after: str | None = None) -> float:
    """How long to wait before attempt number `attempt` (from 1): doubling, spread, at most 5 s."""
    if retry_after is not None:
        try:
            return min(float(retry_after), 30.0)
        except ValueError:
            pass
    return min(0.1 * 2.0 ** (attempt - 1), 5.0) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)


def sse_events(lines: Iterable[str]) -> tuple[str | None, str | None, str]:
    """One server-sent event from its lines: id, name, data."""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value
    return fields.get("id"), fields.get("event"), "\n".join(data)
