"""Sessions that serve a model: one declared service on every kernel, behind one address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import Field

from actions.kinds import check_arguments, command_of, kind_of
from actions.services import Name, Port, Words, prefix_of
from agent.wire import ServiceSpec
from domain.errors import InvalidConfiguration, InvalidRequest
from domain.session import Session, SessionTypes

#: A model may take long to load.
_READY_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serves:
    """The service of an inference session. `{port}` and `{prefix}` in its command are replaced."""

    name: Name = "api"
    kind: Annotated[str, Field(max_length=32)] | None = None  #: of the image's or the known ones, when `name` is none
    command: Words = field(default_factory=list)
    arguments: Words = field(default_factory=list)  #: added to the command
    port: Port | None = None
    #: answers when it is ready; without one, it is ready when something listens
    path: Annotated[str, Field(max_length=1024, pattern=r"^[\x21-\x7e]*$")] | None = None
    protocol: Literal["http", "tcp"] | None = None
    environ: dict[str, str] = field(default_factory=dict)
    ready_timeout: Annotated[float, Field(gt=0, le=3600)] = _READY_SECONDS


class Asked(Protocol):
    @property
    def session_type(self) -> SessionTypes: ...
    @property
    def serves(self) -> Serves | None: ...


def checked_service(asked: Asked, session: Session, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What is to be started in every kernel, as the control role declares it. Raises what is wrong with it."""
    if (asked.session_type is SessionTypes.INFERENCE) != (asked.serves is not None):
        raise InvalidConfiguration(
            "An inference session, and only an inference session, has a service to keep healthy: 'serves'.",
            field="serves",
        )
    if (serves := asked.serves) is None:
        return None
    has_own = bool(serves.command) or serves.port is not None
    name, kind = kind_of(serves.name, serves.kind, labels, has_own=has_own)
    port = serves.port or kind.port
    if port is None:
        raise InvalidConfiguration(f"The service '{serves.name}' needs a port.", field="serves")
    check_arguments(name, kind, serves.command, serves.arguments)
    prefix = prefix_of(session.id, serves.name)
    argv = command_of(serves.command or kind.argv, serves.arguments, port=port, prefix=prefix)
    if not argv:
        raise InvalidConfiguration(f"The service '{serves.name}' needs a command that starts it.", field="serves")
    if any("\0" in word for word in [*argv, *serves.environ, *serves.environ.values()]):
        raise InvalidRequest("A command and its environment may not hold NUL.", field="serves")
    path = serves.path if serves.path is not None else kind.path
    if path is not None:
        path = prefix + path.lstrip("/") if kind.keep_prefix else "/" + path.lstrip("/")
    spec = ServiceSpec(
        name=serves.name,
        generation=0,
        port=port,
        argv=argv,
        environ=serves.environ,
        path=path,
        ready_seconds=serves.ready_timeout,
        most_restarts=5,
    )
    return {
        "name": serves.name,
        "kind": name,
        "protocol": serves.protocol or kind.protocol,
        "port": port,
        "kernels": "all",
        "spec": spec.pack(),
        "keep_prefix": kind.keep_prefix,
    }
