"""Create, change, rename, restart and destroy sessions, and move those whose containers have moved on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AwareDatetime, Field

from actions.base import (
    BatchAction,
    Effect,
    Result,
    Rules,
    ScopeAction,
    Service,
    SessionAction,
    Settles,
    Work,
    action,
    any_user,
    owner_or_admin,
    owner_or_project_admin,
)
from actions.batch import (
    Dependencies,
    apply_times,
    arrange,
    change_dependencies,
    changed_times,
    checked_outputs,
)
from actions.constraints import check_group_still, checked_place
from actions.inference import Serves, checked_service
from actions.kernels import KernelGroup, check_groups, kernels_of_groups, once_more
from actions.mounts import check_still_there, places_of
from actions.options import checked_callback, checked_options
from actions.reallocation import change_resources
from actions.resizing import resize
from actions.views import SessionData, SessionResult
from actions.workers import check_idle_timeout, check_same_app, employed
from agent.wire import KernelSpec
from domain.dependency import MOST_RETRY_DELAY_SECONDS, is_skip
from domain.errors import (
    DependencyFailed,
    InvalidConfiguration,
    InvalidRequest,
    InvalidResources,
    MoorageError,
    NameTaken,
    PermissionDenied,
    ResourceUnavailable,
    StartFailed,
)
from domain.ids import KernelId, SessionId
from domain.names import check_session_name
from domain.options import change_labels
from domain.principal import Principal, TokenScope
from domain.resources import ResourceSlot, parse_memory_mib
from domain.session import (
    ANSWERING,
    FINAL,
    LIVE,
    LONGEST_LEASE_SECONDS,
    SHORTEST_LEASE_SECONDS,
    ClusterMode,
    Event,
    OnAgentLost,
    Session,
    SessionTypes,
    Status,
)
from domain.volumes import MOST_MOUNTS, Mount
from repositories.apps import App
from repositories.image import Image
from repositories.kernels import settle
from repositories.session import NewKernel
from repositories.transit import Moved

#: A runner with its worker needs about 30 MiB; below this, sessions die at their first import.
MIN_MEMORY_MIB: Final = 64
DEFAULT_PRIORITY: Final = 10
DEFAULT_SLOTS: Final = ResourceSlot(cpu=1, mem=1024)
MAX_SCRIPT_BYTES: Final = 1024 * 1024
_ENVIRON_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")
#: They would reach into the loader of every process, or into what the GPU runtime mounts.
_STRIPPED_ENVIRON: Final = ("LD_", "NVIDIA_")
_STATUS_AFTER_ENDING: Final = FINAL | {Status.TERMINATING}

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedSession(SessionResult):
    """The new session, or the live one of this name when `reuse_if_exists` found it."""

    created: bool = True


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CreateFromParamsAction(ScopeAction[Work, CreatedSession], Settles):
    """Queue a session for the given image and resources; it runs as soon as a host has room."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None  #: of an app: the app's
    name: str | None = None  #: generated when left out
    architecture: str | None = None  #: the image's, when left out
    resource_slots: ResourceSlot | None = None  #: the app's, or 1 CPU and 1 GiB, when left out
    session_type: SessionTypes = SessionTypes.INTERACTIVE
    cluster_mode: ClusterMode = ClusterMode.SINGLE_NODE
    cluster_size: Annotated[int, Field(ge=1, le=1024)] = 1
    project: str | None = None
    timeout: Seconds | None = None  #: lifetime in seconds from RUNNING
    max_wait: Seconds | None = None  #: how long it may stay in the queue
    bootstrap_script: Annotated[str, Field(max_length=MAX_SCRIPT_BYTES)] | None = None
    bootstrap_required: bool = False  #: a failing bootstrap script fails the session, instead of leaving a notice
    startup_command: Annotated[str, Field(max_length=MAX_SCRIPT_BYTES)] | None = None  #: a batch session's work
    tag: Annotated[str, Field(max_length=256)] | None = None
    environ: Mapping[str, str] | None = None
    shm_size: int | str | None = None  #: MiB, or with a suffix; half of the memory when left out
    priority: Annotated[int, Field(ge=0, le=100)] | None = None  #: 10 when left out, or what limits allow
    reuse_if_exists: bool = False
    starts_at: AwareDatetime | None = None  #: not placed before
    depends_on: Dependencies = ()  #: sessions that have to end first; a plain name: that have to succeed
    batch_timeout: Seconds | None = None  #: seconds from RUNNING that a batch session's work may take
    max_retries: Annotated[int, Field(ge=0, le=100)] = 0  #: further attempts when a batch session's work fails
    #: seconds before the first retry; twice as long before each further one
    retry_delay: Annotated[float, Field(ge=0, le=MOST_RETRY_DELAY_SECONDS)] = 5.0
    #: globs below /home/work that are kept after a batch session's end; `outputs` when left out
    outputs: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] | None = None
    serves: Serves | None = None  #: the service that an inference session keeps healthy in each of its kernels
    mounts: Annotated[tuple[Mount, ...], Field(max_length=MOST_MOUNTS)] = ()  #: volumes
    labels: Mapping[str, str] | None = None  #: to find it by: `label=name=value` in searches
    preopen_ports: tuple[int, ...] = ()  #: for services that it starts by itself
    callback_url: str | None = None  #: is sent a signed request whenever something happens to the session
    idle_timeout: Seconds | None = None  #: it ends after so many seconds without a call or run
    app: Annotated[str, Field(min_length=1, max_length=160)] | None = None  #: of a worker session: NAME, NAME@2
    resource_group: Annotated[str, Field(min_length=1, max_length=64)] | None = None  #: `default`, or the first allowed
    agent: Annotated[str, Field(min_length=1, max_length=256)] | None = None  #: on this host; for administrators
    host_labels: Mapping[str, str] | None = None  #: only on hosts that have all of them
    #: not on a host with another live session of the owner that has one of these labels
    apart_from: Mapping[str, str] | None = None
    gpu_model: Annotated[str, Field(min_length=1, max_length=128)] | None = None  #: a word of it, such as h100
    on_agent_lost: OnAgentLost = OnAgentLost.KEEP  #: replace: it begins anew elsewhere when its host is not heard of
    #: with replace: seconds without a word from the manager, after which its host ends it
    agent_lease: Annotated[float, Field(ge=SHORTEST_LEASE_SECONDS, le=LONGEST_LEASE_SECONDS)] | None = None

    def target(self) -> str | None:
        return self.name

    async def run(self, call: Work, /) -> CreatedSession:
        asked, app = await employed(call, self)
        return await asked._make(call, app)

    async def _make(self, call: Work, app: App | None) -> CreatedSession:
        name = check_session_name(self.name) if self.name is not None else f"session-{call.new_id().hex[-12:]}"
        assert self.image is not None
        if self.session_type is SessionTypes.SYSTEM and not call.by.is_admin:
            raise PermissionDenied("Only administrators create system sessions.")
        image = await call.db.images.resolve(self.image)
        if self.architecture not in (None, image.architecture):
            raise InvalidConfiguration(
                f"The image '{image.name}' is made for {image.architecture}, not for {self.architecture}.",
                field="architecture",
            )
        if (self.session_type is SessionTypes.BATCH) != (self.startup_command is not None):
            raise InvalidConfiguration(
                "A batch session, and only a batch session, has a startup_command.", field="startup_command"
            )
        outputs = checked_outputs(self, call.now)
        project = self.project or next(iter(call.owner.projects), None)
        if project is None:
            raise InvalidConfiguration("You are not a member of any project; ask an administrator.", field="project")
        places = await places_of(call, self.mounts)
        groups = await self._groups(call, image)
        check_groups(groups)
        shm_mib = _checked_shm(self.shm_size, *(check_slots(group.slots) for group in groups))
        sizes = [group.slots for group in groups for _ in range(group.count)]
        place = await checked_place(call, self, project=project, image=image, sizes=sizes)
        environ, notices = checked_environ(self.environ or {})
        options = await checked_options(call, self)
        session = Session(
            id=SessionId(call.new_id()),
            name=name,
            user_id=call.owner.user_id,
            access_key=call.owner.access_key,
            domain=call.owner.domain,
            project=project,
            session_type=self.session_type,
            cluster_mode=self.cluster_mode,
            cluster_size=sum(group.count for group in groups),
            image=groups[0].image.name,
            architecture=image.architecture,
            requested_slots=groups[0].slots,
            tag=self.tag,
            environ=environ,
            bootstrap_script=self.bootstrap_script,
            bootstrap_required=self.bootstrap_required,
            startup_command=self.startup_command,
            shm_mib=shm_mib,
            priority=DEFAULT_PRIORITY if self.priority is None else self.priority,
            timeout_seconds=self.timeout,
            max_wait_seconds=self.max_wait,
            starts_at=self.starts_at,
            batch_timeout_seconds=self.batch_timeout,
            max_retries=self.max_retries,
            retry_delay_seconds=self.retry_delay if self.max_retries else 0.0,
            outputs=outputs,
            mounts=tuple(place.to_spec() for place in places),
            created_at=call.now,
            status_changed_at=call.now,
            main_kernel_id=KernelId(call.new_id()),
            notices=(*notices, *place.notices),
            resource_group=place.group,
            constraints=place.constraints.to_json(),
            **options,
        )
        service = checked_service(self, session, image.labels)
        member = None if call.owner.is_admin else call.owner.user_id
        kernels = kernels_of_groups(session, groups, partial(self._kernel, owner=call.owner), call.new_id)
        timed = {"lifetime": self.timeout, "priority": self.priority}
        chosen = [name for name, value in timed.items() if value is not None]
        made = await call.db.sessions.create(session, kernels, member=member, chosen=chosen)
        if made is None:
            await call.db.identity.project_id(project, domain=call.owner.domain, member=member)  # is there one at all?
            return await self._reuse(call, name, image, app)
        if app is not None:
            await call.db.calls.employ(made, app.id, app.version, app.definition, app.name)
            call.announce("workers", session.id)
        if places:
            await call.db.volumes.mount(session.id, places)
        if await arrange(call, session, self, service) or places or app is not None:
            made = await call.db.sessions.get(session.id)
        call.announce("queue")
        call.announce("sessions", session.id)
        return CreatedSession(session_data=SessionData.of(made))

    async def _groups(self, call: Work, image: Image) -> Sequence[KernelGroup]:
        """The main kernel's group first."""
        sizes = (("main", 1), ("worker", self.cluster_size - 1))
        return [
            KernelGroup(role=role, count=count, image=image, slots=self.resource_slots or DEFAULT_SLOTS)
            for role, count in sizes
            if count
        ]

    def _kernel(self, session: Session, kernel_id: KernelId, owner: Principal) -> NewKernel:
        return _kernel(session, kernel_id, owner)

    async def _reuse(self, call: Work, name: str, image: Image, app: App | None) -> CreatedSession:
        if not self.reuse_if_exists:
            raise NameTaken(
                f"You already have a live session named '{name}'; choose another name, or take that one (--reuse, reuse_if_exists).",
                name=name,
            )
        there = await call.db.sessions.get(name)
        if there.image != image.name or there.session_type is not self.session_type:
            raise NameTaken(
                f"The live session '{name}' is a {there.session_type} one of '{there.image}', which is not what you ask for.",
                name=name,
            )
        check_same_app(there, app)
        return CreatedSession(session_data=SessionData.of(there), created=False)

    async def settled(self, service: Service, answer: CreatedSession, seconds: float | None) -> CreatedSession:
        session = await service.wait_for_session(
            answer.session_data.id, lambda s: s.status in ANSWERING | FINAL, seconds
        )
        if session.status is Status.CANCELLED and is_skip(session.status_reason):
            raise DependencyFailed(session.status_reason, session_id=str(session.id))
        if session.status is Status.CANCELLED and session.result == "FAILURE":
            raise ResourceUnavailable(session.status_reason, session_id=str(session.id))
        if session.status is Status.ERROR:
            raise StartFailed(f"The session could not be started: {session.status_reason}", session_id=str(session.id))
        return CreatedSession(session_data=SessionData.of(session), created=answer.created)


