"""What a check of the invariants has found; and the comparison of a host's containers with what should be there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from domain.names import as_uuid

#: The engine rounds CPU shares up to a hundredth of a CPU.
_CPU_MILLI: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that should never be."""

    check: str
    invariant: str  #: I1 to I12, as docs/reliability.md has them
    subject: str  #: a session, kernel, host, ...
    detail: str
    remedy: str  #: what to do about it
    repairable: bool = False  #: 'moorage admin fsck --repair' does it
    of: int = 1  #: how many this check has found; not all of very many are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A kernel that has a place on a host."""

    kernel_id: UUID
    session_id: UUID
    agent_id: str
    attempt: int
    runs: bool  #: it is wanted, its host has said that it runs, and nothing newer has been asked for
    slots: Mapping[str, int]


def compare(
    agent_id: str, census: Mapping[str, Any], expected: Sequence[Expected], on_record: Collection[UUID]
) -> list[Finding]:
    """What a host has (`AgentClient.census`) against what it should have. `on_record`: kernels that are known at all."""
    rows = {row.kernel_id: row for row in expected}
    found, seen = [], set()
    for container in census["containers"]:
        kernel_id = as_uuid(str(container["kernel_id"]))
        row = rows.get(kernel_id) if kernel_id is not None else None
        if row is None:
            found.append(_stray(agent_id, container, kernel_id in on_record))
            continue
        if container["attempt"] != str(row.attempt):
            found.append(
                Finding(
                    check="another_attempt",
                    invariant="I3",
                    subject=f"{agent_id} {container['name']}",
                    detail=f"is of attempt {container['attempt']}, and attempt {row.attempt} is what counts",
                    remedy="destroy the session by force and restart it",
                )
            )
            continue
        seen.add(row.kernel_id)
        found += _of_running(agent_id, container, row) if row.runs else []
    found += [
        Finding(
            check="missing_container",
            invariant="I2",
            subject=f"{agent_id} {row.kernel_id}",
            detail="runs, as is written, and the host has no container of it",
            remedy="the agent finds it within seconds; if it does not, restart the agent",
        )
        for row in expected
        if row.runs and row.kernel_id not in seen
    ]
    sessions = {str(row.session_id) for row in expected}
    found += [
        Finding(
            check="network_left_behind",
            invariant="I8",
            subject=f"{agent_id} {session_id}",
            detail="its network is still there, and no kernel of it",
            remedy="restart the agent, which sweeps such networks",
        )
        for session_id in sorted(set(map(str, census["networks"])) - sessions)
    ]
    return found


def _stray(agent_id: str, container: Mapping[str, Any], on_record: bool) -> Finding:
    return Finding(
        check="stray_container",
        invariant="I2",
        subject=f"{agent_id} {container['name']}",
        detail=f"{container['status']}, and "
        + ("its kernel has ended, as is written" if on_record else "nothing is known of its kernel"),
        remedy=f"look into it, then remove it on the host: docker rm -f {container['name']}",
    )


def _of_running(agent_id: str, container: Mapping[str, Any], row: Expected) -> list[Finding]:
    subject, found = f"{agent_id} {container['name']}", []
    if container["status"] == "paused":
        found.append(
            Finding(
                check="frozen_container",
                invariant="I8",
                subject=subject,
                detail="is frozen, as for a snapshot",
                remedy=f"if none is being made: docker unpause {container['name']}",
            )
        )
    elif container["status"] != "running":
        found.append(
            Finding(
                check="dead_container",
                invariant="I2",
                subject=subject,
                detail=f"runs, as is written, and the container is {container['status']}",
                remedy="the agent finds it within seconds; if it does not, restart the agent",
            )
        )
    asked, has = row.slots, container
    if has["memory_mib"] != asked.get("mem", 0) or abs(has["cpu_milli"] - asked.get("cpu", 0)) > _CPU_MILLI:
        found.append(
            Finding(
                check="limits",
                invariant="I10",
                subject=subject,
                detail=f"is limited to {has['cpu_milli'] / 1000:g} CPUs and {has['memory_mib']} MiB, "
                f"and holds {asked.get('cpu', 0) / 1000:g} and {asked.get('mem', 0)}",
                remedy="restart the session",
            )
        )
    if not has["confined"] or not has["pids"]:
        found.append(
            Finding(
                check="confinement",
                invariant="I10",
                subject=subject,
                detail="runs with rights or without limits that no session gets",
                remedy="somebody has made or changed it by hand: destroy the session",
            )
        )
    return found
