"""When a pipeline of cuvis.ai runs on what the image has, and when uv is asked for an environment."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.compat.environments import ROOT


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "moorage_cuvis_service", ROOT / "images/cuvis/moorage_cuvis_service.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _node(name: str = "mine.Node") -> SimpleNamespace:
    return SimpleNamespace(class_name=name, kind="node", data_module_name="", extras=[])


def _in_folder(folder: Path, project: str, *, extras: tuple[str, ...] = (), **more: Any) -> SimpleNamespace:
    (folder / "pyproject.toml").write_text(project)
    (folder / "mine.py").write_text("HERE = True\n")
    return SimpleNamespace(name="mine", path=str(folder), extras=extras, capabilities=[_node()], **more)


def _tagged(package: str, tag: str, *extras: str) -> SimpleNamespace:
    return SimpleNamespace(name="mine", package_name=package, repo="-", tag=tag, extras=extras, capabilities=[_node()])


def test_a_plugin_in_a_folder_runs_on_what_the_image_has(
    service: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plugin = _in_folder(
        tmp_path, '[project]\nname = "mine"\ndependencies = ["pytest>=7", "nothing; python_version < \'3\'"]'
    )
    made = service.composer(None)({"mine": plugin}, core_source=None)
    code = "import mine, pytest; print(mine.HERE, pytest.__version__)"
    done = subprocess.run([made / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", version("pytest")]


@pytest.mark.parametrize(
    ("project", "missing"),
    [
        ("", "a project in"),
        ('[project]\nname = "mine"\ndynamic = ["dependencies"]', "what mine depends on"),
        ('[project]\nname = "mine"\ndependencies = ["pytest<1"]', "pytest<1"),
        ('[project]\nname = "mine"\ndependencies = ["there-is-none-of-this"]', "there-is-none-of-this"),
    ],
)
def test_what_a_folder_needs_beyond_that_is_asked_of_uv(
    service: ModuleType, tmp_path: Path, project: str, missing: str
) -> None:
    [found] = service.lacking(_in_folder(tmp_path, project), None)
    assert missing in found
    asked: dict[str, Any] = {}

    def original(plugins: Any, **more: Any) -> Path:
        asked.update(more, plugins=list(plugins))
        return tmp_path

    plugins = {"mine": _in_folder(tmp_path, project)}
    assert service.composer(original)(plugins, core_source="pypi", active_data_module="m") == tmp_path
    assert asked == {"core_source": "pypi", "active_data_module": "m", "plugins": ["mine"]}


def test_a_module_that_is_not_in_the_folder_and_an_extra_that_is_not_declared(
    service: ModuleType, tmp_path: Path
) -> None:
    project = '[project]\nname = "mine"\n[project.optional-dependencies]\nfast = ["pytest<1"]'
    plugin = _in_folder(tmp_path, project)
    assert list(service.lacking(plugin, None)) == []
    plugin.capabilities.append(
        SimpleNamespace(class_name="other.Data", kind="data_module", data_module_name="m", extras=["fast"])
    )
    assert list(service.lacking(plugin, None)) == ["other"]
    assert list(service.lacking(plugin, "m")) == ["other", "pytest<1"]
    plugin.extras = ("slow",)
    assert list(service.lacking(plugin, None)) == ["what mine depends on"]


def test_a_tagged_package_is_there_in_that_version_alone(service: ModuleType) -> None:
    there = version("pytest")
    assert list(service.lacking(_tagged("pytest", f"v{there}"), None)) == []
    assert list(service.lacking(_tagged("pytest", "v0.1"), None)) == ["pytest v0.1"]
    assert list(service.lacking(_tagged("pytest", "latest"), None)) == ["pytest latest"]
    assert list(service.lacking(_tagged("there-is-none-of-this", "v1"), None)) == ["there-is-none-of-this v1"]
    assert len(list(service.lacking(_tagged("pytest", f"v{there}", "dev"), None))) > 0
