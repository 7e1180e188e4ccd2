"""Traces of three kinds are read; what has holes is refused with line and field."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from domain.errors import InvalidTrace
from domain.simulation import native
from domain.simulation.fleet import described
from domain.simulation.generate import generate
from domain.simulation.trace import read
from domain.simulation.workload import Job, Workload
from tests.simulation.cases import MIXED

HEADER = "submitted_at,user,cpu,mem,duration,gpu,timeout"
GOOD = "2026-03-02T09:00:00Z,ann,2,4g,1h30m,1,2h"


def csv(*lines: str, header: str = HEADER, skip_bad: bool = False) -> Workload:
    return read([f"{line}\n" for line in (header, *lines)], skip_bad=skip_bad)


def test_a_line_is_a_session() -> None:
    [job] = csv(GOOD).jobs
    assert job == Job(
        submitted_at=datetime(2026, 3, 2, 9, tzinfo=UTC), user="ann", duration_seconds=5400, cpu=2000, mem=4096, gpu=1,
        timeout_seconds=7200, line=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (",ann,2,4g,60,,", "submitted_at", "is missing"),
        ("2026-03-02T09:00:00Z,,2,4g,60,,", "user", "is missing"),
        ("2026-03-02T09:00:00Z,ann,,4g,60,,", "cpu", "is missing"),
        ("2026-03-02T09:00:00Z,ann,2,4g,,,", "duration", "is missing"),
        ("2026-03-02T09:00:00Z,ann,2,4g,-60,,", "duration", "is negative"),
        ("2026-03-02T09:00:00Z,ann,2,4g,NaN,,", "duration", "not a finite number"),
        ("2026-03-02T09:00:00Z,ann,2,4g,inf,,", "duration", "not a finite number"),
        ("2026-03-02T09:00:00Z,ann,2,4g,soon,,", "duration", "no span of time"),
        ("2026-03-02T09:00:00Z,ann,2,4g,1e99,,", "duration", "longer than a hundred years"),
        ("2026-03-02T09:00:00Z,ann,-2,4g,60,,", "cpu", "is negative"),
        ("2026-03-02T09:00:00Z,ann,0,4g,60,,", "cpu", "more than nothing"),
        ("2026-03-02T09:00:00Z,ann,2,lots,60,,", "mem", "not an amount of memory"),
        ("2026-03-02T09:00:00Z,ann,2,nan,60,,", "mem", "not a finite number"),
        ("2026-03-02T09:00:00Z,ann,2,4g,60,1.5,", "gpu", "not a whole number"),
        ("2026-03-02T09:00:00Z,ann,2,4g,60,-1,", "gpu", "is negative"),
        ("2026-03-02T09:00:00Z,ann,2,4g,60,1,0", "timeout", "longer than nothing"),
        ("yesterday,ann,2,4g,60,,", "submitted_at", "is no time"),
        ("2026-03-02T08:00:00Z,ann,2,4g,60,,", "submitted_at", "is before that of line 2"),
        ("2026-03-02T09:00:00Z,ann,2", "line", "has 3 fields, and the header 7"),
        ('2026-03-02T09:00:00Z,"an"n,2,4g,60,,', "line", "cannot be read"),
    ],
)
def test_a_hole_is_refused_with_line_and_field_or_skipped_and_counted(line: str, field: str, words: str) -> None:
    with pytest.raises(InvalidTrace) as refusal:
        csv(GOOD, line, GOOD)
    assert refusal.value.facts == {"line": 3, "field": field}
    assert refusal.value.message.startswith(f"Line 3, {field}: ")
    assert words in refusal.value.message
    lenient = csv(GOOD, line, GOOD, skip_bad=True)
    assert [job.line for job in lenient.jobs] == [2, 4]
    assert [(one.line, words in one.reason) for one in lenient.skipped] == [(3, True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (f"{HEADER}\n", "no session that can be replayed"),
        ("a,b\n1,2\n", "Neither Moorage's fields"),
        (f"{HEADER},user\n", "Two columns"),
        ("submitted_at,user,cpu,mem,duration,colour\n2026-03-02T09:00:00Z,a,1,1g,1,red\n", "colour: is no field"),
        ("submitted_at,cpu,mem,duration\n2026-03-02T09:00:00Z,1,1g,1\n", "user: is missing"),
        ('{"submitted_at": 1, "user": "a", "cpu": 1, "mem": 1, "duration": NaN}\n', "duration: 'nan' is not a finite"),
        ('{"submitted_at": 1, "user": "a"\n', "is not JSON"),
        ("[1, 2\n", "Line 2 is not JSON"),
        ("[1]", "is no object"),
        ('{"submitted_at": 1, "user": ["a"], "cpu": 1, "mem": 1, "duration": 1}\n', "user: is no word"),
        ("\x00\x01\x02\n\x00\n", "Neither Moorage's fields"),
    ],
)
def test_what_is_no_trace_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidTrace) as refusal:
        read(text.splitlines(keepends=True))
    assert words in refusal.value.message


@pytest.mark.parametrize("written", [native.as_csv, native.as_json_lines])
def test_what_is_written_is_read_again(written: object) -> None:
    jobs = generate(described(MIXED, "fleet"), period="day", sessions=80).jobs
    lines = list(written(jobs))  # type: ignore[operator]
    again = read(lines).jobs
    strip = [
        (j.submitted_at, j.user, j.slots, j.kernels, j.gpu_model, j.timeout_seconds, j.duration_seconds) for j in jobs
    ]
    assert strip == [
        (j.submitted_at, j.user, j.slots, j.kernels, j.gpu_model, j.timeout_seconds, j.duration_seconds) for j in again
    ]


SACCT = """\
JobID|User|Account|Partition|Submit|Elapsed|Timelimit|NNodes|ReqCPUS|ReqMem|AllocTRES|ReqTRES|State
101|ann|vision|gpu|2026-03-02T09:00:00|1-02:03:04|2-00:00:00|1|8|64G|billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=64G,node=1||COMPLETED
101.batch||vision||2026-03-02T09:05:00|1-02:03:04||1|8||cpu=8,mem=64G,node=1||COMPLETED
102|bob|nlp|lab|2026-03-02T08:00:00|00:10:00|UNLIMITED|4|32|4000Mc||billing=32,cpu=32,gres/gpu=16,mem=125G,node=4|FAILED
103|cid|nlp|cpu|2026-03-02T10:00:00|00:00:00|01:00:00|1|1|2Gn|||CANCELLED by 1001
104|cid|nlp|cpu|2026-03-02T10:00:00|00:00:30|01:00:00|1|3|2Gn|||TIMEOUT
"""


def test_slurms_accounting_is_read_by_its_fields() -> None:
    workload = read(SACCT.splitlines(keepends=True), groups={"default", "lab"})
    bob, ann, cid = workload.jobs  # in the order of their submission
    assert (ann.user, ann.project, ann.cpu, ann.mem, ann.gpu, ann.gpu_model) == (
        "ann",
        "vision",
        8000,
        65536,
        2,
        "a100",
    )
    assert (ann.duration_seconds, ann.timeout_seconds) == (93784, 172800)
    assert (bob.kernels, bob.cpu, bob.mem, bob.gpu, bob.timeout_seconds) == (4, 8000, 32000, 4, None)
    assert [job.resource_group for job in workload.jobs] == ["lab", "default", "default"]
    assert (cid.cpu, cid.mem, cid.duration_seconds, cid.line) == (3000, 2048, 30, 6)
    assert workload.notes == (
        "1 left out: steps of jobs",
        "1 left out: jobs that never ran",
    )


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("9|ann|x|p|Unknown|00:10:00|1|1|1|1G|||COMPLETED", "Submit"),
        ("9|ann|x|p|2026-03-02T09:00:00||1|1|1|1G|||COMPLETED", "Elapsed"),
        ("9||x|p|2026-03-02T09:00:00|00:10:00|1|1|1|1G|||COMPLETED", "User"),
        ("9|ann|x|p|2026-03-02T09:00:00|00:10:00|1|1|1|?|||COMPLETED", "ReqMem"),
        ("9|ann|x|p|2026-03-02T09:00:00|00:10:00|1|1|||||COMPLETED", "ReqCPUS"),
        ("9|ann|x|p|2026-03-02T09:00:00|00:10:00|1|1|1||cpu=1,gres/gpu=two,mem=1G||COMPLETED", "AllocTRES"),
    ],
)
def test_a_hole_in_slurms_accounting_is_named(line: str, field: str) -> None:
    with pytest.raises(InvalidTrace) as refusal:
        read([SACCT.splitlines(keepends=True)[0], line + "\n"])
    assert refusal.value.facts == {"line": 2, "field": field}


def philly(**changes: object) -> dict[str, object]:
    host = {"ip": "m1", "gpus": ["gpu0", "gpu1"]}
    attempts = [
        {"start_time": "2017-10-09 07:10:00", "end_time": "2017-10-09 07:20:00", "detail": [host]},
        {"start_time": "2017-10-09 08:00:00", "end_time": "2017-10-09 09:00:00", "detail": [host, host]},
    ]
    return {
        "status": "Pass", "vc": "ee9e8c", "jobid": "application_1", "attempts": attempts,
        "submitted_time": "2017-10-09 07:02:41", "user": "ce2f65", **changes,
    }  # fmt: skip


def test_phillys_jobs_are_read_with_all_their_attempts() -> None:
    never = philly(attempts=[], jobid="application_2")
    text = json.dumps([philly(), never], indent=1)
    workload = read(text.splitlines(keepends=True))
    [job] = workload.jobs
    assert (job.user, job.project, job.duration_seconds) == ("ce2f65", "ee9e8c", 600 + 3600)
    assert (job.kernels, job.gpu, job.cpu, job.mem) == (2, 2, 8000, 65536)
    assert workload.notes[0] == "1 left out: jobs that never ran"
    assert "were assumed" in workload.notes[1]


def test_a_philly_attempt_that_ends_before_it_begins_is_a_hole() -> None:
    attempts = [{"start_time": "2017-10-09 07:10:00", "end_time": "2017-10-09 07:00:00", "detail": []}]
    with pytest.raises(InvalidTrace) as refusal:
        read([json.dumps(philly(attempts=attempts))])
    assert refusal.value.facts == {"line": 1, "field": "attempts.end_time"}
