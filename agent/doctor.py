"""What an agent's host has to be like: its engine, disk, limits and files. Looks, and changes nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from agent import pki
from agent.config import AgentConfig, ConfigError
from agent.containers import Containers, EngineError, remapped
from agent.firewall import Firewall
from domain.doctor import Diagnosis, bad, fine, release, warn

_OLDEST_ENGINE: Final = (20, 10)
_OPEN_FILES: Final = 8192
#: Runtimes whose containers are processes of this host's kernel.
_SHARED_KERNEL: Final = ("runc", "crun", "nvidia")
_GIB: Final = 1024**3
#: Releases with which a known way out of containers was closed. Distributions mend older ones too, without a new number.
_RUNC: Final = (((1, 0, 0, 1), "CVE-2019-5736"), ((1, 1, 12), "CVE-2024-21626"), ((1, 2, 8), "CVE-2025-31133"))
_TOOLKIT: Final = (((1, 16, 2), "CVE-2024-0132"), ((1, 17, 8), "CVE-2025-23266"))


async def examine(data_dir: Path) -> list[Diagnosis]:
    """The host whose agent keeps its things in `data_dir`."""
    try:
        config = AgentConfig.load(data_dir)
    except ConfigError as error:
        return [bad("agent", str(error), "the agent of this host cannot start")]
    found = [*_files(config), *_host(config)]
    engine = Containers(config.engine or None, "doctor", config.network)
    try:
        info, version = await engine.describe()
    except EngineError as error:
        return [
            *found,
            bad(
                "engine", str(error), "is Docker running, may this user use it, and is DOCKER_HOST what the agent has?"
            ),
        ]
    finally:
        engine.close()
    return [
        *found,
        *of_engine(info, version.get("Components") or [], config.runtime),
        *_network(config),
        *_disk("engine's disk", info.get("DockerRootDir")),
    ]


def of_engine(
    info: Mapping[str, Any], components: Sequence[Mapping[str, Any]], runtime: str = ""
) -> Iterator[Diagnosis]:
    """From what the engine says of itself (`docker info`, `docker version`)."""
    said = str(info.get("ServerVersion") or "")
    if release(said)[:2] < _OLDEST_ENGINE:
        yield bad(
            "engine", f"Docker {said or 'of no version'}", "20.10 is the oldest that is tried; install a newer one"
        )
    else:
        yield fine("engine", f"Docker {said}")
    if info.get("LiveRestoreEnabled"):
        yield fine("live-restore", "on")
    else:
        yield warn(
            "live-restore",
            "off",
            'an engine that is restarted or upgraded ends every session of this host; set "live-restore": true in daemon.json',
        )
    for field, what in (
        ("MemoryLimit", "memory"),
        ("SwapLimit", "swap"),
        ("PidsLimit", "processes"),
        ("CpuCfsQuota", "CPU"),
    ):
        if not info.get(field):
            yield bad(
                "limits",
                f"{what} cannot be limited",
                "one session can take the whole host; enable the cgroup controller",
            )
    options = " ".join(info.get("SecurityOptions") or [])
    if "name=seccomp" not in options:
        yield bad(
            "seccomp",
            "off",
            "sessions run without the filter of system calls; install a kernel and engine with seccomp",
        )
    yield _user_namespaces(info)
    driver = dict(pair for pair in info.get("DriverStatus") or [] if len(pair) == 2)
    if "io.containerd.snapshotter.v1" in str(driver.get("driver-type", "")):
        yield warn(
            "image store",
            "containerd's",
            "snapshots of sessions are refused with it; switch containerd-snapshotter off",
        )
    else:
        yield fine("storage", f"{info.get('Driver')} on {driver.get('Backing Filesystem', 'an unknown file system')}")
    if not info.get("IPv4Forwarding"):
        yield warn("network", "IPv4 forwarding is off", "sessions reach nothing outside; sysctl net.ipv4.ip_forward=1")
    names = {str(one.get("Name")): str(one.get("Version")) for one in components}
    yield from _known_holes("runc", names.get("runc", ""), _RUNC)
    yield from _known_holes("NVIDIA toolkit", names.get("nvidia-container-toolkit", ""), _TOOLKIT)
    yield _runtime(info, runtime)


def _user_namespaces(info: Mapping[str, Any]) -> Diagnosis:
    if (first := remapped(info)) is not None:
        return fine(
            "user namespaces",
            f"remapped: root inside is uid {first[0]} of this host; files in shared volumes have such ids, too",
        )
    return fine(
        "user namespaces",
        "not remapped: root inside, as the profile standard has it, is uid 0 of this host, with few of its rights; "
        '"userns-remap" in daemon.json changes that',
    )


def _runtime(info: Mapping[str, Any], configured: str) -> Diagnosis:
    known = sorted(name for name in info.get("Runtimes") or {} if not name.startswith("io.containerd"))
    used = configured or str(info.get("DefaultRuntime") or "")
    said = f"{used} runs sessions; the engine has {', '.join(known)}"
    if configured and configured not in (info.get("Runtimes") or {}):
        said = f"{configured} is to run sessions; the engine has {', '.join(known)}"
        return bad("runtime", said, "the agent does not start; install it, or take 'runtime' out of agent.toml")
    if used and used not in _SHARED_KERNEL:
        return warn("runtime", said, "Moorage is tried with runc; see docs/isolation.md for what others change")
    return fine("runtime", f"{said}; sessions share this host's kernel")


def _network(config: AgentConfig) -> Iterator[Diagnosis]:
    """What keeps sessions from this host and from each other."""
    if (trouble := Firewall("doctor").trouble) is not None:
        yield bad(
            "packet filter", trouble, "sessions reach this host's services; run the agent as root, install iptables"
        )
    else:
        yield fine("packet filter", "this host, Moorage and link-local addresses are closed to sessions")
    if config.dns:
        return
    for server in name_servers():
        if server.is_link_local or (not server.is_loopback and is_own(server)):
            yield warn(
                "name servers",
                f"{server} is this host's name server, and closed to sessions",
                "they cannot look up names; give them others with 'dns' in agent.toml",
            )


def name_servers(path: Path = Path("/etc/resolv.conf")) -> list[IPv4Address | IPv6Address]:
    """Those of this host, which the engine hands on."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith("nameserver"):
                with contextlib.suppress(ValueError):
                    found.append(ip_address(line.split()[1].partition("%")[0]))
    return found


