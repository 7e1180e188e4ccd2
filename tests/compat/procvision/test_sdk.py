"""Algorithms on the real SDK 0.0.7, unchanged: the one of its documentation, and the one that its command makes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import pytest

from agent.runner_link import RunnerConfig
from tests.compat.environments import client_python
from tests.runner.apps import MAIN, Apps
from tests.runner.conftest import folder, started
from tests.runner.containers import container

__all__ = ["folder"]
pytestmark = pytest.mark.compat
LATENCY = Path(__file__).with_name("apps") / "latency.py"


@pytest.fixture(scope="module")
def python() -> Path:
    return client_python("procvision")


@pytest.fixture
async def apps(folder: Path, python: Path) -> AsyncIterator[Apps]:
    config = RunnerConfig(environ={"PATH": os.environ["PATH"], "PROC_SHM_DIR": str(folder)}, python=str(python))
    async with started(folder, config) as kernel:
        await kernel.link.execute(MAIN, mode="serve", code="")
        yield Apps(kernel)


async def detect(apps: Apps) -> None:
    """One detection, from pre_execute to reset, and that nothing of it is left for the next one."""
    given: dict[str, Any] = {"execution": "e1", "pid": "p001", "context": {"trace_id": "t-1"}}
    await apps.loaded(LATENCY.read_text(), entry="app:Algorithm", adapter="algorithm")
    assert (await apps.output("get_info"))["name"] == "latency"
    ready = await apps.output("pre_execute", {**given, "user_params": {"gain": 2}})
    assert (ready["message"], ready["data"]) == ("ready", {"isinstance": True})
    out = await apps.call("execute", given)
    assert out.stdout == "a print is no frame\nreset e1 True False\n"
    output = out.results[-1]["output"]
    assert output["data"] == {"calibration": {"gain": 2}, "refused": "TypeError"}
    assert 0 <= output["diagnostics"]["latency_ms"] < 60_000
    out = await apps.call("execute", {**given, "step_index": 2})
    assert '"trace_id": "t-1"' in out.stderr  # the SDK's own logger
    assert out.results[-1]["output"]["data"]["calibration"] is None


async def test_the_example_of_the_documentation_keeps_its_session(apps: Apps) -> None:
    await detect(apps)


async def test_a_project_of_the_sdks_command_runs(apps: Apps, python: Path) -> None:
    project = apps.kernel.work / "project"
    command = [str(python.with_name("procvision-cli")), "init", "edge-check", "-d", str(project), "--pids", "p001"]
    made = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await made.communicate()
    assert made.returncode == 0, said.decode()
    (module,) = (path.parent.name for path in project.glob("*/main.py"))
    name = (project / module / "main.py").read_text().partition("class ")[2].partition("(")[0]
    await apps.loaded("", entry=f"{module}.main:{name}", adapter="algorithm", path=str(project))
    # where there is no image, the SDK gives a black one
    given = {"execution": "e", "pid": "p001", "shared_mem_id": "image", "image_meta": {"width": 64, "height": 48}}
    ready = await apps.output("pre_execute", given)
    assert ready["debug"] == {"width": 64, "height": 48, "latency_ms": 0.0}
    found = await apps.output("execute", {**given, "user_params": {"threshold": 0.2}})
    assert (found["data"]["result_status"], found["data"]["ng_reason"]) == ("NG", "threshold too low")
    refused = await apps.output("pre_execute", {**given, "pid": "p999"})
    assert (refused["status"], refused["error_code"]) == ("ERROR", "1001")


@pytest.mark.full
@pytest.mark.containers
async def test_it_runs_in_a_container(
    engine: docker.DockerClient, kernel_image: str, folder: Path, python: Path
) -> None:
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "/sdk"}
    mounts = {str(packages): {"bind": "/sdk", "mode": "ro"}}
    async with container(engine, kernel_image, folder, RunnerConfig(environ=environ), more=mounts) as (kernel, _):
        await kernel.link.execute(MAIN, mode="serve", code="")
        await detect(Apps(kernel, inside="/home/work"))
