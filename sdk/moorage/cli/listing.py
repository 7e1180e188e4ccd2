"""How things of administrators are shown, and the words for what is done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import click

from moorage._models_base import Model
from moorage.cli import terminal
from moorage.cli.terminal import details, print_json, table


class Forgiving(terminal.Group):
    """Takes the other words that people type for the same."""

    WORDS: ClassVar[Mapping[str, Sequence[str]]] = {
        "add": ("create",),
        "create": ("add",),
        "delete": ("rm",),
        "edit": ("modify",),
        "list": ("ls",),
        "modify": ("edit",),
        "remove": ("rm",),
    }

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for word in (cmd_name, *self.WORDS.get(cmd_name, ())):
            if (found := super().get_command(ctx, word)) is not None:
                return found
        return None


def show_list(found: Sequence[Model], columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    """`columns`: header -> field"""
    if as_json:
        print_json([item.to_json() for item in found])
    else:
        table(list(columns), [[_cell(getattr(item, name)) for name in columns.values()] for item in found], empty=empty)


def show_one(item: Model, as_json: bool) -> None:
    if as_json:
        print_json(item.to_json())
    else:
        details({name: _cell(getattr(item, name)) for name in item.to_json()})


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return terminal.local_time(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return terminal.slots_text(value)
    return value


def removed(name: str, as_json: bool) -> None:
    print_json({"removed": name}) if as_json else click.echo(name)
