"""cuvis.ai's own service, with pipelines that run on what the image has.

For every pipeline the original makes an environment with uv, and spawns its runtime there: in a session of its own that is
torch downloaded anew, from an index that a session may not reach. So an environment is made here that looks into the
image's and into the plugins' folders. What the image cannot give remains the original's affair.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

Compose = Callable[..., Path]


def service() -> Any:
    bridge: Any = importlib.import_module("cuvis_ai_core.grpc.orchestrator_bridge")
    bridge.set_composer(composer(bridge.get_composer()))
    return importlib.import_module("cuvis_ai_core.grpc.service").CuvisAIService()


def composer(original: Compose) -> Compose:
    """Makes the environment of a set of plugins; `original` is asked when the image lacks anything for it."""

    def compose(plugins: Mapping[str, Any], *, active_data_module: str | None = None, **more: Any) -> Path:
        missing = [what for plugin in plugins.values() for what in lacking(plugin, active_data_module)]
        if missing:
            print(f"uv is asked for an environment, because the image lacks {', '.join(missing)}", file=sys.stderr)
            return original(plugins, active_data_module=active_data_module, **more)
        return environment(_sources(plugin) for plugin in plugins.values() if hasattr(plugin, "path"))

    return compose


def environment(folders: Iterable[Path]) -> Path:
    """Its `.venv`: the image's packages, and what can be imported from these folders."""
    made = Path(tempfile.mkdtemp(prefix="cuvis-environment-")) / ".venv"
    venv.EnvBuilder(symlinks=True).create(made)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(made)})
    seen = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *map(str, folders)])
    Path(packages, "image.pth").write_text("".join(f"{path}\n" for path in seen))
    return made


def lacking(plugin: Any, data_module: str | None) -> Iterator[str]:
    """What a plugin needs and the image does not have."""
    extras = set(plugin.extras)
    for one in plugin.capabilities:
        if one.kind == "data_module" and one.data_module_name == data_module:
            extras |= set(one.extras)
    if hasattr(plugin, "path"):
        yield from _lacking_for_folder(plugin, extras)
    else:
        yield from _lacking_for_package(plugin.package_name or plugin.name, plugin.tag, extras)


def _lacking_for_folder(plugin: Any, extras: Collection[str]) -> Iterator[str]:
    try:
        project = tomllib.loads(Path(plugin.path, "pyproject.toml").read_text())["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        yield f"a project in {plugin.path}"
        return
    optional = project.get("optional-dependencies", {})
    if "dependencies" in project.get("dynamic", ()) or any(extra not in optional for extra in extras):
        yield f"what {plugin.name} depends on"
        return
    tops = {one.class_name.split(".")[0] for one in plugin.capabilities}
    sources = _sources(plugin)
    yield from (top for top in tops if not (sources / top).is_dir() and not (sources / f"{top}.py").is_file())
    wanted = [*project.get("dependencies", ()), *(one for extra in extras for one in optional[extra])]
    yield from (one for one in wanted if not _is_there(Requirement(one)))


def _lacking_for_package(package: str, tag: str, extras: Collection[str]) -> Iterator[str]:
    """One that is tagged in a repository is there when the image has that version of it."""
    try:
        there = importlib.metadata.distribution(package)
        same = Version(there.version) == Version(tag)
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        same = False
    if not same:
        yield f"{package} {tag}"
        return
    yield from (str(one) for one in _of_extras(package, extras) if not _is_there(one))


def _sources(plugin: Any) -> Path:
    folder = Path(plugin.path)
    return folder / "src" if (folder / "src").is_dir() else folder


def _is_there(wanted: Requirement) -> bool:
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return True
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True) and all(
        _is_there(one) for one in _of_extras(wanted.name, wanted.extras)
    )


def _of_extras(package: str, extras: Collection[str]) -> Iterator[Requirement]:
    """What these extras of an installed package ask for."""
    for one in map(Requirement, importlib.metadata.requires(package) or ()):
        marker, one.marker = one.marker, None
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        if any(marker.evaluate({"extra": extra}) for extra in extras):
            yield one
