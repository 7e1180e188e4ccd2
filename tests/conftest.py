"""Which tier a test belongs to, and the plugins that every tier may use."""

from __future__ import annotations

import gc
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

pytest_plugins = ["tests.database", "tests.engine", "tests.mock_gpus", "tests.registry"]
pytest.register_assert_rewrite("tests.scenario")

#: By what a test asks for, dearest first; what asks for none of it is a unit test.
_TIERS = {
    "deployment": {"deployment_images"},
    "alone": set(),
    "compat": set(),
    "long": set(),
    "containers": {"engine", "kernel_image"},
    "scenarios": {"dsn", "database", "fresh_database", "postgres"},
}

#: Files that take longest: what begins last keeps the other workers waiting for its end.
_BEGUN_FIRST = (
    "runner/test_rings.py",
    "domain/test_plan_properties.py",
    "runner/test_query.py",
    "gate/test_schemathesis.py",
    "gate/test_matrix.py",
    "sim/test_sim.py",
    "machine/test_machine.py",
    "control/test_gpus.py",
    "product/test_main_job.py",
    "faults/test_campaign.py",
    "sdk/test_real.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=["unit", *_TIERS], help="run the tests of this tier only")
    parser.addoption("--tiers-known", type=Path, help="a file that says which tiers are in which file: found, or made")
    parser.addoption("--full", action="store_true", help="with a tier: what is marked as full too")


def tier_of(item: pytest.Item) -> str:
    marks = {mark.name for mark in item.iter_markers()}
    if marks & {"compat", "full"}:
        return "compat"
    if "long" in marks:
        return "long"
    asked = set(getattr(item, "fixturenames", ())) | marks
    return next((tier for tier, signs in _TIERS.items() if asked & {tier, *signs}), "unit")


def _begun(item: pytest.Item) -> int:
    name = item.nodeid.partition("::")[0].removeprefix("tests/")
    return _BEGUN_FIRST.index(name) if name in _BEGUN_FIRST else len(_BEGUN_FIRST)


_KNOWN: Final = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    known: Path | None = config.getoption("--tiers-known")
    config.stash[_KNOWN] = json.loads(known.read_text()) if known is not None and known.exists() else {}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a test of this tier are not even imported, once that is known."""
    tiers = config.stash[_KNOWN].get(str(collection_path))
    return True if tiers is not None and config.getoption("--tier") not in tiers else None


def _write_down(known: Path, items: list[pytest.Item]) -> None:
    tiers = defaultdict(set)
    for item in items:
        tiers[str(item.path)].add(tier_of(item))
    unfinished = known.with_suffix(f".{os.getpid()}")  # each worker writes the same
    unfinished.write_text(json.dumps({path: sorted(found) for path, found in tiers.items()}))
    unfinished.rename(known)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (wanted := config.getoption("--tier")) is None:
        return
    known: Path | None = config.getoption("--tiers-known")
    if known is not None and not config.stash[_KNOWN]:
        _write_down(known, items)
    full = config.getoption("--full")
    chosen = [item for item in items if tier_of(item) == wanted and (full or item.get_closest_marker("full") is None)]
    kept = set(chosen)
    others = [item for item in items if item not in kept]
    items[:] = sorted(chosen, key=_begun)
    config.hook.pytest_deselected(items=others)


def pytest_collection_finish() -> None:
    """What was collected stays to the end: not to be looked through for garbage again after every few tests."""
    gc.freeze()
