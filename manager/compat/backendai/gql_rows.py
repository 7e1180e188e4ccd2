"""Moorage's answers in the fields of Backend.AI's GraphQL types. Pure; what has to be looked up is left to `gql_lists`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from actions.policies import PolicyData
from actions.resource_groups import ResourceGroupData
from actions.statistics import KernelMetrics, Point
from actions.views import (
    AgentData,
    DomainData,
    ImageData,
    KernelData,
    KeypairData,
    ProjectData,
    SessionData,
    UserData,
)
from actions.volumes import VolumeData
from domain.resources import ResourceSlot
from domain.session import ENDED, KernelState, Status
from manager.compat.backendai.shapes import USUAL_REGISTRY, amounts, idle_checks
from manager.rest.json import dumps

_MIB: Final = 2**20
_CPU: Final = 1000
_ROLES: Final[Mapping[str, str]] = {"domain_admin": "admin"}
#: Backend.AI counts requests over so many seconds.
_RATE_WINDOW_SECONDS: Final = 900


def text(value: Any) -> str:
    """A JSONString."""
    return dumps(value).decode()


def time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def image_parts(name: str) -> tuple[str, str, str]:
    """(registry, name, tag)."""
    registry, slash, rest = name.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, rest = USUAL_REGISTRY, name
    path, colon, tag = rest.partition("@")[0].rpartition(":")
    return (registry, path, tag) if colon else (registry, tag, "latest")


def session(s: SessionData, now: datetime) -> dict[str, Any]:
    return {
        "id": str(s.id),
        "main_kernel_id": str(s.kernels[0].id) if s.kernels else None,
        "tag": s.tag,
        "name": s.name,
        "type": s.session_type.upper(),
        "image": s.image,
        "registry": image_parts(s.image)[0],
        "architecture": s.architecture,
        "cluster_template": None,
        "cluster_mode": str(s.cluster_mode),
        "cluster_size": s.cluster_size,
        "domain_name": s.domain,
        "group_name": s.project,
        "agent_ids": agents_of(s),
        "agents": agents_of(s),
        "access_key": s.access_key,
        "status": str(s.status),
        "status_info": s.status_reason or "",
        "status_data": text({} if s.exit_code is None else {"session": {"exit_code": s.exit_code}}),
        "status_changed": time(s.status_changed_at),
        "created_at": time(s.created_at),
        "terminated_at": time(s.ended_at),
        "starts_at": time(s.starts_at),
        "scheduled_at": time(s.started_at),
        "startup_command": s.startup_command,
        "bootstrap_script": s.bootstrap_script,
        "result": s.result,
        "resource_opts": text(_resource_opts(s)),
        "scaling_group": s.resource_group,
        "service_ports": None,
        "mounts": [mount.volume for mount in s.mounts],
        "occupying_slots": text(amounts(s.occupied_slots)),
        "occupied_slots": text(amounts(s.occupied_slots)),
        "requested_slots": text(amounts(s.requested_slots)),
        "num_queries": s.execution_count,
        "idle_checks": text(idle_checks(s, now)),
    }


def agents_of(s: SessionData) -> list[str]:
    return list(dict.fromkeys(str(kernel.agent) for kernel in s.kernels if kernel.agent is not None))


def _resource_opts(s: SessionData) -> dict[str, Any]:
    return {} if s.shm_size is None else {"shmem": s.shm_size * _MIB}


def container(s: SessionData, kernel: KernelData, metrics: KernelMetrics | None) -> dict[str, Any]:
    use = None if metrics is None or metrics.now is None else text(live_stat(metrics.now, metrics.held))
    return {
        "id": str(kernel.id),
        "role": kernel.role,
        "cluster_role": kernel.role,
        "cluster_idx": kernel.index,
        "cluster_hostname": kernel.name,
        "session_id": str(s.id),
        "image": s.image,
        "registry": image_parts(s.image)[0],
        "architecture": s.architecture,
        "status": _kernel_status(s, kernel),
        "status_info": s.status_reason or "",
        "status_data": "{}",
        "status_changed": time(s.status_changed_at),
        "agent": kernel.agent,
        # no user reaches the host's engine, so its name there is the kernel's
        "container_id": None if kernel.agent is None else str(kernel.id),
        "resource_opts": text(_resource_opts(s)),
        "occupied_slots": text({} if metrics is None else amounts(metrics.held)),
        "preopen_ports": list(s.preopen_ports),
        "live_stat": use,
        "last_stat": use,
    }


def _kernel_status(s: SessionData, kernel: KernelData) -> str:
    if kernel.status in ENDED:
        return str(s.status if s.status in (Status.ERROR, Status.CANCELLED) else Status.TERMINATED)
    return str(s.status) if kernel.status is None or s.status is Status.TERMINATING else str(KernelState(kernel.status))


def live_stat(now: Point, held: Mapping[str, int]) -> dict[str, Any]:
    """What one container uses, in the metrics that the client prints."""
    mem_bytes, mem_held = int(now.mem * _MIB), held.get("mem", 0) * _MIB
    found = {
        "cpu_util": _metric(f"{now.cpu * 100:.2f}", f"{held.get('cpu', 0) / 10:g}", now.cpu * 100, "percent"),
        "mem": {
            **_metric(mem_bytes, mem_held, 100 * mem_bytes / mem_held if mem_held else 0.0, "bytes"),
            "stats.max": str(int(now.mem_max * _MIB)),
        },
        "net_rx": _metric(now.net_rx, None, 0.0, "bps"),
        "net_tx": _metric(now.net_tx, None, 0.0, "bps"),
        "io_read": _metric(now.io_read, None, 0.0, "bps"),
        "io_write": _metric(now.io_write, None, 0.0, "bps"),
    }
    if now.disk is not None:
        found["io_scratch_size"] = _metric(int(now.disk * _MIB), None, 0.0, "bytes")
    return found


def _metric(current: Any, capacity: Any, percent: float, unit: str) -> dict[str, Any]:
    return {
        "current": str(current),
        "capacity": None if capacity is None else str(capacity),
        "pct": f"{percent:.2f}",
        "unit_hint": unit,
    }


def agent(a: AgentData, cpu: float, mem_mib: float) -> dict[str, Any]:
    """`cpu` and `mem_mib`: what sessions use there."""
    offered = a.capacity.get("cpu", 0) / _CPU
    return {
        "id": a.id,
        "status": agent_status(a),
        "status_changed": time(a.revoked_at or a.cordoned_at or a.created_at),
        "region": a.labels.get("region"),
        "architecture": a.architecture,
        "scaling_group": a.resource_group,
        "schedulable": a.schedulable,
        "available_slots": text(amounts(a.capacity)),
        "occupied_slots": text(amounts(a.used)),
        "addr": None,
        "first_contact": time(a.created_at),
        "lost_at": time(a.last_seen_at) if a.lost else None,
        "live_stat": None,
        "version": a.version,
        "compute_plugins": None,
        "hardware_metadata": text({"hostname": a.hostname, "labels": dict(a.labels)}),
        "local_config": None,
        "cpu_cur_pct": round(100 * cpu / offered, 2) if offered else 0.0,
        "mem_cur_bytes": mem_mib * _MIB,
    }


def agent_status(a: AgentData) -> str:
    if a.revoked_at is not None:
        return "TERMINATED"
    return "LOST" if a.lost else "ALIVE"


def image(i: ImageData) -> dict[str, Any]:
    registry, name, tag = image_parts(i.name)
    return {
        "name": name,
        "humanized_name": i.title or name,
        "registry": registry,
        "architecture": i.architecture,
        "tag": tag,
        "digest": i.digest,
        "size_bytes": i.size_bytes or 0,
        "aliases": list(i.aliases),
        "installed": i.status == "ready",
    }


def keypair(k: KeypairData, user: UserData | None, policy: str | None) -> dict[str, Any]:
    rate = k.requests_per_second
    return {
        "user_id": k.user,
        "projects": [] if user is None else user.projects,
        "user_info": {"full_name": k.user if user is None else user.username, "email": k.user},
        "access_key": k.access_key,
        "secret_key": None,
        "is_active": k.active,
        "is_admin": user is not None and user.role in ("superadmin", "domain_admin"),
        "created_at": time(k.created_at),
        "modified_at": time(k.rotated_at),
        "last_used": None,
        "resource_policy": policy,
        "rate_limit": None if rate is None else int(rate * _RATE_WINDOW_SECONDS),
    }


def user(u: UserData) -> dict[str, Any]:
    return {
        "id": str(u.id),
        "uuid": str(u.id),
        "username": u.username,
        "email": u.email,
        "need_password_change": False,
        "full_name": u.username,
        "description": "",
        "is_active": u.active,
        "status": "active" if u.active else "inactive",
        "status_info": "",
        "created_at": time(u.created_at),
        "modified_at": None,
        "domain_name": u.domain,
        "role": _ROLES.get(u.role, u.role),
        "allowed_client_ip": None,
        "totp_activated": False,
        "sudo_session_enabled": False,
    }


def domain(d: DomainData) -> dict[str, Any]:
    return {
        "name": d.name,
        "description": "",
        "is_active": d.active,
        "created_at": time(d.created_at),
        "total_resource_slots": "{}",
        "allowed_vfolder_hosts": "{}",
        "allowed_docker_registries": [],
        "integration_id": None,
    }


def group(p: ProjectData) -> dict[str, Any]:
    return {
        "id": str(p.id),
        "name": p.name,
        "description": "",
        "is_active": True,
        "created_at": time(p.created_at),
        "domain_name": p.domain,
        "total_resource_slots": "{}",
        "allowed_vfolder_hosts": "{}",
        "integration_id": None,
    }


def scaling_group(g: ResourceGroupData, proxy_url: str) -> dict[str, Any]:
    return {
        "name": g.name,
        "description": g.description,
        "is_active": g.active,
        "is_public": g.open,
        "created_at": time(g.created_at),
        "driver": "static",
        "driver_opts": "{}",
        "scheduler": g.ordering,
        "scheduler_opts": text({"fit": g.fit, "backfill": g.backfill}),
        "use_host_network": False,
        "wsproxy_addr": proxy_url,
        "wsproxy_api_token": None,
    }


def policy(p: PolicyData) -> dict[str, Any]:
    limits = {limit.name: limit.max for limit in p.limits}
    held: dict[str, int] = {name: limits[name] for name in ("cpu", "mem", "gpu", "gpu-mem") if name in limits}
    return {
        "name": p.name,
        "created_at": time(p.created_at),
        "default_for_unspecified": "UNLIMITED",
        "total_resource_slots": text(amounts(ResourceSlot.from_units(held))),
        "max_session_lifetime": limits.get("lifetime", 0),
        "max_concurrent_sessions": limits.get("sessions"),
        "max_vfolder_count": limits.get("volumes"),
        "max_vfolder_size": 0,  # each volume has a quota of its own
        "idle_timeout": limits.get("idle", 0),
        "max_containers_per_session": None,
        "allowed_vfolder_hosts": "{}",
    }


def folder(v: VolumeData) -> dict[str, Any]:
    """A volume. `rw` of another's is `rw`; `wd` (delete) is for its owner."""
    return {
        "id": v.id.hex,
        "host": VOLUME_HOST,
        "name": v.name,
        "user": v.owner,
        "group": None,
        "creator": v.owner,
        "status": "ready" if v.status == "ready" else "cloning",
        "unmanaged_path": None,
        "usage_mode": "general",
        "permission": "wd" if v.owned else "ro" if v.read_only else "rw",
        "ownership_type": "user",
        "max_files": v.quota_files or 0,
        "max_size": None if v.quota_bytes is None else v.quota_bytes // _MIB,
        "created_at": time(v.created_at),
        "last_used": None,
        "num_files": v.used_files,
        "cur_size": v.used_bytes,
        "cloneable": True,
    }


#: Moorage chooses the store of a volume; the client wants to see one by name.
VOLUME_HOST: Final = "moorage"


def policies_by_owner(policies: Sequence[PolicyData]) -> dict[tuple[str, str], str]:
    """(scope, of) of who has it, to its name."""
    return {(one.scope, one.of): policy.name for policy in policies for one in policy.assigned}
