"""The base of every error, and those that arise on the client's side, without an answer of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MoorageError(Exception):
    """Something that was asked of Moorage did not happen; `str(error)` is one sentence that says why."""

    code: str = "error"
    http_status: int = 0
    #: whether the same request may succeed when it is sent again, unchanged
    retryable: bool = False
    default_message: ClassVar[str] = "The request could not be carried out."

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = message or self.default_message
        super().__init__(self.message)
        if code is not None:
            self.code = code
        if http_status is not None:
            self.http_status = http_status
        #: names this request in the server's logs
        self.request_id = request_id
        #: what else the server said about it, such as `{"status": "TERMINATED"}`
        self.facts: dict[str, Any] = dict(facts or {})


class NotConfigured(MoorageError):
    """Neither arguments, environment nor configuration file say where the server is, or who is asking."""

    code = "not_configured"
    default_message = (
        "No server is configured: start one here with 'moorage up', or set MOORAGE_ENDPOINT, MOORAGE_ACCESS_KEY and "
        "MOORAGE_SECRET_KEY."
    )


class Unreachable(MoorageError):
    """The server could not be reached, or went away and did not come back in time."""

    code, retryable = "unreachable", True
    default_message = "The server cannot be reached."


class StreamBroken(Unreachable):
    """The connection broke while the answer was read; most streams are taken up by themselves."""

    code = "stream_broken"
    default_message = "The connection broke while the answer was read."


class StreamSilent(StreamBroken):
    """Nothing came for so long that the other end may be gone."""


class WaitTimeout(MoorageError, TimeoutError):
    """What was waited for did not happen in time; it may happen yet."""

    code, retryable = "wait_timeout", True
    default_message = "It did not happen in time."


class CommandFailed(MoorageError):
    """A command or code ended with an error, and the caller had asked for an exception (`check=True`)."""

    code = "command_failed"
    default_message = "The command failed."


class CallFailed(MoorageError):
    """A call of an app ended without an output; `error` is the app's own: ename, evalue, traceback."""

    code = "call_failed"
    default_message = "The call failed."

    @property
    def error(self) -> Mapping[str, Any]:
        return self.facts.get("error") or {}


class CallCancelled(CallFailed):
    """A call was cancelled before it had an output."""

    code = "call_cancelled"
    default_message = "The call was cancelled."


class UnexpectedAnswer(MoorageError):
    """The answer is not one of Moorage: a proxy in between, another program, or a much newer server."""

    code = "unexpected_answer"
    default_message = "The server's answer was not understood."
