"""The interpreter that is shipped, and what must run on the images' older ones."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtime import command, ensure_runtime

ROOT = Path(__file__).parents[2]


def test_it_is_built_once_and_runs_from_anywhere(folder: Path) -> None:
    runtime = ensure_runtime(folder)
    assert ensure_runtime(folder) == runtime
    assert [path.name for path in (folder / "runtime").iterdir()] == [runtime.name]
    moved = folder / "elsewhere"
    runtime.rename(moved)
    start = command(moved, str(moved))[:-2]
    code = "import runner.supervisor, hashlib, tarfile, sys; print(sys.flags.isolated, sys.path)"
    program = [*start, "-c", f"import sys; sys.path.insert(0, {str(moved)!r}); {code}"]
    done = subprocess.run(program, env={}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 ")
    assert str(moved) in done.stdout
    assert "site-packages" not in done.stdout
    assert (moved / "lib" / f"python3.{sys.version_info.minor}" / "json/__pycache__").is_dir()


def test_everybody_can_read_it(folder: Path) -> None:
    for path in ensure_runtime(folder).rglob("*"):
        assert path.stat().st_mode & (0o555 if path.is_dir() else 0o444) in (0o555, 0o444), path


def test_the_systems_python_can_be_shipped_too(folder: Path) -> None:
    python = shutil.which("python3", path="/usr/bin")
    version = [python or "", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if python is None or subprocess.run(version, check=False).returncode:
        pytest.skip("this machine has no system Python of 3.11 or later")
    code = f"from pathlib import Path; from agent.runtime import *; print(command(ensure_runtime(Path({str(folder)!r})))[-1])"
    done = subprocess.run([python, "-S", "-c", code], cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert done.stdout == "/moorage/link\n", done.stderr


def test_a_folder_that_is_half_built_is_not_used(folder: Path) -> None:
    (folder / "runtime/.building-x").mkdir(parents=True)
    assert not ensure_runtime(folder).name.startswith(".")


@pytest.mark.parametrize("name", ["worker.py", "display.py"])
def test_the_worker_is_written_for_python_3_8(name: str) -> None:
    tree = ast.parse((ROOT / "runner" / name).read_text(), feature_version=(3, 8))
    assert not any(isinstance(node, ast.Name) and node.id == "match" for node in ast.walk(tree))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {name for name in imported if name.startswith("runner")}
