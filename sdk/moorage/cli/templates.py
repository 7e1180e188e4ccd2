"""Commands for session templates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.terminal import Group, connect, details, json_option, print_json, table

if TYPE_CHECKING:
    from moorage._models import TemplateInfo

_EXAMPLE = """\
# What every session made of this template is like; 'moorage create --template NAME -p cpu=4' makes one.
description: What it is for
parameters:
  cpu: {type: integer, default: 1, minimum: 1, maximum: 16}
session:
  image: python
  resource_slots: {cpu: {$param: cpu}, mem: 1g}
  environ: {MODE: fast}
"""


@click.group("template", cls=Group)
def template_command() -> None:
    """Templates of sessions: create, ls, show, edit, rm. 'moorage create --template NAME' uses one."""


@template_command.command("create")
@click.argument("name")
@click.option(
    "-f", "--file", type=click.File("r"), help="YAML or JSON; - reads it from standard input. [default: an editor]"
)
@click.option("--project", help="For the members of this project.")
@click.option("--domain", is_flag=True, help="For everybody in the domain; for administrators.")
@json_option
def template_create(name: str, file: Any, project: str | None, domain: bool, as_json: bool) -> None:
    """Keep a template, by default for yourself."""
    text = file.read() if file else click.edit(_EXAMPLE, extension=".yaml")
    if text is None:
        raise click.UsageError("Nothing was written, so nothing is kept.")
    with connect() as client:
        made = client.templates.create(name, text, scope="domain" if domain else None, project=project)
    print_json(made.to_json()) if as_json else click.echo(made.name)


@template_command.command("ls")
@json_option
def template_ls(as_json: bool) -> None:
    """List the templates that you may use."""
    with connect() as client:
        found = client.templates.list()
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [one.name, _whose(one), one.latest, ", ".join(one.parameters or ()), one.session.get("image"), one.description]
        for one in found
    ]
    headers = ["NAME", "OF", "VERSION", "PARAMETERS", "IMAGE", "DESCRIPTION"]
    table(headers, rows, empty="No templates; 'moorage template create NAME' keeps one.")


@template_command.command("show")
@click.argument("template")
@click.option("--version", type=click.IntRange(1), metavar="N", help="An earlier version.")
@click.option("--source", is_flag=True, help="Only the text as it was written.")
@json_option
def template_show(template: str, version: int | None, source: bool, as_json: bool) -> None:
    """Show a template: what it is, its parameters, and its text."""
    with connect() as client:
        found = client.templates.get(template, version=version)
    if as_json:
        print_json(found.to_json())
        return
    if not source:
        history = [f"{v.version}  {terminal.local_time(v.at)}  {v.by}" for v in found.versions]
        parameters = [_parameter(name, said) for name, said in (found.parameters or {}).items()]
        details(
            {
                "name": found.name,
                "id": found.id,
                "of": _whose(found),
                "version": f"{found.version} of {found.latest}",
                "description": found.description,
                "parameters": "\n".join(parameters),
                "versions": "\n".join(history),
            }
        )
        click.echo()
    click.echo(found.source.rstrip("\n"))


@template_command.command("edit")
@click.argument("template")
@click.option(
    "-f", "--file", type=click.File("r"), help="YAML or JSON; - reads it from standard input. [default: an editor]"
)
@click.option("--name", help="Another name.")
@json_option
def template_edit(template: str, file: Any, name: str | None, as_json: bool) -> None:
    """Give a template a new text, which is its next version, or another name."""
    with connect() as client:
        found = client.templates.get(template)
        text = file.read() if file else None if name else click.edit(found.source, extension=".yaml")
        if text is None and name is None:
            raise click.UsageError("Nothing was changed.")
        changed = client.templates.edit(found.id, text, name=name, if_version=found.version)
    if as_json:
        print_json(changed.to_json())
    else:
        click.echo(f"{changed.name} is at version {changed.latest}")


@template_command.command("rm")
@click.argument("templates", nargs=-1, required=True, metavar="TEMPLATE...")
@json_option
def template_rm(templates: tuple[str, ...], as_json: bool) -> None:
    """Forget templates with all their versions; sessions made of them go on."""
    with connect() as client:
        for template in templates:
            client.templates.remove(template)
            terminal.print_line({"removed": template}) if as_json else click.echo(template)


def _whose(template: TemplateInfo) -> str:
    return f"{template.scope} {template.of}"


def _parameter(name: str, said: dict[str, Any]) -> str:
    kind = said.get("type", "string")
    bounds = [f"{word} {said[word]}" for word in ("minimum", "maximum") if said.get(word) is not None]
    choices = [f"one of {', '.join(map(str, said['choices']))}"] if said.get("choices") else []
    default = "has to be given" if said.get("default") is None else f"default {json.dumps(said['default'])}"
    text = f"{name}: {', '.join([kind, default, *bounds, *choices])}"
    return f"{text}; {said['description']}" if said.get("description") else text
