"""What only some sessions ask for at their creation: a starting time, dependencies, retries, a bound on their work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Protocol

from pydantic import Field

from actions.base import Work
from domain.dependency import MOST_DEPENDENCIES, Condition
from domain.errors import InvalidConfiguration, WrongStatus
from domain.session import Session, SessionTypes, Status
from repositories.dependencies import DependencyRepository

#: What a batch session leaves there is kept after its end, when nothing else is asked for.
DEFAULT_OUTPUTS: Final = ("outputs",)
_LATEST_START: Final = timedelta(days=366)
_MOST_OUTPUTS: Final = 100
_WORK_DIR: Final = "/home/work/"


@dataclass(frozen=True, slots=True, kw_only=True)
class DependsOn:
    """A session of the same owner that has to end first."""

    session: Annotated[str, Field(min_length=1, max_length=64)]  #: its id or name
    condition: Condition = Condition.SUCCESS


#: Plain text is a session that has to succeed.
Dependencies = tuple[DependsOn | Annotated[str, Field(min_length=1, max_length=64)], ...]


class Arranged(Protocol):
    """The fields of a creation that are arranged here."""

    @property
    def session_type(self) -> SessionTypes: ...
    @property
    def starts_at(self) -> datetime | None: ...
    @property
    def batch_timeout(self) -> float | None: ...
    @property
    def max_retries(self) -> int: ...
    @property
    def retry_delay(self) -> float: ...
    @property
    def outputs(self) -> tuple[str, ...] | None: ...
    @property
    def depends_on(self) -> Dependencies: ...


def checked_outputs(asked: Arranged, now: datetime) -> tuple[str, ...]:
    """Raises InvalidConfiguration for what contradicts itself; else the globs of what is kept."""
    batch = asked.session_type is SessionTypes.BATCH
    retried = asked.max_retries and asked.session_type is not SessionTypes.INFERENCE
    if not batch and (asked.batch_timeout is not None or retried or asked.outputs is not None):
        field = "batch_timeout" if asked.batch_timeout is not None else "max_retries" if retried else "outputs"
        raise InvalidConfiguration(f"Only a batch session has {field}: it needs a startup_command.", field=field)
    if asked.starts_at is not None and asked.starts_at > now + _LATEST_START:
        raise InvalidConfiguration("starts_at is more than a year away.", field="starts_at")
    if len(asked.depends_on) > MOST_DEPENDENCIES:
        raise InvalidConfiguration(f"A session waits for at most {MOST_DEPENDENCIES} others.", field="depends_on")
    outputs = asked.outputs if asked.outputs is not None else DEFAULT_OUTPUTS if batch else ()
    if len(outputs) > _MOST_OUTPUTS:
        raise InvalidConfiguration(f"outputs has at most {_MOST_OUTPUTS} patterns.", field="outputs")
    return tuple(_checked_pattern(pattern) for pattern in outputs)


def _checked_pattern(pattern: str) -> str:
    below = pattern.removeprefix(_WORK_DIR).strip("/")
    parts = below.split("/")
    if not below or "\0" in pattern or pattern.removeprefix(_WORK_DIR).startswith("/") or ".." in parts:
        raise InvalidConfiguration(
            f"'{pattern[:80]}' names nothing below /home/work; write a path or a glob such as 'out/*.csv'.",
            field="outputs",
        )
    return "/".join(part for part in parts if part not in ("", "."))


async def arrange(call: Work, session: Session, asked: Arranged, service: Mapping[str, Any] | None) -> bool:
    """Right after the session was made, in the same transaction; whether it was changed by that.

    Raises what is wrong with its dependencies.
    `service`: what an inference session keeps running, see actions/inference.py.
    """
    if service is not None:
        await call.db.sessions_of(session).serve(session.id, service)
    dependencies = call.db.dependencies_of(session)
    if asked.depends_on:
        found = await dependencies.find(_wanted(asked.depends_on), other_than=session.id)
        await dependencies.add(session.id, found)
    if asked.depends_on or asked.starts_at is not None:
        await dependencies.rearm(session.id)
        return True
    return service is not None


def changed_times(
    session: Session, starts_at: datetime | None, batch_timeout: float | None, max_retries: int | None, now: datetime
) -> dict[str, Any]:
    """Columns, with None for what stays. Raises what such a session cannot have, or not any more."""
    if starts_at is not None:
        if session.status is not Status.PENDING:
            raise WrongStatus(
                f"The session '{session.name}' is {session.status}: only one that is still PENDING may start later.",
                status=session.status,
            )
        if starts_at > now + _LATEST_START:
            raise InvalidConfiguration("starts_at is more than a year away.", field="starts_at")
    if batch_timeout is not None and session.session_type is not SessionTypes.BATCH:
        raise InvalidConfiguration("Only a batch session has batch_timeout.", field="batch_timeout")
    if max_retries is not None and session.session_type not in (SessionTypes.BATCH, SessionTypes.INFERENCE):
        raise InvalidConfiguration("Only a batch or inference session is tried again.", field="max_retries")
    return {"starts_at": starts_at, "batch_timeout_seconds": batch_timeout, "max_retries": max_retries}


async def apply_times(call: Work, session: Session) -> Session:
    """After these columns were changed: what is due when. The starting time counts only while it is PENDING."""
    sessions = call.db.sessions_of(session)
    await sessions.bound_work(session.id)
    await call.db.dependencies_of(session).rearm(session.id)
    return await sessions.get(session.id)


async def change_dependencies(call: Work, session: Session, add: Dependencies, remove: Sequence[str]) -> None:
    """Of a session that still waits. Raises DependencyCycle, also when two changes make a circle only together."""
    dependencies: DependencyRepository = call.db.dependencies_of(session)
    await dependencies.lock_graph()
    locked = await call.db.sessions_of(session).lock(session.id)
    if locked.status is not Status.PENDING:
        raise WrongStatus(
            f"The session '{locked.name}' is {locked.status}: only one that is still PENDING may wait for others.",
            status=locked.status,
        )
    await dependencies.remove(session.id, remove)
    if add:
        found = await dependencies.find(_wanted(add))
        await dependencies.check_no_cycle(session.id, found)
        await dependencies.add(session.id, found)
        await dependencies.check_number(session.id)
    await dependencies.rearm(session.id)


def _wanted(asked: Dependencies) -> list[tuple[str, Condition]]:
    return [(one, Condition.SUCCESS) if isinstance(one, str) else (one.session, one.condition) for one in asked]
