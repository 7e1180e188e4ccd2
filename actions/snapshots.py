"""Sessions as images: commit them, follow that, push them to a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Kernel,
    Reading,
    Result,
    Rules,
    SessionAction,
    Work,
    action,
    kernel_of,
    may_look,
    owner_or_admin,
)
from actions.information import TaskData, TaskResult
from domain.errors import InvalidRequest, PermissionDenied
from domain.images import check_reference, check_title, snapshot_reference
from domain.principal import TokenScope
from domain.session import ANSWERING, Session
from repositories.image import NewImage
from repositories.transit import emit

#: The kinds of tasks that make images of sessions.
MAKING = ("commit_session", "convert_session_to_image")
Visibility = Literal["user", "project", "public"]


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.DATABASE, background=True, scope=TokenScope.SESSIONS))
class CommitSessionAction(SessionAction[Work, TaskResult]):
    """Make a snapshot of a session: its image, what has changed in it, and its files in /home/work; volumes are not in it.

    The session stands still while its files are packed, and goes on. Sessions can be created from the snapshot by its
    name; it lies on the host that the session runs on.
    """

    name: Annotated[str, Field(max_length=200)] | None = None  #: made of the session's name and the time when left out
    visibility: Literal["user", "project"] = "user"
    kernel: Kernel = None

    async def run(self, call: Work, session: Session, /) -> TaskResult:
        title = check_title(self.name or f"{session.name}-{call.now:%Y%m%d-%H%M%S}")
        name = snapshot_reference(session.user_id, title)
        return await _make(call, session, self.kernel, MAKING[0], "snapshot", name, title, self.visibility, None)


@action(Rules(allow=owner_or_admin, when=ANSWERING, effect=Effect.DATABASE, background=True, scope=TokenScope.SESSIONS))
class ConvertSessionToImageAction(SessionAction[Work, TaskResult]):
    """Make an image of a session, push it to a registry, and let new sessions be made of it, on any host.

    It gets the labels of the image below and Moorage's own, none of the session's container.
    """

    image: Annotated[str, Field(max_length=512)]  #: HOST/REPOSITORY:TAG
    visibility: Visibility = "user"
    project: str | None = None  #: that it is visible to, with visibility `project`; the session's when left out
    kernel: Kernel = None

    async def run(self, call: Work, session: Session, /) -> TaskResult:
        name = check_reference(self.image)
        if self.visibility == "public" and not call.by.is_admin:
            raise PermissionDenied("Only administrators make images that everybody sees.")
        if self.project is not None and self.visibility != "project":
            raise InvalidRequest("A project is named for an image that is visible to a project.", field="project")
        return await _make(call, session, self.kernel, MAKING[1], "built", name, name, self.visibility, self.project)


async def _make(
    call: Work,
    session: Session,
    kernel: str | None,
    task_action: str,
    kind: str,
    name: str,
    title: str,
    visibility: str,
    project: str | None,
) -> TaskResult:
    """Take the name, queue the work, and say so."""
    where = kernel_of(session, kernel)
    task_id = call.new_id()
    project_id = None
    if visibility == "project":
        member = None if call.by.is_admin else session.user_id
        project_id = await call.db.identity.project_id(project or session.project, domain=session.domain, member=member)
    await call.db.images.begin(
        NewImage(
            name=name,
            architecture=session.architecture,
            kind=kind,
            title=title,
            owner_id=session.user_id,
            visibility=visibility,
            project_id=project_id,
            agent_id=where.agent_id if kind == "snapshot" else None,
            session_id=session.id,
            task_id=task_id,
        )
    )
    task = await call.db.tasks.add(
        task_id,
        action=task_action,
        arguments={
            "image": name,
            "title": title,
            "agent": where.agent_id,
            "kernel": str(where.kernel_id),
            "attempt": where.attempt,
            "session": session.name,
            "base": session.image,
            "owner": str(session.user_id),
        },
        user_id=session.user_id,
        session_id=session.id,
    )
    await emit(
        call.db.connection,
        "session.committing",
        now=call.now,
        cause=call.db.cause,
        session_id=session.id,
        user_id=session.user_id,
        domain=session.domain,
        data={"name": session.name, "image": title, "task": str(task_id)},
    )
    call.announce("tasks")
    return TaskResult(task=TaskData.of(task))


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatus:
    """How the last commit of a session stands."""

    status: str  #: none, queued, running, done, failed, cancelled
    image: str | None = None  #: as its owner calls it
    task_id: UUID | None = None
    progress: Mapping[str, Any] | None = None  #: {current, total, message}
    result: Any = None  #: {image, name, size_bytes, frozen_seconds, digest?}
    error: Mapping[str, Any] | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatusResult(Result):
    commit_status: CommitStatus


@action(Rules(allow=may_look, effect=Effect.READ))
class GetCommitStatusAction(SessionAction[Reading, CommitStatusResult]):
    """How far the last commit, or the last image, of a session is."""

    async def run(self, call: Reading, session: Session, /) -> CommitStatusResult:
        task = await call.db.tasks.latest(session.id, MAKING)
        if task is None:
            return CommitStatusResult(commit_status=CommitStatus(status="none"))
        return CommitStatusResult(
            commit_status=CommitStatus(
                status=task.status,
                image=str(task.arguments["title"]),
                task_id=task.id,
                progress=task.progress,
                result=task.result,
                error=task.error,
                created_at=task.created_at,
                finished_at=task.finished_at,
            )
        )
