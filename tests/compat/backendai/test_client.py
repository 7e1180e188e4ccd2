"""The real SDK and `backend.ai` command of Backend.AI do what they do elsewhere, with real containers."""

from __future__ import annotations

import pytest

from tests.compat.backendai.conftest import Installation

pytestmark = pytest.mark.compat


def test_a_day_with_the_sdk_and_a_line_with_the_command(installation: Installation) -> None:
    told = installation.client("short.py")
    assert told["made"] == ["RUNNING", True]
    assert (told["run"]["status"], told["run"]["console"], told["run"]["exitCode"]) == (
        "finished",
        [["stdout", "42\n"]],
        0,
    )
    assert told["upload"] == 204
    assert told["files"] == ["a 100%.txt", "sub"]
    assert told["download"] == ["a 100%.txt", "sub/b.bin"]
    assert told["same"] is True
    assert "42\n" in told["logs"]
    assert told["info"]["occupiedSlots"] == "{'cpu': Decimal('1'), 'mem': Decimal('268435456')}"
    assert told["info"]["numQueriesExecuted"] == 1
    assert told["end"] == "terminated"
    assert told["over"] == [404, "https://api.backend.ai/probs/object-not-found", "No such session."]
    said = installation.command("run", "--rm", "-t", "daily-two", "python", "-r", "mem=256", "-c", "print(6 * 7)")
    assert said.stdout.splitlines()[0] == "42", said.stderr
    assert "Cleaned up the session" in said.stderr
