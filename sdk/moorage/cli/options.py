"""Options of a session that are neither its work nor its size: labels, ports, callback, idle limit, template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from moorage.cli.terminal import TEMPLATE, F, PairParameter, TextParameter


class Label(PairParameter):
    """NAME[=VALUE]"""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name:
            self.fail(f"'{value}' is not of the form NAME=VALUE.", param, ctx)
        return name, text if equals else None


class Gpus(TextParameter):
    """A number of devices, with or without their model; the text stays as it is."""

    name = "[MODEL:]N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from moorage._wire import gpus

        try:
            gpus(str(value))
        except ValueError as problem:
            self.fail(f"{problem}.", param, ctx)
        return str(value)


def carried_options(function: F) -> F:
    """What a session carries; the same for `create` and `run`."""
    options: list[Callable[[F], F]] = [
        click.option("--label", "labels", type=Label(), multiple=True, help="To find it by: NAME=VALUE (repeatable)."),
        click.option(
            "--preopen-port",
            "ports",
            type=int,
            multiple=True,
            metavar="PORT",
            help="For what it serves by itself (repeatable).",
        ),
        click.option("--callback-url", metavar="URL", help="Is told what happens to the session, signed."),
        click.option("--idle-timeout", type=float, metavar="SECONDS", help="End it so long after its last use."),
        click.option(
            "--resource-group", metavar="NAME", help="Whose hosts it may get. [default: the first you may use]"
        ),
        click.option(
            "--host-label", "host_labels", type=Label(), multiple=True, help="That its host has (repeatable)."
        ),
        click.option(
            "--apart-from",
            type=Label(),
            multiple=True,
            help="On no host with a session of yours that has this label (repeatable).",
        ),
        click.option("--agent", metavar="HOST", help="On this host; for administrators."),
        click.option(
            "--on-agent-lost",
            type=click.Choice(["keep", "replace"]),
            help="When its host falls silent: wait for it, or begin anew elsewhere. [default: keep]",
        ),
        click.option(
            "--agent-lease",
            type=click.FloatRange(20, 86400),
            metavar="SECONDS",
            help="With replace: how long its host may be silent. [default: 60]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def carried_fields(
    labels: Iterable[tuple[str, str | None]],
    ports: tuple[int, ...],
    callback_url: str | None,
    idle_timeout: float | None,
    resource_group: str | None,
    host_labels: Iterable[tuple[str, str | None]],
    apart_from: Iterable[tuple[str, str | None]],
    agent: str | None,
) -> dict[str, Any]:
    return {
        "resource_group": resource_group,
        "agent": agent,
        "host_labels": {name: value or "" for name, value in host_labels} or None,
        "apart_from": {name: value or "" for name, value in apart_from} or None,
        "labels": {name: value or "" for name, value in labels} or None,
        "preopen_ports": list(ports) or None,
        "callback_url": callback_url,
        "idle_timeout": idle_timeout,
    }


def constraints_text(constraints: Mapping[str, Any]) -> str | None:
    """What a session demands of its host, in words."""
    said = [constraints["agent"]] if constraints.get("agent") else []
    said += [f"{name}={value}" for name, value in (constraints.get("labels") or {}).items()]
    said += [f"without {name}={value}" for name, value in (constraints.get("apart_from") or {}).items()]
    if model := constraints.get("gpu_model"):
        said.append(f"GPUs: {model}")
    return ", ".join(said) or None


def template_options(function: F) -> F:
    options: list[Callable[[F], F]] = [
        click.option(
            "--template", type=TEMPLATE, metavar="NAME", help="Begin with this template; other options go over it."
        ),
        click.option("--template-version", type=click.IntRange(1), metavar="N", help="[default: the newest]"),
        click.option(
            "-p", "--parameter", "parameters", type=Label(), multiple=True, help="Of the template: x=1 (repeatable)."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def only_given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what nobody typed, so that defaults of the command do not go over a template."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    untyped = {name for name in ("image", "cpu", "mem") if context.get_parameter_source(name) is default}
    return {name: None if name in untyped else value for name, value in fields.items()}
