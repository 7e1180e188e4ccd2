"""A dozen kills of the campaign that `make faults` has two hundred of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign

KILLS = 12
SECONDS = 18.0


@pytest.mark.usefixtures("kernel_image")
async def test_a_dozen_kills(engine_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_host)
    done = await campaign(tmp_path / "faults", seed=20, kills=KILLS, seconds=SECONDS)
    assert {result.point: result.violations for result in done.results if result.violations} == {}
    assert done.results
