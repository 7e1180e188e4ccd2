"""The public traces of Microsoft's Philly clusters, and what looks like them: jobs with attempts that say hosts and GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final

from domain.placement import DEFAULT_GROUP
from domain.simulation import fields as f
from domain.simulation.fields import Hole, Record, given, needed, said
from domain.simulation.workload import Job

#: These traces say nothing of CPUs and memory; each GPU comes with these, and a job without GPUs has them once.
CPU_EACH: Final = 4000
MEM_EACH: Final = 32 * 1024
ASSUMED: Final = "CPUs and memory are not recorded: 4 CPUs and 32 GiB were assumed for each GPU"


def is_philly(names: Iterable[str]) -> bool:
    return {"jobid", "submitted_time"} <= set(names)


def left_out(record: Record) -> str | None:
    """Why this is no session, by the rules of the format."""
    attempts = record.get("attempts")
    if isinstance(attempts, list) and not any(isinstance(one, dict) and _at(one, "start_time") for one in attempts):
        return "jobs that never ran"
    return None


def parse(record: Record, line: int, groups: Collection[str]) -> Job:
    """Raises Hole. A job that was tried again worked as long as its attempts together."""
    attempts = record.get("attempts")
    if not isinstance(attempts, list):
        raise Hole("attempts", "is missing" if attempts is None else "is no list")
    duration, hosts = 0.0, [0]
    for attempt in attempts:
        if not isinstance(attempt, dict):
            raise Hole("attempts", "has something that is no attempt")
        began, ended = _at(attempt, "start_time"), _at(attempt, "end_time")
        if began is None:
            continue
        if ended is None:
            raise Hole("attempts.end_time", "is missing")
        if ended < began:
            raise Hole("attempts.end_time", "is before start_time: the duration would be negative")
        duration += (ended - began).total_seconds()
        hosts = _hosts(attempt) or hosts
    cluster = given(record, "vc", f.word, "")
    gpus = max(hosts)
    return Job(
        submitted_at=needed(record, "submitted_time", f.moment),
        user=needed(record, "user", f.word, "vc"),
        duration_seconds=duration,
        cpu=CPU_EACH * max(1, gpus),
        mem=MEM_EACH * max(1, gpus),
        gpu=gpus,
        kernels=len(hosts),
        project=cluster,
        resource_group=cluster if cluster in groups else DEFAULT_GROUP,
        line=line,
    )


def _hosts(attempt: dict[str, Any]) -> list[int]:
    """Of each host, how many GPUs."""
    detail = attempt.get("detail") or []
    if not isinstance(detail, list):
        raise Hole("attempts.detail", "is no list")
    counted = []
    for host in detail:
        gpus = host.get("gpus", []) if isinstance(host, dict) else None
        if not isinstance(gpus, list) or len(gpus) > 64:
            raise Hole("attempts.detail", "has a host without a list of GPUs")
        counted.append(len(gpus))
    return counted


def _at(attempt: dict[str, Any], field: str) -> datetime | None:
    value = said(attempt, field)
    return None if value in (None, "None") else f.moment(f"attempts.{field}", value)
