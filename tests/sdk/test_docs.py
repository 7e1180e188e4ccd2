"""What pages show is there: commands with these options, Python that is Python. That it works is tested in tests/product."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

import click
import pytest
from moorage.cli import cli

from tests.product.pages import PAGES, Block, blocks, is_like

SHELL = ("", "sh", "bash", "console", "shell")
ALL = [block for page in PAGES for block in blocks(page)]
_COMMENT = re.compile(r"(^|\s)#\s.*$")


def commands(block: Block) -> Iterator[list[str]]:
    """The words after `moorage` on each line that begins so; of columns, the first."""
    for line in block.text.splitlines():
        said = line.strip().removeprefix("$ ")
        for part in re.split(r"\s&&\s|;\s|\s{3,}", _COMMENT.sub("", said)):
            if part.startswith("moorage "):
                try:
                    yield shlex.split(part)[1:]
                except ValueError:
                    continue  # goes on in the next line


def wrong(words: list[str]) -> str | None:
    """What of it there is not."""
    found: click.Command = cli
    context = click.Context(cli)
    left = list(words)
    while isinstance(found, click.Group) and left:
        default = found.get_command(context, "run") if found.name == "simulate" else None
        if left[0].startswith(("-", "[")) and default is None:
            break
        if default is not None and found.get_command(context, left[0]) is None:
            found = default
            break
        name = left.pop(0)
        if "|" in name or "..." in name:
            return None  # several at once
        inner = found.get_command(context, name)
        if inner is None:
            return None if found.invoke_without_command else f"there is no '{name}' in 'moorage {' '.join(words)}'"
        found = inner
    if found.context_settings.get("ignore_unknown_options"):
        return None
    known = {option for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts]}
    for word in left:
        if word == "--":
            break
        option = word.partition("=")[0].rstrip(",;)")
        if option.startswith("--") and option not in known | {"--help", "--version"}:
            return f"there is no '{option}' of '{' '.join(words)}'"
    return None


@pytest.mark.parametrize("page", sorted({block.page for block in ALL}))
def test_commands_that_a_page_shows_are_there(page: str) -> None:
    shown = [block for block in ALL if block.page == page and block.language in SHELL]
    assert [trouble for block in shown for words in commands(block) if (trouble := wrong(words))] == []


def test_python_that_pages_show_is_python() -> None:
    for block in ALL:
        if block.language == "python":
            compile(block.text, f"{block.page}:{block.line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_what_runs_is_a_program_or_a_script() -> None:
    assert {block.language for block in ALL if block.runs} == {"python", "sh"}
    assert all(set(block.words[1:]) <= {"run", "full"} for block in ALL if block.runs)


def test_what_is_wrong_is_noticed() -> None:
    assert wrong(["nosuch"]) == "there is no 'nosuch' in 'moorage nosuch'"
    assert wrong(["create", "--nosuch", "x"]) == "there is no '--nosuch' of 'create --nosuch x'"
    assert wrong(["exec", "demo", "--", "ls", "--color"]) is None
    assert is_like("a 1 b\n", "a ... b\n")
    assert not is_like("a 1 c", "a ... b")