def check_slots(slots: ResourceSlot) -> ResourceSlot:
    if not slots.get("cpu"):
        raise InvalidResources("A session needs some CPU; ask for at least cpu=0.001.")
    if slots.get("mem", 0) < MIN_MEMORY_MIB:
        raise InvalidResources(f"A session needs at least {MIN_MEMORY_MIB} MiB of memory.")
    return slots


def _checked_shm(shm_size: int | str | None, *slots: ResourceSlot) -> int | None:
    if shm_size is None:
        return None
    shm_mib, most = parse_memory_mib(shm_size), min(part["mem"] for part in slots)
    if not 1 <= shm_mib <= most:
        raise InvalidResources(f"shm_size must be between 1 MiB and the session's memory of {most} MiB.")
    return shm_mib


def checked_environ(environ: Mapping[str, str]) -> tuple[dict[str, str], tuple[dict[str, str], ...]]:
    """What may be set, and a notice about what was left out."""
    for name, value in environ.items():
        if not _ENVIRON_NAME.fullmatch(name) or "\0" in value:
            raise InvalidRequest(f"'{name[:80]}' cannot be an environment variable.", field="environ")
    if sum(len(name) + len(value.encode()) for name, value in environ.items()) > 256 * 1024:
        raise InvalidRequest("The environment is larger than 256 KiB; put it into a file.", field="environ")
    stripped = sorted(name for name in environ if name.startswith(_STRIPPED_ENVIRON))
    kept = {name: value for name, value in environ.items() if name not in stripped}
    if not stripped:
        return kept, ()
    return kept, (
        {"kind": "environ", "message": f"Not set, because they reach into loaders and drivers: {', '.join(stripped)}"},
    )