def is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is one of this machine's: only those can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _known_holes(what: str, version: str, fixes: Sequence[tuple[tuple[int, ...], str]]) -> Iterator[Diagnosis]:
    if not version:
        return
    open_ones = [name for fixed, name in fixes if () < release(version) < fixed]
    if not open_ones:
        yield fine(what, version)
        return
    yield warn(
        what,
        version,
        f"older than the releases that closed {', '.join(open_ones)}; update it, unless your distribution has mended this one",
    )


def _files(config: AgentConfig) -> Iterator[Diagnosis]:
    folder, keys = config.data_dir, config.data_dir / "pki"
    mode = folder.stat().st_mode & 0o777
    if mode & 0o022:
        yield bad("agent's files", f"{folder} may be written by others ({mode:o})", f"chmod 700 {folder}")
    else:
        yield fine("agent's files", f"{folder} ({mode:o})")
    if keys.exists() and keys.stat().st_mode & 0o077:
        yield bad(
            "agent's key", f"{keys} is readable by others", f"who has it speaks as this host; chmod -R go= {keys}"
        )
    yield from _certificate(keys)
    yield from _disk("agent's disk", folder)
    if config.volumes:
        yield from _disk("volumes", config.volumes)


def _certificate(keys: Path) -> Iterator[Diagnosis]:
    try:
        ends = pki.expires_at(keys)
    except (OSError, ValueError) as error:
        yield bad("certificate", f"cannot be read: {error}", "let this host join anew: moorage agent join TOKEN")
        return
    left = ends - datetime.now(UTC)
    if left <= timedelta(0):
        yield bad("certificate", f"has ended on {ends:%Y-%m-%d}", "let this host join anew: moorage agent join TOKEN")
    elif left < pki.RENEW_WITHIN / 2:
        said = "the agent renews it by itself while it reaches a manager: its log says why it has not"
        yield warn("certificate", f"ends on {ends:%Y-%m-%d}", said)
    else:
        yield fine("certificate", f"until {ends:%Y-%m-%d}, renewed by itself")


def _disk(subject: str, folder: Path | str | None) -> Iterator[Diagnosis]:
    if not folder or not Path(folder).exists():
        if folder:
            yield warn(subject, f"{folder} is not there", "it cannot be looked at from here, or is not mounted")
        return
    usage, files = shutil.disk_usage(folder), os.statvfs(folder)
    free, share = usage.free / _GIB, usage.free / max(usage.total, 1)
    words = f"{free:.1f} GiB free of {usage.total / _GIB:.0f} in {folder}"
    if free < 1 or share < 0.02 or (files.f_files and files.f_favail / files.f_files < 0.01):
        yield bad(subject, words, "nearly full: sessions fail to start and to write; free some, or give it more")
    elif share < 0.1:
        yield warn(
            subject,
            words,
            "nearly full: 'docker system df' says what images take, 'moorage admin image gc' removes some",
        )
    else:
        yield fine(subject, words)


def _host(config: AgentConfig) -> Iterator[Diagnosis]:
    yield fine(
        "host", f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        yield warn(
            "open files", f"{soft} at most", f"many sessions need more; LimitNOFILE={_OPEN_FILES * 8} in the unit"
        )
    if os.geteuid() != 0:
        yield warn(
            "rights",
            "the agent does not run as root",
            "files of sessions with users' own ids, sizes of folders and clusters over several hosts need it",
        )
    if not shutil.which("ip") or not shutil.which("bridge"):
        yield warn("clusters", "iproute2 is missing", "sessions over several hosts cannot be joined; install iproute2")
    offered, there = config.resources().get("cpu", 0) / 1000, os.cpu_count() or 1
    if offered > there:
        yield warn(
            "CPUs", f"{offered:g} are offered, {there} are there", "sessions share them: so it says in agent.toml"
        )
