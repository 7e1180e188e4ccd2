"""What services there are to start: those that everybody knows, those that an image declares, and any command or port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from domain.errors import InvalidConfiguration, ServiceUnknown

#: An image's label `moorage.service.NAME` declares one, as JSON: {port, command, path, protocol, keep_prefix}.
LABEL_PREFIX: Final = "moorage.service."

#: Starts the newest Jupyter that the image has.
_JUPYTER: Final = """
import importlib.util as u, runpy, sys
found = [m for m in ("jupyterlab", "notebook", "jupyter_server") if u.find_spec(m)]
if not found:
    sys.exit("Neither jupyterlab, notebook nor jupyter_server is installed in this session.")
sys.argv[0] = found[0]
runpy.run_module(found[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one kind of service is started; `{port}` and `{prefix}` in `argv` are replaced, as whole words or within."""

    port: int | None = None
    argv: tuple[str, ...] = ()
    path: str | None = None  #: that answers when it is ready, below the prefix when the program knows that
    protocol: str = "http"
    keep_prefix: bool = False  #: the program is told the path under which the proxy serves it
    needs_command: bool = False
    needs_arguments: bool = False  #: added to its command, that say what it serves


BUILT_IN: Final[Mapping[str, Kind]] = {
    "jupyter": Kind(
        port=8888,
        argv=(
            "python3", "-c", _JUPYTER, "--no-browser", "--ip=127.0.0.1", "--port={port}", "--ServerApp.port_retries=0",
            "--ServerApp.base_url={prefix}", "--IdentityProvider.token=", "--ServerApp.password=",
            "--ServerApp.allow_remote_access=True", "--ServerApp.trust_xheaders=True",
            "--ServerApp.root_dir=/home/work",
        ),
        path="api",
        keep_prefix=True,
    ),
    "tensorboard": Kind(
        port=6006,
        argv=("tensorboard", "--host=127.0.0.1", "--port={port}", "--path_prefix={prefix}", "--logdir=/home/work/logs"),
        path="",
        keep_prefix=True,
    ),
    "ttyd": Kind(
        port=7681,
        argv=("ttyd", "--writable", "--interface=127.0.0.1", "--port={port}", "--base-path={prefix}", "/bin/sh"),
        path="",
        keep_prefix=True,
    ),
    # its arguments: module:name of the application, and options (docs/tensor-streams.md)
    "tensor-stream": Kind(
        port=7070,
        argv=("python3", "-B", "/moorage/rt/runner/tensor_server.py", "--port={port}"),
        path="health",
        needs_arguments=True,
    ),
    "http": Kind(needs_command=True),
    "tcp": Kind(protocol="tcp", needs_command=True),
}  # fmt: skip


def kind_of(name: str, kind: str | None, labels: Mapping[str, str], *, has_own: bool) -> tuple[str, Kind]:
    """What is meant by a name: what the image declares, else what everybody knows, else any program or port.

    `has_own`: a command or a port was given with the request.
    """
    wanted = kind or name
    if (declared := labels.get(f"{LABEL_PREFIX}{wanted}")) is not None:
        return wanted, _declared(wanted, declared)
    if (known := BUILT_IN.get(wanted)) is not None:
        return wanted, known
    if kind is None and has_own:
        return "http", BUILT_IN["http"]
    here = sorted(
        {*BUILT_IN, *(label.removeprefix(LABEL_PREFIX) for label in labels if label.startswith(LABEL_PREFIX))}
    )
    raise ServiceUnknown(
        f"The image declares no service '{wanted[:80]}'; there are {', '.join(here)}. Or give a command and a port."
    )


def check_arguments(name: str, kind: Kind, command: Sequence[str], arguments: Sequence[str]) -> None:
    """Raises InvalidConfiguration for a service that would not know what to serve."""
    if kind.needs_arguments and not command and not arguments:
        raise InvalidConfiguration(
            f"A service of kind '{name}' needs arguments that say what it serves, such as app:Model.", field="arguments"
        )


def _declared(name: str, label: str) -> Kind:
    try:
        given: Any = orjson.loads(label)
        command = given.get("command", [])
        return Kind(
            port=int(given["port"]),
            argv=tuple(["/bin/sh", "-c", command] if isinstance(command, str) else map(str, command)),
            path=given.get("path"),
            protocol="tcp" if given.get("protocol") == "tcp" else "http",
            keep_prefix=bool(given.get("keep_prefix", False)),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InvalidConfiguration(
            f"The image's label {LABEL_PREFIX}{name} is no JSON object with a port; correct it and register the image again."
        ) from None


def command_of(argv: Sequence[str], arguments: Sequence[str], *, port: int, prefix: str) -> list[str]:
    """The words of a command with port and prefix put in; an option that is given anew takes the place of ours."""
    given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    words = [word for word in argv if not (word.startswith("--") and word.partition("=")[0] in given)]
    return [word.replace("{port}", str(port)).replace("{prefix}", prefix) for word in (*words, *arguments)]
