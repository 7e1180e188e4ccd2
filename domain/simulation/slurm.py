"""What Slurm's accounting tells of jobs: `sacct --parsable2 --allusers --format=JobID,User,Account,Submit,...`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from domain.placement import DEFAULT_GROUP
from domain.resources import MAX_AMOUNT
from domain.simulation import fields as f
from domain.simulation.fields import Hole, Record, given, needed, said
from domain.simulation.workload import Job

#: What to ask sacct for.
FIELDS: Final = "JobID,User,Account,Partition,Submit,Elapsed,Timelimit,NNodes,ReqCPUS,ReqMem,AllocTRES,ReqTRES,State"
_NO_LIMIT: Final = frozenset({"UNLIMITED", "Partition_Limit", "INVALID"})
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)([nc]?)", re.ASCII | re.IGNORECASE)
_GRES: Final = re.compile(r"gpu(?::([^:=(]+))?[:=](\d+)", re.ASCII)


def is_slurm(names: Iterable[str]) -> bool:
    return {"Submit", "Elapsed"} <= set(names)


def left_out(record: Record) -> str | None:
    """Why a line is no session of its own, by the rules of the format."""
    if "." in str(record.get("JobID") or ""):
        return "steps of jobs"
    state = str(record.get("State") or "").split(" ")[0]
    if state in ("PENDING", "REQUEUED", "REVOKED"):
        return "jobs that had not run"
    if state.startswith("CANCELLED") and said(record, "Elapsed") in ("00:00:00", "0"):
        return "jobs that never ran"
    return None


def parse(record: Record, line: int, groups: Collection[str]) -> Job:
    """Raises Hole. Slurm counts what all nodes of a job have together; here each kernel has its part."""
    tres = _tres(said(record, "AllocTRES")) or {}
    tres = {**_tres(said(record, "ReqTRES")), **tres}
    nodes = max(1, given(record, "NNodes", f.whole, 0, "AllocNodes") or _whole("AllocTRES", tres.get("node", "1")))
    cpus = given(record, "ReqCPUS", f.whole, 0, "AllocCPUS", "NCPUS") or _whole("AllocTRES", tres.get("cpu", "0"))
    if not cpus:
        raise Hole("ReqCPUS", "is missing")
    gpus, model = _gpus(record, tres, nodes)
    partition = given(record, "Partition", f.word, "")
    return Job(
        submitted_at=needed(record, "Submit", f.moment),
        user=needed(record, "User", f.word),
        duration_seconds=needed(record, "Elapsed", f.seconds),
        cpu=-(-cpus // nodes) * 1000,
        mem=_memory(record, tres, nodes, cpus),
        gpu=-(-gpus // nodes),
        gpu_model=model if gpus else None,
        kernels=nodes,
        timeout_seconds=_timeout(record),
        project=given(record, "Account", f.word, ""),
        resource_group=partition if partition in groups else DEFAULT_GROUP,
        line=line,
    )


def _tres(value: Any) -> dict[str, str]:
    """cpu=8,mem=64G,node=1,gres/gpu:a100=2"""
    parts = (part.partition("=") for part in str(value or "").split(",") if part)
    return {name.strip(): amount.strip() for name, _, amount in parts}


def _gpus(record: Record, tres: Mapping[str, str], nodes: int) -> tuple[int, str | None]:
    """Of all nodes."""
    models = {name.partition(":")[2]: amount for name, amount in tres.items() if name.startswith("gres/gpu:")}
    model = next(iter(models)) if len(models) == 1 else None
    if "gres/gpu" in tres:
        return _whole("AllocTRES", tres["gres/gpu"]), model
    if models:
        return sum(_whole("AllocTRES", amount) for amount in models.values()), model
    found = _GRES.findall(str(said(record, "AllocGRES") or said(record, "ReqGRES") or ""))
    return sum(int(amount) for _, amount in found) * nodes, (found[0][0] or None) if len(found) == 1 else None


def _memory(record: Record, tres: Mapping[str, str], nodes: int, cpus: int) -> int:
    """Of each node, in MiB."""
    field, value = ("AllocTRES", tres["mem"]) if "mem" in tres else ("ReqMem", said(record, "ReqMem"))
    if value is None:
        raise Hole("ReqMem", "is missing")
    match = _MEMORY.fullmatch(str(value))
    if not match:
        raise Hole(field, f"'{str(value)[:40]}' is not an amount of memory")
    number, unit, per = match.groups()
    mib = f.memory(field, f"{number}{unit or 'M'}")
    if per.lower() == "n":
        return mib
    total = mib * cpus if per.lower() == "c" else mib
    if total > MAX_AMOUNT:
        raise Hole(field, "is larger than any host can have")
    return max(1, -(-total // nodes))


def _timeout(record: Record) -> float | None:
    if (raw := said(record, "TimelimitRaw")) is not None and str(raw) not in _NO_LIMIT:
        return f.whole("TimelimitRaw", raw) * 60.0 or None
    limit = said(record, "Timelimit")
    return None if limit is None or limit in _NO_LIMIT else f.positive_seconds("Timelimit", limit)


def _whole(field: str, value: str) -> int:
    return f.whole(field, value)
