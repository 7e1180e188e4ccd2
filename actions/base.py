"""How an action is declared, and what it is given when it runs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar, dataclass_transform, get_args
from uuid import UUID

from pydantic import ConfigDict, Field

from actions.patience import Patience
from agent.client import AgentClient, KernelAddress
from domain.errors import KernelNotFound, MoorageError, SecretUnreadable, SessionNotReady, WrongStatus
from domain.ids import AccessKey, RunId, SessionId, uuid7
from domain.principal import Principal, Role, TokenScope
from domain.session import ANY_STATUS, ENDED, Session, Status
from domain.ssh import PublicKey
from repositories.audit import Anchor
from repositories.unit import Repositories

R = TypeVar("R", covariant=True)
W = TypeVar("W", bound="Call")


class Effect(StrEnum):
    """What an action touches; it decides who commits and what a repeated request gets."""

    READ = "read"  #: writes nothing; audited only when it reads another's data
    DATABASE = "database"  #: the processor's one transaction: key, change, answer, audit, event
    AGENT = "agent"  #: calls the agent with no transaction open; the idempotency key is the run's id


class Audit(StrEnum):
    """When the processor writes an audit row for a call that succeeded; refusals are on record in any case."""

    ALWAYS = "always"
    OTHERS = "others"  #: nothing is changed: only when it is done to another's session
    ITSELF = "itself"  #: the action writes it with its own row


def no_seal(_secret: str, _about: str) -> bytes:
    raise SecretUnreadable("This process has no key to seal secrets with; send the request to a manager.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks for what, when."""

    by: Principal
    owner: Principal  #: whose sessions are meant: `by`, unless an administrator named another
    now: datetime
    request_id: str | None = None
    key: str | None = None  #: the Idempotency-Key
    new_id: Callable[[], UUID] = uuid7
    seal: Callable[[str, str], bytes] = no_seal


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Call):
    """What a READ action is given: repositories on a connection without a transaction."""

    db: Repositories


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Reading):
    """What a DATABASE action is given: repositories inside the processor's transaction, and no agents."""

    #: (topic, session) pairs that other processes are told of after the commit
    announcements: list[tuple[str, SessionId | None]] = field(default_factory=list)

    def announce(self, topic: str, session_id: SessionId | None = None) -> None:
        self.announcements.append((topic, session_id))


class SshAuthority(Protocol):
    """The installation's SSH gateway: where it is, and who signs for it."""

    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int: ...
    @property
    def host_key(self) -> str: ...

    def sign(
        self,
        key: PublicKey,
        *,
        identity: str,
        principals: Sequence[str],
        valid_from: datetime,
        valid_until: datetime,
    ) -> str:
        """A certificate, as one line. Raises InvalidSshKey."""
        ...


class PasswordAttempt(Protocol):
    def was_right(self) -> None: ...


class PasswordHashing(Protocol):
    """Slow on purpose, and not on the event loop."""

    async def hash(self, password: str) -> str: ...
    async def verify(self, password_hash: str | None, password: str) -> bool: ...
    def attempt(
        self, account: str, address: str | None, *, now: datetime | None = None
    ) -> AbstractAsyncContextManager[PasswordAttempt]:
        """Around the check of one password. Raises TooManySignIns."""
        ...


class AuditSeal(Protocol):
    """What the audit's chain is proved with; none of it is in the database."""

    @property
    def key(self) -> bytes: ...
    @property
    def kept(self) -> Anchor | None:
        """Where keyed links begin, as this host has noted it."""
        ...


class Service(Protocol):
    """The part of `manager.world.SessionService` that actions use."""

    @property
    def passwords(self) -> PasswordHashing: ...

    @property
    def ssh(self) -> SshAuthority | None: ...
    @property
    def seal(self) -> AuditSeal | None: ...

    @property
    def agents(self) -> AgentClient: ...
    @property
    def proxy_url(self) -> str:
        """Where services are served, without a slash at its end."""
        ...

    def reading(self, call: Call) -> AbstractAsyncContextManager[Reading]: ...

    def work(self, call: Call) -> AbstractAsyncContextManager[Work]:
        """A short transaction of an AGENT action's own; what it announces is sent after the commit."""
        ...

    @property
    def patience(self) -> Patience: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    def announce(self, topic: str, *session_ids: SessionId) -> None:
        """Tell other processes, after a statement that was its own transaction."""
        ...

    async def wait_for_session(
        self, session_id: SessionId, until: Callable[[Session], bool], seconds: float | None
    ) -> Session:
        """The session as it is when `until` holds or the time is over; woken by changes, not by a timer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote(Call):
    """What an AGENT action is given: agents, and short transactions of its own between the calls."""

    service: Service
    run_id: RunId  #: derived from the idempotency key, so that a retry finds the same run

    @property
    def agents(self) -> AgentClient:
        return self.service.agents


@dataclass(frozen=True, slots=True)
class Result:
    """Every action's answer. Failures are raised, so an answer that arrived is a success."""

    @property
    def success(self) -> bool:
        return True


