"""What it means that a session depends on another: when it may run, and when it never will."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.session import FINAL, SessionTypes, Status


class Condition(StrEnum):
    """What must have become of a session before its dependant may run."""

    SUCCESS = "success"  #: it has done its work
    END = "end"  #: it has ended, no matter how


#: A session may wait for so many others.
MOST_DEPENDENCIES: Final = 100
#: A delay before a retry is never longer.
MOST_RETRY_DELAY_SECONDS: Final = 6 * 3600.0
_FAILED: Final = "dependency_failed: "


def holds(condition: str, status: Status, session_type: SessionTypes, result: str) -> bool | None:
    """Whether the dependant may run (True), never will (False), or has to wait (None)."""
    if status not in FINAL:
        return None
    return condition == Condition.END or succeeded(status, session_type, result)


def succeeded(status: Status, session_type: SessionTypes, result: str) -> bool:
    """Whether a session has done what it was there for. A batch has when its command says so, others when they ended
    without trouble."""
    if session_type is SessionTypes.BATCH:
        return status is Status.TERMINATED and result == "SUCCESS"
    return status is Status.TERMINATED and result != "FAILURE"


def retry_delay_seconds(first_seconds: float, retries: int) -> float:
    """Before the next attempt, when there have been so many retries: twice as long each time."""
    return float(min(MOST_RETRY_DELAY_SECONDS, first_seconds * 2 ** min(retries, 32)))


def waiting_reason(names: list[str]) -> str:
    """Why it is PENDING."""
    shown = " and ".join(f"'{name}'" for name in names[:3])
    return f"waits for {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def skip_reason(name: str, status: Status, exit_code: int | None, reason: str | None) -> str:
    """Why a session that depends on this one is not run; names the session that failed first, also over several."""
    if reason is not None and is_skip(reason):
        root = reason.removeprefix(_FAILED).partition("; '")[0]
        return f"{_FAILED}{root}; '{name}' was not run because of it"[:2000]
    if exit_code is not None and exit_code != 0:
        what = f"ended with exit code {exit_code}"
    else:
        what = f"is {status}" + (f" ({reason})" if reason else "")
    return f"{_FAILED}'{name}' {what}"[:2000]


def is_skip(reason: str | None) -> bool:
    """Whether a session's status_reason tells of a dependency that failed."""
    return reason is not None and reason.startswith(_FAILED)
