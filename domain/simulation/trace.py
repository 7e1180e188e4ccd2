"""Traces of workloads: Moorage's own, Slurm's accounting and Philly's, told apart by their fields.

A trace with a hole is refused with its line and field; or such lines are left out and counted, where that is asked for.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any, Final, NoReturn, TypeAlias

from domain.errors import InvalidTrace
from domain.placement import DEFAULT_GROUP
from domain.simulation import native, philly, slurm
from domain.simulation.fields import Hole, Record
from domain.simulation.workload import Job, Skipped, Workload

FORMATS: Final = ("auto", "moorage", "slurm", "philly")
MOST_SESSIONS: Final = 2_000_000
_Parse: TypeAlias = Callable[[Record, int], Job | str]  #: a session, or what the line is that is none


def read(
    lines: Iterable[str],
    *,
    name: str = "trace",
    form: str = "auto",
    skip_bad: bool = False,
    groups: Collection[str] = (DEFAULT_GROUP,),
) -> Workload:
    """Every session of a trace. `groups` are the resource groups that a partition or virtual cluster may stand for.

    Raises InvalidTrace, whose facts are `line` and `field`.
    """
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    left_out: Counter[str] = Counter()
    parse: _Parse | None = None
    found, own = form, form == "moorage"
    for line, record in _records(iter(lines)):
        try:
            if isinstance(record, Hole):
                raise record
            if parse is None:
                found, parse = _parser(record, form, groups)
                own = found == "moorage"
            job = parse(record, line)
            if isinstance(job, str):
                left_out[job] += 1
                continue
            if own and jobs and job.submitted_at < jobs[-1].submitted_at:
                raise Hole("submitted_at", f"{job.submitted_at.isoformat()} is before that of line {jobs[-1].line}")
            jobs.append(job)
        except Hole as hole:
            if not skip_bad:
                _refuse(line, hole)
            skipped.append(Skipped(line=line, reason=f"{hole.field} {hole.reason}"))
        if len(jobs) > MOST_SESSIONS:
            raise InvalidTrace(f"The trace has more than {MOST_SESSIONS:,} sessions.", line=line, field=None)
    if not jobs:
        raise InvalidTrace(f"{name} has no session that can be replayed.", line=None, field=None)
    notes = [f"{number:,} left out: {what}" for what, number in left_out.items()]
    if found == "philly":
        notes.append(philly.ASSUMED)
    return Workload(
        jobs=tuple(jobs if own else sorted(jobs, key=lambda job: (job.submitted_at, job.line))),
        source=f"{name} ({'a trace of ' if own else ''}{found.capitalize()}): {len(jobs):,} sessions",
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _parser(record: Record, form: str, groups: Collection[str]) -> tuple[str, _Parse]:
    """By the fields of the first record."""
    if form == "auto":
        tests = (("moorage", native.is_native), ("slurm", slurm.is_slurm), ("philly", philly.is_philly))
        form = next((name for name, is_it in tests if is_it(record)), "")
    if form == "moorage":
        return form, native.parse
    if form == "slurm":
        return form, lambda record, line: slurm.left_out(record) or slurm.parse(record, line, groups)
    if form == "philly":
        return form, lambda record, line: philly.left_out(record) or philly.parse(record, line, groups)
    raise InvalidTrace(
        "Neither Moorage's fields (submitted_at, user, cpu, mem, duration), Slurm's (Submit, Elapsed) nor Philly's (jobid,"
        " submitted_time) are in the trace.",
        line=1,
        field="submitted_at",
    )


def _refuse(line: int, hole: Hole) -> NoReturn:
    raise InvalidTrace(f"Line {line}, {hole.field}: {hole.reason}.", line=line, field=hole.field) from None


def _records(lines: Iterator[str]) -> Iterator[tuple[int, Record | Hole]]:
    """Line and fields; a hole for a line that cannot be read."""
    before = 0
    for line in lines:
        if line.strip("\ufeff \t\r\n"):
            break
        before += 1
    else:
        raise InvalidTrace("The trace is empty.", line=1, field=None)
    rest = chain([line.lstrip("\ufeff")], lines)
    first = line.lstrip("\ufeff \t")[0]
    if first == "[":
        yield from _json_list("".join(rest))
    elif first == "{":
        yield from _json_lines(rest, before)
    else:
        yield from _csv(rest, before)


def _csv(lines: Iterator[str], before: int) -> Iterator[tuple[int, Record | Hole]]:
    head = next(lines)
    mark = max("|,\t;", key=head.count)
    names = [name.strip() for name in head.strip("\r\n").split(mark)]
    if len(set(names)) < len(names):
        raise InvalidTrace("Two columns of the trace have the same name.", line=before + 1, field=None)
    rows = csv.reader(lines, delimiter=mark, strict=True)
    while True:
        line = before + 2 + rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Hole("line", f"cannot be read: {error}")
            continue
        if not row:
            continue
        if len(row) != len(names):
            yield line, Hole("line", f"has {len(row)} fields, and the header {len(names)}")
            continue
        yield line, dict(zip(names, row, strict=True))


def _json_lines(lines: Iterator[str], before: int) -> Iterator[tuple[int, Record | Hole]]:
    for number, text in enumerate(lines, before + 1):
        if not text.strip():
            continue
        try:
            yield number, _record(json.loads(text))
        except (ValueError, RecursionError):
            yield number, Hole("line", "is not JSON")


def _json_list(text: str) -> Iterator[tuple[int, Record | Hole]]:
    """Numbered by their place in the list."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidTrace(f"Line {error.lineno} is not JSON: {error.msg}.", line=error.lineno, field=None) from None
    except RecursionError:
        raise InvalidTrace("The trace is nested too deep.", line=1, field=None) from None
    for number, entry in enumerate(entries, 1):
        yield number, _record(entry)


def _record(value: Any) -> Record | Hole:
    return value if isinstance(value, dict) else Hole("line", "is no object of fields")
