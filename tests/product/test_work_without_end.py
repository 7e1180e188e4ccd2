"""Code that takes all it can get. The last of this folder: a machine is slow for a while after thousands of processes."""

from __future__ import annotations

import moorage
import pytest

pytestmark = pytest.mark.alone


def test_code_that_forks_without_end(session: moorage.Session) -> None:
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert session.run_code(bomb, timeout=3).reason in ("timeout", "crashed", "killed", "out_of_memory")
    assert session.commands.run("echo alive", timeout=60).stdout == "alive\n"
