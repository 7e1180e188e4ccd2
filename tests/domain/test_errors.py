"""Errors are promises: codes are unique and stay, messages say what to do, the page lists them all."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from domain.errors import BY_CODE, Internal, MoorageError, SessionNotFound, all_errors, as_markdown, from_code

ROOT = Path(__file__).parents[2]
ERRORS = list(all_errors())


def test_codes_are_unique() -> None:
    assert [code for code, times in Counter(error.code for error in ERRORS).items() if times > 1] == []


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
def test_an_error_speaks_for_itself(kind: type[MoorageError]) -> None:
    error = kind()
    assert error.message.endswith(".")
    assert "\n" not in error.message
    assert "  " not in error.message
    assert 400 <= error.http_status < 600
    assert "code" in vars(kind), "each has a code of its own"
    assert kind("Otherwise.", a=1).facts == {"a": 1}


def test_the_page_of_errors_is_up_to_date() -> None:
    """A code that goes, or changes its meaning, breaks callers: this shows it in review."""
    assert (ROOT / "docs/errors.md").read_text() == as_markdown(), "run: python -m domain > docs/errors.md"


def test_the_page_is_printed_and_checked(tmp_path: Path) -> None:
    def domain(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domain", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    page = domain().stdout
    assert page == as_markdown()
    assert page.count("\n| `") == len(ERRORS)
    (tmp_path / "old.md").write_text(page.replace("session_not_found", "no_session"))
    assert domain("--check", str(tmp_path / "old.md")).returncode == 1


def test_a_code_comes_back_as_its_class() -> None:
    for kind in ERRORS:
        assert type(from_code(kind.code, "It went wrong.")) is kind
    assert type(from_code("of_a_newer_version", "It went wrong.")) is Internal
    assert BY_CODE["session_not_found"] is SessionNotFound
    assert from_code("session_not_found", "Gone.", session="a").facts == {"session": "a"}
