"""`moorage doctor` on a real installation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.product.conftest import Installation


@pytest.fixture(autouse=True)
def _engine(engine_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_host)


def examined(installation: Installation) -> tuple[int, dict[str, dict[str, Any]]]:
    done = installation.run("doctor", "--json", "--data-dir", str(installation.data_dir))
    assert done.stdout, done.stderr
    return done.returncode, {one["subject"]: one for one in json.loads(done.stdout)}


@pytest.mark.long
def test_an_installation_is_looked_at(installation: Installation) -> None:
    code, found = examined(installation)
    assert {name for name, one in found.items() if one["level"] == "bad"} == set()
    assert code == 0
    assert {"postgres", "schema", "invariants", "secrets", "engine", "live-restore", "agent's disk"} <= found.keys()
    assert all(one["meaning"] for one in found.values() if one["level"] != "ok")


@pytest.mark.long
def test_what_is_bad_is_said_and_told_to_scripts(installation: Installation) -> None:
    key = installation.data_dir / "pki" / "ca.key"
    key.chmod(0o644)
    try:
        code, found = examined(installation)
        said = installation.run("doctor", "--data-dir", str(installation.data_dir)).stdout
    finally:
        key.chmod(0o600)
    assert (code, found["secrets"]["level"]) == (1, "bad")
    assert f"{key} can be read by others" in said
