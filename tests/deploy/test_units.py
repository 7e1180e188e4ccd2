"""The systemd units and the compose file say what their programs understand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from moorage.cli import cli

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
