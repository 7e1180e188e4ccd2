"""What an agent is told: `agent.toml` in its data dir, written by `moorage agent join`."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Self

from agent.gpu_terms import GpuSettings
from agent.wire import check_agent_id
from domain.errors import InvalidResources
from domain.resources import ResourceSlot

FILE_NAME = "agent.toml"
_MANAGERS = "managers.json"


class ConfigError(Exception):
    """The configuration cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    data_dir: Path
    agent_id: str
    managers: tuple[str, ...]  #: addresses to dial first; the managers then say where all of them are
    cpu: float | None = None  #: CPUs to offer; None: all there are
    mem: str | None = None  #: memory to offer, such as 16g; None: all there is
    reserve: str = ""  #: of what is offered, kept for others: cpu=1,mem=2g
    engine: str = ""  #: Docker's address; empty: DOCKER_HOST, or the socket that everybody uses
    network: str = "moorage"  #: the bridge of sessions; empty: they get no network
    runtime: str = ""  #: by which the engine runs sessions, such as runsc or kata; empty: the engine's usual one
    dns: tuple[str, ...] = ()  #: name servers of sessions; empty: this host's, which sessions may have to be let to
    closed: tuple[str, ...] = ()  #: addresses and networks that no session reaches, beside those that never are
    address: str = ""  #: under which other hosts reach this one; empty: that of the way to the managers
    direct: str = ""  #: HOST:PORT where files of sessions are served straight from this host; empty: nowhere
    vxlan_port: int = 4789  #: UDP, between the hosts of a cluster session; the same on all of them
    pids: int = 4096
    disk_quota: str = ""  #: of a session's own files, such as 20g; empty: none
    disk_reserve: str = "1g"  #: with less free, the session that wrote most of what came last is ended; 0: never
    scratch: str = "folder"  #: of a session's own files: folder, or loop, a disk of its own as large as disk_quota
    volumes: str = ""  #: the folder of all volumes, local or mounted from NFS; empty: this host keeps none
    gpus: str | tuple[str, ...] = "all"  #: that are offered: "all", "none", or a list of UUIDs and numbers
    gpu_reserve: int = 0  #: MiB of each device, kept for others
    gpu_library: str = ""  #: the path of libnvidia-ml.so.1; empty: where the loader finds it
    gpu_runtime: str = "auto"  #: how containers get devices: nvidia, cdi, or whichever the engine has
    gpu_check: str = ""  #: a test before a device is handed over: torch, or a command that finds it in MOORAGE_GPU
    gpu_check_seconds: float = 60.0  #: that the test may take
    gpu_overuse: str = "report"  #: what happens to who uses more than its share of a device: report, end
    gpu_overuse_seconds: float = 30.0  #: for so long
    gpu_tolerate: int = 256  #: MiB that people outside may use before a device counts as used by them
    sample_seconds: float = 5.0  #: between two looks at what each session uses
    log_level: str = "INFO"
    mounts: tuple[tuple[Path, str], ...] = ()  #: [[mounts]] source, target: read-only in every session

    @classmethod
    def load(cls, data_dir: Path) -> Self:
        path = data_dir / FILE_NAME
        try:
            stored = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"{path} is not there: this host has not joined; run 'moorage agent join TOKEN --data-dir {data_dir}'"
            ) from None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        known = {f.name for f in fields(cls)} - {"data_dir"}
        if unknown := stored.keys() - known:
            raise ConfigError(f"{path} has a setting that does not exist: {min(unknown)}")
        try:
            mounts = tuple((Path(mount["source"]), str(mount["target"])) for mount in stored.pop("mounts", []))
            managers = tuple(map(str, stored.pop("managers")))
            if isinstance(gpus := stored.get("gpus"), list):
                stored["gpus"] = tuple(map(str, gpus))
            stored["dns"] = tuple(str(ip_address(one)) for one in stored.get("dns", []))
            stored["closed"] = tuple(str(ip_network(one)) for one in stored.get("closed", []))
            made = cls(data_dir=data_dir, managers=managers, mounts=mounts, **stored)
            check_agent_id(made.agent_id)
            made.resources()
            if made.address:
                IPv4Address(made.address)
            if made.direct:
                host_and_port(made.direct)
            if made.volumes and not Path(made.volumes).is_absolute():
                raise ValueError(f"volumes is an absolute path, not '{made.volumes}'")
            made.gpu_settings()
            if made.scratch not in ("folder", "loop"):
                raise ValueError(f"scratch is one of folder, loop, not '{made.scratch[:80]}'")
            if made.scratch == "loop" and not made.disk_quota:
                raise ValueError("scratch = 'loop' needs a disk_quota, such as 20g: so large the disks are")
            _ = made.disk_quota_mib, made.disk_reserve_mib
            if not 0.2 <= made.sample_seconds <= 60:
                raise ValueError("sample_seconds is between 0.2 and 60")
        except (KeyError, TypeError, ValueError, InvalidResources) as error:
            raise ConfigError(f"{path} is not complete or wrong: {error}") from None
        for source, target in made.mounts:
            if not source.is_absolute() or not target.startswith("/") or target.startswith(("/moorage", "/home/work")):
                raise ConfigError(f"{path}: a mount needs absolute paths, and no target of Moorage's own: {target}")
        return made

    def save(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [f"managers = {json.dumps(list(self.managers))}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("data_dir", "managers", "mounts") and value != field.default and value is not None:
                lines.append(f"{field.name} = {json.dumps(value)}")
        for source, target in self.mounts:
            lines += ["", "[[mounts]]", f"source = {json.dumps(str(source))}", f"target = {json.dumps(target)}"]
        path = self.data_dir / FILE_NAME
        partial = path.with_suffix(".new")
        partial.write_text("\n".join(lines) + "\n")
        partial.replace(path)

    def resources(self) -> dict[str, int]:
        """What this host offers: milli-CPU, MiB."""
        asked: dict[str, Any] = {"cpu": self.cpu or os.cpu_count() or 1, "mem": self.mem or _memory_mib()}
        kept = ResourceSlot(dict(part.strip().split("=", 1) for part in self.reserve.split(",") if part.strip()))
        offered = ResourceSlot(asked)
        return {name: max(amount - kept.get(name, 0), 0) for name, amount in offered.items()}

    def gpu_settings(self) -> GpuSettings:
        """Raises ValueError for settings that make no sense."""
        choices = {"gpu_runtime": ("auto", "nvidia", "cdi"), "gpu_overuse": ("report", "end")}
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is one of {', '.join(words)}, not '{getattr(self, name)}'")
        if not isinstance(self.gpus, tuple) and self.gpus not in ("all", "none"):
            raise ValueError(f"gpus is 'all', 'none' or a list of UUIDs and numbers, not '{str(self.gpus)[:80]}'")
        if self.gpu_library and not Path(self.gpu_library).is_absolute():
            raise ValueError(f"gpu_library is an absolute path, not '{self.gpu_library}'")
        for name in ("gpu_reserve", "gpu_tolerate", "gpu_overuse_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not negative")
        if not 0 < self.gpu_check_seconds <= 600:
            raise ValueError("gpu_check_seconds is more than 0 and at most 600")
        return GpuSettings(
            offered={"all": None, "none": ()}[self.gpus] if isinstance(self.gpus, str) else self.gpus,
            reserve_mib=self.gpu_reserve,
            library=self.gpu_library,
            test=self.gpu_check,
            test_seconds=self.gpu_check_seconds,
            end_overuse=self.gpu_overuse == "end",
            overuse_seconds=self.gpu_overuse_seconds,
            tolerate_mib=self.gpu_tolerate,
            look_seconds=min(self.sample_seconds, 5.0),
        )

    @property
    def disk_quota_mib(self) -> int | None:
        return ResourceSlot(mem=self.disk_quota)["mem"] if self.disk_quota else None

    @property
    def disk_reserve_mib(self) -> int:
        return ResourceSlot(mem=self.disk_reserve).get("mem", 0) if self.disk_reserve not in ("", "0") else 0

    # -- where the managers were last time ---------------------------------------------------------------------------
    def known_managers(self) -> list[str]:
        try:
            learned = json.loads((self.data_dir / _MANAGERS).read_text())
        except (OSError, ValueError):
            learned = []
        return list(dict.fromkeys([*self.managers, *(url for url in learned if isinstance(url, str))]))

    def remember_managers(self, urls: list[str]) -> None:
        path = self.data_dir / _MANAGERS
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(urls))
        partial.replace(path)


def host_and_port(listen: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"direct is 'HOST:PORT', not '{listen[:80]}'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)
