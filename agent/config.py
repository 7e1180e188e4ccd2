"""What an agent is told: `agent.toml` in its data dir, written by `moorage agent join` and by administrators."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from agent.wire import check_agent_id
from domain.errors import InvalidResources
from domain.resources import ResourceSlot

FILE_NAME: Final = "agent.toml"
#: Where containers see what is ours; nothing may be mounted over it.
_OURS: Final = ("/moorage", "/home/work", "/proc", "/sys", "/dev", "/tmp", "/etc")  # noqa: S108


class ConfigError(Exception):
    """The configuration cannot be used; the message says which line and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One agent. What is left at None is found out on this machine."""

    data_dir: Path
    agent_id: str
    managers: list[str]  #: addresses to dial first; the managers themselves tell of others
    docker_host: str = ""  #: of the engine; empty: DOCKER_HOST, or the default socket
    network: str = "moorage"
    cpu: float | None = None  #: CPUs to offer; may be more than there are
    mem: str | None = None  #: memory to offer, such as "16g"
    #: what stays with the host, such as {cpu = 1, mem = "2g"}; taken off what is offered
    reserve: dict[str, Any] = field(default_factory=dict)
    concurrent_starts: int = 2 * (os.cpu_count() or 1)
    disk_quota_mib: int | None = None  #: of /home/work, where a session asks for nothing else
    pids: int = 4096
    labels: dict[str, str] = field(default_factory=dict)
    #: read-only folders of the host that every session sees: {"/usr/share/datasets": "/datasets"}
    mounts: dict[str, str] = field(default_factory=dict)
    keep_output_days: float = 7.0
    log_level: str = "INFO"

    @classmethod
    def load(cls, data_dir: Path, **given: Any) -> Self:
        """From the file in `data_dir`, with what was `given` (and is not None) over it."""
        path = data_dir / FILE_NAME
        try:
            stored = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"This host has not joined yet: there is no {path}; use 'moorage agent join TOKEN'."
            ) from None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        chosen = {**stored, **{name: value for name, value in given.items() if value is not None}}
        return cls.checked(data_dir, chosen)

    @classmethod
    def checked(cls, data_dir: Path, chosen: Mapping[str, Any]) -> Self:
        kinds: dict[str, tuple[type, ...]] = {
            "agent_id": (str,), "managers": (list,), "docker_host": (str,), "network": (str,), "cpu": (int, float),
            "mem": (str, int), "reserve": (dict,), "concurrent_starts": (int,), "disk_quota_mib": (int,),
            "pids": (int,), "labels": (dict,), "mounts": (dict,), "keep_output_days": (int, float), "log_level": (str,),
        }  # fmt: skip
        where = data_dir / FILE_NAME
        for name, value in chosen.items():
            if name not in kinds:
                raise ConfigError(f"{where} has a setting that does not exist: {name}")
            if not isinstance(value, kinds[name]) or isinstance(value, bool):
                raise ConfigError(f"{where}: {name} must be of type {kinds[name][0].__name__}")
        if missing := {"agent_id", "managers"} - chosen.keys():
            raise ConfigError(f"{where} lacks {', '.join(sorted(missing))}; join again.")
        made = cls(data_dir=data_dir, **{**chosen, "mem": str(chosen["mem"]) if "mem" in chosen else None})
        try:
            check_agent_id(made.agent_id)
            made.capacity(cpu_milli=1000, mem_mib=1024)
        except (ValueError, InvalidResources) as error:
            raise ConfigError(f"{where}: {error}") from None
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", made.network):
            raise ConfigError(f"{where}: network is no name of a network")
        for source, target in made.mounts.items():
            if not source.startswith("/") or not target.startswith("/") or ".." in target.split("/"):
                raise ConfigError(f"{where}: mounts name absolute folders, and '{source}' or '{target}' is none")
            if target == "/" or any(target == ours or target.startswith(f"{ours}/") for ours in _OURS):
                raise ConfigError(f"{where}: nothing can be mounted at {target}")
        return made

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        defaults = {f.name: f.default for f in fields(self)}
        values = {
            name: value
            for name, value in asdict(self).items()
            if name != "data_dir" and value is not None and value != defaults[name] and value != {}
        }
        partial = self.data_dir / f"{FILE_NAME}.new"
        partial.touch(mode=0o600)
        partial.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in values.items()))
        partial.replace(self.data_dir / FILE_NAME)

    def capacity(self, *, cpu_milli: int, mem_mib: int) -> dict[str, int]:
        """What is offered to sessions on a host that has this much."""
        offered = ResourceSlot(
            cpu=self.cpu if self.cpu is not None else cpu_milli / 1000,
            mem=self.mem if self.mem is not None else mem_mib,
        )
        kept = ResourceSlot(self.reserve)
        left = {name: offered[name] - kept.get(name, 0) for name in offered}
        if any(amount <= 0 for amount in left.values()):
            raise InvalidResources("The reserve leaves nothing for sessions.")
        return left


def default_agent_dir() -> Path:
    """`MOORAGE_AGENT_DIR`, or a folder of this user's."""
    if given := os.environ.get("MOORAGE_AGENT_DIR"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "moorage-agent"


def default_agent_id() -> str:
    """This host's name, as far as it can be one."""
    return re.sub(r"[^a-z0-9.-]+", "-", socket.gethostname().lower()).strip("-.")[:63] or "agent"


def _toml(value: object) -> str:
    """JSON's strings, numbers and lists are TOML's; tables are written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)
