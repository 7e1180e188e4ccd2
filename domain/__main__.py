"""`python -m domain` prints docs/errors.md; `--check FILE` compares it with a file."""

from __future__ import annotations

import sys
from pathlib import Path

from domain.errors import as_markdown

if sys.argv[1:2] == ["--check"]:
    sys.exit(0 if Path(sys.argv[2]).read_text() == as_markdown() else 1)
print(as_markdown(), end="")
