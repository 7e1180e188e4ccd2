"""Completion for shells."""

from __future__ import annotations

import os
from pathlib import Path

import click

from moorage._errors import MoorageError
from moorage.cli.terminal import json_option, print_json


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@json_option
def completion_command(shell: str | None, as_json: bool) -> None:
    """Print the completion script of your shell.

    \b
    bash:  echo 'eval "$(moorage completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(moorage completion zsh)"' >> ~/.zshrc
    fish:  moorage completion fish > ~/.config/fish/completions/moorage.fish
    """
    from click.shell_completion import get_completion_class

    from moorage.cli import cli

    name = shell or Path(os.environ.get("SHELL", "bash")).name
    if (found := get_completion_class(name)) is None:
        raise MoorageError(f"There is no completion for {name}; there is for bash, zsh and fish.")
    complete = found(cli, {}, "moorage", "_MOORAGE_COMPLETE")
    script = _in_bash(complete.source()) if name == "bash" else complete.source()
    print_json({"shell": name, "script": script}) if as_json else click.echo(script)


def _in_bash(script: str) -> str:
    """SESSION:PATH is one word there, and goes on after a ':' or '/'."""
    taken = "COMPREPLY+=($value)"
    assert taken in script
    further = f"{taken}\n                if [[ $value == *[:/] ]]; then compopt -o nospace; fi"
    return f"COMP_WORDBREAKS=${{COMP_WORDBREAKS//:}}\n{script.replace(taken, further)}"
