"""Moorage's own trace: one session a line, as CSV with a header or as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from domain.placement import DEFAULT_GROUP
from domain.simulation import fields as f
from domain.simulation.fields import Hole, Record, given, needed
from domain.simulation.workload import ARCHITECTURE, USUAL_PRIORITY, Job

NEEDED: Final = ("submitted_at", "user", "cpu", "mem", "duration")
FIELDS: Final = (
    *NEEDED, "gpu", "gpu_mem", "gpu_model", "kernels", "timeout", "starts_at", "priority", "project",
    "resource_group", "architecture",
)  # fmt: skip
_ALSO: Final = frozenset({"nodes"})  #: other names
MOST_KERNELS: Final = 1000


def is_native(names: Iterable[str]) -> bool:
    return "submitted_at" in names


def parse(record: Record, line: int) -> Job:
    """Raises Hole."""
    if unknown := sorted(set(map(str, record)) - {*FIELDS, *_ALSO}):
        raise Hole(unknown[0], "is no field of a trace")
    gpu = given(record, "gpu", f.whole, 0)
    gpu_mem = given(record, "gpu_mem", f.memory, 0)
    if gpu_mem and gpu > 1:
        raise Hole("gpu_mem", "is a share of one device, and several are asked for")
    model = given(record, "gpu_model", f.word, None)
    if model and not (gpu or gpu_mem):
        raise Hole("gpu_model", "is said, and no GPU is asked for")
    kernels = given(record, "kernels", f.count, 1, "nodes")
    if kernels > MOST_KERNELS:
        raise Hole("kernels", f"is more than {MOST_KERNELS}")
    cpu, mem = needed(record, "cpu", f.cpus), needed(record, "mem", f.memory)
    if not cpu:
        raise Hole("cpu", "has to be more than nothing")
    return Job(
        submitted_at=needed(record, "submitted_at", f.moment),
        user=needed(record, "user", f.word),
        duration_seconds=needed(record, "duration", f.seconds),
        cpu=cpu,
        mem=mem,
        gpu=0 if gpu_mem else gpu,
        gpu_mem=gpu_mem,
        gpu_model=model,
        kernels=kernels,
        timeout_seconds=given(record, "timeout", f.positive_seconds, None),
        starts_at=given(record, "starts_at", f.moment, None),
        priority=given(record, "priority", f.signed, USUAL_PRIORITY),
        project=given(record, "project", f.word, ""),
        resource_group=given(record, "resource_group", f.word, DEFAULT_GROUP),
        architecture=given(record, "architecture", f.word, ARCHITECTURE),
        line=line,
    )


def as_record(job: Job) -> dict[str, Any]:
    """What `parse` reads; nothing where it would take the same by itself."""
    written = {
        "submitted_at": job.submitted_at.isoformat().replace("+00:00", "Z"),
        "user": job.user,
        "cpu": _short(job.cpu / 1000),
        "mem": job.mem,
        "duration": _short(round(job.duration_seconds, 3)),
        "gpu": job.gpu or None,
        "gpu_mem": job.gpu_mem or None,
        "gpu_model": job.gpu_model,
        "kernels": job.kernels if job.kernels > 1 else None,
        "timeout": None if job.timeout_seconds is None else _short(round(job.timeout_seconds, 3)),
        "starts_at": job.starts_at.isoformat().replace("+00:00", "Z") if job.starts_at else None,
        "priority": job.priority if job.priority != USUAL_PRIORITY else None,
        "project": job.project or None,
        "resource_group": job.resource_group if job.resource_group != DEFAULT_GROUP else None,
        "architecture": job.architecture if job.architecture != ARCHITECTURE else None,
    }
    return {name: value for name, value in written.items() if value is not None}


def as_csv(jobs: Iterable[Job]) -> Iterator[str]:
    yield ",".join(FIELDS) + "\n"
    for job in jobs:
        line = io.StringIO()
        csv.DictWriter(line, FIELDS, lineterminator="\n").writerow(as_record(job))
        yield line.getvalue()


def as_json_lines(jobs: Iterable[Job]) -> Iterator[str]:
    for job in jobs:
        yield json.dumps(as_record(job), ensure_ascii=False) + "\n"


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else number