def _kernel(session: Session, kernel_id: KernelId, owner: Principal) -> NewKernel:
    spec = KernelSpec(
        session_id=str(session.id),
        session_name=session.name,
        image=session.image,
        architecture=session.architecture,
        slots=dict(session.requested_slots),
        environ=dict(session.environ),
        bootstrap_script=session.bootstrap_script,
        bootstrap_required=session.bootstrap_required,
        startup_command=session.startup_command,
        preopen_ports=list(session.preopen_ports),
        shm_mib=session.shm_mib,
        outputs=list(session.outputs),
        # such a session may grow, also when it begins with one kernel
        cluster=str(session.cluster_mode) if session.session_type is SessionTypes.INFERENCE else None,
        mounts=[dict(mount) for mount in session.mounts],
        uid=owner.uid,
        gid=owner.gid,
        lease_seconds=session.agent_lease_seconds,
        worker=session.session_type is SessionTypes.WORKER,
    )
    return NewKernel(id=kernel_id, role="main", index=1, slots=session.requested_slots, spec=spec.pack())


@action(Rules(allow=owner_or_project_admin, when=LIVE, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class RenameSessionAction(SessionAction[Work, SessionResult]):
    """Give a session a new name. A name is unique among its owner's live sessions."""

    new_name: str

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        renamed = await call.db.sessions_of(session).rename(session, check_session_name(self.new_name))
        call.announce("sessions", session.id)
        return SessionResult.of(renamed)


@action(Rules(allow=owner_or_project_admin, when=LIVE, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class ModifySessionAction(SessionAction[Work, SessionResult]):
    """Change a live session: name, priority, limits of time, tag, labels, callback, resources; what is left out stays."""

    name: str | None = None
    priority: Annotated[int, Field(ge=0, le=100)] | None = None
    timeout: Seconds | None = None
    tag: Annotated[str, Field(max_length=256)] | None = None
    idle_timeout: Annotated[float, Field(ge=0, le=10 * 365 * 86400)] | None = None  #: 0: none any more
    labels: Mapping[str, str | None] | None = None  #: those that are named; null takes one away
    callback_url: str | None = None  #: empty: none any more
    resource_slots: ResourceSlot | None = None  #: cpu and mem, also while it runs; what is left out stays
    #: of a running cluster: workers come or go, those that have ended are replaced
    cluster_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    starts_at: AwareDatetime | None = None  #: of a PENDING session
    batch_timeout: Seconds | None = None  #: of a batch session, from when its work began
    max_retries: Annotated[int, Field(ge=0, le=100)] | None = None
    add_dependencies: Dependencies = ()  #: of a PENDING session
    remove_dependencies: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()  #: names or ids
    version: Annotated[int, Field(ge=0, lt=2**63)] | None = (
        None  #: change it only while it still has this version (If-Match)
    )

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        sessions = call.db.sessions_of(session)
        if rewired := bool(self.add_dependencies or self.remove_dependencies):  # first: its locks come before the row's
            await change_dependencies(call, session, self.add_dependencies, self.remove_dependencies)
        given: dict[str, Any] = {
            **changed_times(session, self.starts_at, self.batch_timeout, self.max_retries, call.now),
            "name": None if self.name is None else check_session_name(self.name),
            "priority": self.priority,
            "timeout_seconds": self.timeout,
            "tag": self.tag,
            "cluster_size": self.cluster_size,
        }
        changes = {column: value for column, value in given.items() if value is not None}
        if self.idle_timeout is not None:
            changes["idle_timeout_seconds"] = check_idle_timeout(session, self.idle_timeout) or None
        if self.callback_url is not None:
            callback = await checked_callback(call, self.callback_url, session) if self.callback_url else None
            changes["callback_url"] = callback
        if self.labels is not None or self.resource_slots is not None:
            session = await sessions.lock(session.id)
        if self.labels is not None:
            changes["labels"] = change_labels(session.labels, self.labels)
        if self.resource_slots is not None:
            slots = await change_resources(call, session, self.resource_slots, MIN_MEMORY_MIB)
            changes["requested_slots"] = slots
        if not changes and not rewired:
            raise InvalidRequest(
                "Nothing to change was given; name one of name, priority, timeout, idle_timeout, tag, labels, callback_url, "
                "resource_slots, cluster_size, starts_at, batch_timeout, max_retries, add_dependencies."
            )
        modified = await sessions.modify(session, changes, version=self.version)
        if changes.keys() & _CHARGED:
            await sessions.charge_anew(session.id)
        if self.batch_timeout is not None or self.starts_at is not None:
            modified = await apply_times(call, session)
        if self.cluster_size is not None:
            await resize(call, session, self.cluster_size)
            modified = await sessions.get(session.id)
        call.announce("sessions", session.id)
        call.announce("queue")
        return SessionResult.of(modified)


#: What limits look at, besides the kernels.
_CHARGED: Final = frozenset({"priority", "timeout_seconds", "requested_slots"})
_RESTARTABLE: Final = ANSWERING | FINAL


@action(Rules(allow=owner_or_admin, when=_RESTARTABLE, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class RestartSessionAction(SessionAction[Work, SessionResult], Settles):
    """Start a new attempt: in place with /home/work kept while it runs, through the queue when it had ended."""

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        sessions = call.db.sessions_of(session)
        if session.mounts:
            await check_still_there(call, session)
        if session.status in FINAL:
            await check_group_still(call, session)
        kernels = once_more(await sessions.kernel_specs(session), call.new_id)
        await sessions.restart(session, kernels)
        call.announce("queue")
        call.announce("dispatch")
        call.announce("sessions", session.id)
        return SessionResult.of(await sessions.get(session.id))

    async def settled(self, service: Service, answer: SessionResult, seconds: float | None) -> SessionResult:
        done = await service.wait_for_session(answer.session_data.id, lambda s: s.status in ANSWERING | FINAL, seconds)
        return SessionResult.of(done)


@action(Rules(allow=owner_or_project_admin, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class DestroySessionAction(SessionAction[Work, SessionResult], Settles):
    """End a session and free its slots. A queued one is cancelled; one that has ended is left as it is.

    With `forced` it is over at once, also when its host does not answer; the slots stay taken until the host says that
    the containers are gone. `recursive` ends the sessions that depend on it as well.
    """

    forced: bool = False
    recursive: bool = False

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        sessions = call.db.sessions_of(session)
        doomed = [session.id]
        if self.recursive:
            doomed += await call.db.dependencies_of(session).dependants(session.id, live=True)
        for one in sorted(doomed):  # locked in this order, so that nobody waits for us while we wait for them
            locked = await sessions.lock(one)
            if not owner_or_project_admin(call.by, locked):
                raise PermissionDenied(
                    f"The session '{locked.name}' depends on it and is of the project '{locked.project}', which you do not "
                    "administer; leave out 'recursive', or ask its owner.",
                )
            await self._destroy(call, locked)
        return SessionResult.of(await sessions.get(session.id))

    async def _destroy(self, call: Work, session: Session) -> None:
        """A batch session that ends to be tried again is not tried again."""
        sessions = call.db.sessions_of(session)
        reason = "destroyed by its owner" if call.by.user_id == session.user_id else "destroyed by an administrator"
        if session.status not in (FINAL if self.forced else _STATUS_AFTER_ENDING):
            await sessions.transit(session, Event.FORCE if self.forced else Event.DESTROY, reason=reason)
        elif session.retrying:
            await sessions.give_up_retries(session, reason=reason)
        else:
            return
        call.announce("dispatch")
        call.announce("queue")
        call.announce("sessions", session.id)

    async def settled(self, service: Service, answer: SessionResult, seconds: float | None) -> SessionResult:
        done = await service.wait_for_session(answer.session_data.id, lambda s: s.status in FINAL, seconds)
        return SessionResult.of(done)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitOutcome:
    """What the check made of one session."""

    session_id: SessionId
    before: Status | None = None
    after: Status | None = None
    path: tuple[Status, ...] = ()  #: the statuses it went through
    reason: str | None = None  #: why it was moved, or why there was nothing to do
    error: str | None = None  #: the code of the refusal, such as session_not_found


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitOutcomes(Result):
    outcomes: list[TransitOutcome]


@action(Rules(allow=owner_or_admin, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CheckAndTransitStatusAction(BatchAction[Work, TransitOutcomes]):
    """Derive what each session's status should be from what its hosts have said, and move it there."""

    session_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=1000)]

    def targets(self) -> Sequence[SessionId]:
        return [SessionId(session_id) for session_id in self.session_ids]

    async def run(self, call: Work, session: Session, /) -> TransitOutcome:
        moves = await settle(call.db.connection, session.id, now=call.now, cause=call.db.cause)
        if moves:
            for topic in ("dispatch", "queue"):
                call.announce(topic)
            call.announce("sessions", session.id)
        return TransitOutcome(
            session_id=session.id,
            before=moves[0].source if moves else session.status,
            after=moves[-1].target if moves else session.status,
            path=tuple(move.target for move in moves),
            reason=await _what_was_done(call, session, moves),
        )

    def refused(self, target: SessionId, error: MoorageError) -> TransitOutcome:
        return TransitOutcome(session_id=target, error=error.code, reason=error.message)

    def together(self, outcomes: Sequence[TransitOutcome]) -> TransitOutcomes:
        return TransitOutcomes(outcomes=list(outcomes))


async def _what_was_done(call: Work, session: Session, moves: Sequence[Moved]) -> str:
    """Why it was moved, or why it stays as it is, in one line."""
    now = await call.db.sessions_of(session).get(session.id)
    if moves and now.status_reason:
        return now.status_reason
    if now.status is Status.PENDING:
        return now.status_reason or "it waits for a host with room"
    if now.status in FINAL and not moves:
        return "it has ended"
    said = ", ".join(f"{kernel.name} {kernel.observed or 'not heard of yet'}" for kernel in now.kernels)
    return f"its hosts say: {said}"
