"""Use and abuse at the REST door: what is refused, and usage as CSV."""

from __future__ import annotations

import pytest

from manager.rest.reports import as_csv
from repositories.usage import UsageRow
from tests.rest.conftest import Caller


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/sessions/train/metrics?range=7x", "invalid_range"),
        ("/v1/sessions/train/metrics?range=6h&step=1s", "too_many_points"),
        ("/v1/sessions/train/metrics?kernel=worker9", "kernel_not_found"),
        ("/v1/sessions/train/metrics?colour=red", "invalid_request"),
        ("/v1/sessions/nothing/metrics", "session_not_found"),
        ("/v1/sessions/nothing/abusing-report", "session_not_found"),
        ("/v1/usage?by=colour", "invalid_request"),
        ("/v1/usage?format=pdf", "invalid_request"),
        ("/v1/usage?since=yesterday", "invalid_request"),
        ("/v1/usage?since=2026-03-01T00:00:00", "invalid_range"),
        ("/v1/top?all=true", "permission_denied"),
        ("/v1/abusing-reports", "permission_denied"),
    ],
)
async def test_what_is_refused(alice: Caller, path: str, code: str) -> None:
    assert (await alice.get(path)).code == code


async def test_what_is_told(alice: Caller) -> None:
    told = (await alice.get("/v1/sessions/train/metrics?range=1h")).json
    assert [kernel["name"] for kernel in told["kernels"]] == ["main1"]
    report = (await alice.get("/v1/sessions/train/abusing-report")).json
    assert report["abusive"] is False
    assert {check["rule"] for check in report["checks"]} >= {"gpu_idle", "egress", "over_long"}
    assert (await alice.get("/v1/policies/watch")).json["rules"]["egress"]["enabled"] == 1


async def test_usage_as_csv(alice: Caller) -> None:
    answer = await alice.get("/v1/usage?by=session&format=csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.body.decode().splitlines()[0] == "name,sessions,cpu_hours,mem_gib_hours,gpu_hours"


def test_a_name_is_no_formula() -> None:
    row = UsageRow(key="k", name="=1+1", sessions=1, cpu_hours=1.5, mem_gib_hours=0, gpu_hours=0, other_hours={})
    assert as_csv([row]).splitlines()[1] == "'=1+1,1,1.500000,0.000000,0.000000"