#: Of a session's kernels, the one that is meant: `worker1`, or its id; the main one when left out.
Kernel = Annotated[str, Field(min_length=1, max_length=64)] | None

Permission = Callable[[Principal, Session | None], bool]


def owner_or_admin(by: Principal, session: Session | None) -> bool:
    """What gets into a session: its owner, while a member of its project, and administrators of its domain."""
    if by.role is Role.MONITOR:
        return False
    if session is None or by.administers_domain(session.domain):
        return True
    return by.user_id == session.user_id and session.project in by.projects


def owner_or_project_admin(by: Principal, session: Session | None) -> bool:
    """What changes or ends a session without getting into it."""
    if by.role is Role.MONITOR:
        return False
    if session is None or by.user_id == session.user_id:
        return True
    return by.administers_project(session.domain, session.project)


def may_look(by: Principal, session: Session | None) -> bool:
    return by.role is Role.MONITOR or owner_or_project_admin(by, session)


def any_user(by: Principal, session: Session | None) -> bool:
    return by.role is not Role.MONITOR


def anyone(by: Principal, session: Session | None) -> bool:
    return True


def superadmin(by: Principal, session: Session | None) -> bool:
    return by.is_admin


def superadmin_or_monitor(by: Principal, session: Session | None) -> bool:
    return by.sees_all


def domain_admin(by: Principal, session: Session | None) -> bool:
    """And superadmins. What is outside the domain is not there for it: the action says so."""
    return by.role in (Role.SUPERADMIN, Role.DOMAIN_ADMIN)


def domain_admin_or_monitor(by: Principal, session: Session | None) -> bool:
    return by.role is not Role.USER


