"""The systemd units and the compose file say what their programs understand."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from moorage.cli import cli

from agent.commands import _default_data_dir
from agent.config import AgentConfig
from manager.config import ManagerConfig

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/moorage/bin/moorage", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_comes_back_by_itself(unit: Path) -> None:
    text = unit.read_text()
    assert "Restart=always" in text
    assert "WantedBy=multi-user.target" in text


@pytest.mark.parametrize("command", ["manager", "up", "agent"])
def test_every_option_given_in_a_deployment_exists(command: str) -> None:
    given = {
        *re.findall(rf"moorage {command} (.*)", "\n".join(unit.read_text() for unit in UNITS)),
        *(
            re.findall(r"^ +- (--\S+?)=", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
            if command == "manager"
            else ()
        ),
    }
    options = set(re.findall(r"--[a-z-]+", " ".join(given)))
    told = CliRunner().invoke(cli, [command, "--help"])
    assert told.exit_code == 0, told.output
    assert options <= set(re.findall(r"--[a-z-]+", told.output))


def _compose(service: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]
    return found


def test_the_agent_in_a_container_keeps_its_data_in_what_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = _compose("agent")
    for name, value in agent["environment"].items():
        monkeypatch.setenv(name, value)
    folder = _default_data_dir()
    assert f"{folder}:{folder}:rshared" in agent["volumes"]


def test_the_compose_file_publishes_every_port_of_its_manager() -> None:
    manager = _compose("manager")
    listens = {int(port) for port in re.findall(r"port=(\d+)", " ".join(manager["command"]))}
    published = set()
    for entry in manager["ports"]:
        first, _, last = entry.partition(":")[0].partition("-")
        published |= set(range(int(first), int(last or first) + 1))
    assert listens
    assert listens == published


def test_every_setting_is_on_its_page() -> None:
    pages = {name: (ROOT / "docs" / name).read_text() for name in ("deployment.md", "agent.md", "gpu-hosts.md")}
    known = {field.name for field in fields(ManagerConfig)} - {"data_dir"}
    assert [name for name in sorted(known) if f"`{name}`" not in pages["deployment.md"]] == []
    known = {field.name for field in fields(AgentConfig)} - {"data_dir", "mounts"}
    assert [name for name in sorted(known) if f"`{name}`" not in pages["agent.md"] + pages["gpu-hosts.md"]] == []


def test_the_managers_file_on_the_page_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/deployment.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "manager.toml").write_text(blocks[0])
    config = ManagerConfig.load(tmp_path)
    assert all((config.agent_api_port, config.agent_control_port, config.agent_data_port, config.agent_proxy_port))
