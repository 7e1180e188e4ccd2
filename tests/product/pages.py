"""Examples in the documentation: fenced blocks whose first line says `run`, and what they print.

    ```python run            a program of its own
    ```sh run                a script for bash; the first command that fails ends it
    ```text output           what the block before it prints; '...' stands for anything
    ```sh run full           only in `make compat`

The blocks of a page run one after another in one folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^(?P<indent> *)```(?P<said>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
SECONDS = 120


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def runs(self) -> bool:
        return "run" in self.words[1:]

    @property
    def is_full(self) -> bool:
        return "full" in self.words[1:]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.name, text.count("\n", 0, found.start()) + 1, tuple(found["said"].split()), found["text"])
        for found in _FENCE.finditer(text)
    ]


def play(page: Path, folder: Path, environ: dict[str, str], *, full: bool) -> list[str]:
    """Run the examples of a page, or without those that are full; what went wrong."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environ = {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}", "COLUMNS": "120", **environ}
    printed: str | None = None
    troubles = []
    for block in blocks(page):
        if block.runs and block.is_full and not full:
            printed = None
        elif block.runs:
            script = folder / f"line-{block.line}"
            script.write_text(block.text, encoding="utf-8")
            shell = ["bash", "-euo", "pipefail"]
            command = [*(shell if block.language == "sh" else [sys.executable]), str(script)]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            printed = done.stdout
            if done.returncode != 0:
                troubles.append(f"{block.page}:{block.line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
                break
        elif block.words[1:] == ("output",) and printed is not None and not is_like(printed, block.text):
            troubles.append(f"{block.page}:{block.line}: what is printed is\n{printed}\nand not\n{block.text}")
    return troubles


def is_like(printed: str, expected: str) -> bool:
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