def project_admin(by: Principal, session: Session | None) -> bool:
    """And domain admins and superadmins; of which project, the action asks."""
    return domain_admin(by, session) or (by.role is Role.USER and bool(by.administers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the processor checks and keeps for every call of one action."""

    allow: Permission
    effect: Effect
    when: frozenset[Status] = ANY_STATUS
    deadline_seconds: float = 60.0
    background: bool = False  #: answers with a task, on which a manager then works
    audit: Audit = Audit.ALWAYS  #: READ actions are OTHERS in any case
    secrets: frozenset[str] = frozenset()  #: fields of the answer that are shown once and never stored
    #: what a token needs for it; left out: to look for READ actions, and to administer for all others
    scope: TokenScope | None = None

    @property
    def needs(self) -> TokenScope:
        if self.scope is not None:
            return self.scope
        return TokenScope.READ if self.effect is Effect.READ else TokenScope.ADMIN


class Action(ABC, Generic[W, R]):
    """A request as a value, named by a verb. `W` is what it is given to work with, `R` its answer."""

    rules: ClassVar[Rules]
    action_name: ClassVar[str]  #: create_from_params, execute_session, ...
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", revalidate_instances="always", arbitrary_types_allowed=True, str_max_length=4 * 1024 * 1024
    )

    def target(self) -> str | None:
        """What the audit log names as the object of this action."""
        return None

    def looks_at_others(self, by: Principal) -> bool:
        """Whether this reads what is not the asker's own, by what it is asked for: then the read is on record."""
        return False


@dataclass(frozen=True, kw_only=True)
class SessionAction(Action[W, R]):
    """An action on one existing session, which the processor has loaded and checked."""

    #: an id, or a name among the owner's live sessions
    session_name: str
    #: who asks, for in-process callers; doors pass the principal that they have authenticated
    access_key: AccessKey | None = None
    #: whose session, when an administrator acts for another
    owner_access_key: AccessKey | None = None

    def target(self) -> str | None:
        return self.session_name

    @abstractmethod
    async def run(self, call: W, session: Session, /) -> R: ...


@dataclass(frozen=True, kw_only=True)
class BatchAction(Action[W, R]):
    """An action on several sessions, with one outcome for each: a failure of one does not stop the others."""

    access_key: AccessKey | None = None
    owner_access_key: AccessKey | None = None

    @abstractmethod
    def targets(self) -> Sequence[SessionId]: ...

    def target(self) -> str | None:
        return ",".join(str(target) for target in self.targets()[:20])

    @abstractmethod
    async def run(self, call: W, session: Session, /) -> Any:
        """The outcome for one of the targets."""
        ...

    @abstractmethod
    def refused(self, target: SessionId, error: MoorageError) -> Any:
        """The outcome for a target that was refused."""
        ...

    @abstractmethod
    def together(self, outcomes: Sequence[Any]) -> R:
        """The answer made of all outcomes, in the order of the targets."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScopeAction(Action[W, R]):
    """An action on no particular session: create, list, match, and everything about users, images and agents."""

    access_key: AccessKey | None = None
    owner_access_key: AccessKey | None = None

    @abstractmethod
    async def run(self, call: W, /) -> R: ...


class Settles(ABC):
    """An action whose effect goes on after its commit, such as a creation; `settled` waits for it."""

    @abstractmethod
    async def settled(self, service: Service, answer: Any, seconds: float | None) -> Any:
        """The answer once the session is running or final, or as it is after `seconds`."""
        ...


ACTIONS: dict[str, type[Action[Any, Any]]] = {}
_EFFECT_BY_CONTEXT = {Reading: Effect.READ, Work: Effect.DATABASE, Remote: Effect.AGENT}
C = TypeVar("C", bound=type[Action[Any, Any]])


@dataclass_transform(frozen_default=True, kw_only_default=True)
def action(rules: Rules) -> Callable[[C], C]:
    """Make a class a frozen dataclass with these rules, and list it in `ACTIONS`. A mistake fails the import."""

    def declare(cls: C) -> C:
        if not cls.__doc__:
            raise TypeError(f"{cls.__name__} needs a docstring")
        cls.rules = rules
        cls.action_name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Action")).lower()
        if cls.action_name in ACTIONS:
            raise TypeError(f"there is an action {cls.action_name} already")
        context = next(get_args(base)[0] for base in cls.__orig_bases__ if get_args(base))  # type: ignore[attr-defined]
        if _EFFECT_BY_CONTEXT.get(context) is not rules.effect:
            raise TypeError(f"{cls.__name__} is given {context.__name__}, which does not fit effect {rules.effect}")
        dataclass(frozen=True, kw_only=True)(cls)
        ACTIONS[cls.action_name] = cls
        return cls

    return declare


def kernel_of(session: Session, name: str | UUID | None = None, *, answering: bool = True) -> KernelAddress:
    """Where one of a session's kernels is: by its name (`worker1`) or id, the main one when none is given.

    `answering`: refused when that kernel has ended. Costs nothing: the session carries its kernels.
    """
    if name is None:
        return main_kernel(session)
    for kernel in session.kernels:
        if str(name) in (kernel.name, str(kernel.id)):
            break
    else:
        names = ", ".join(kernel.name for kernel in session.kernels)
        raise KernelNotFound(f"The session '{session.name}' has no kernel '{str(name)[:80]}'; it has {names}.")
    if kernel.agent_id is None:
        raise SessionNotReady(
            f"The kernel {kernel.name} of '{session.name}' waits for a host with free slots.", status=session.status
        )
    if answering and kernel.observed in ENDED:
        raise WrongStatus(
            f"The kernel {kernel.name} of '{session.name}' has ended; 'moorage modify {session.name} --cluster-size "
            f"{session.cluster_size}' puts a new one in its place.",
            status=session.status,
        )
    return KernelAddress(agent_id=kernel.agent_id, kernel_id=kernel.id, attempt=session.attempt)


def main_kernel(session: Session) -> KernelAddress:
    """Where a session's executions, files and logs are."""
    if session.agent_id is None:
        raise SessionNotReady(status=session.status)
    return KernelAddress(agent_id=session.agent_id, kernel_id=session.main_kernel_id, attempt=session.attempt)
