"""The `moorage` command. Nothing is imported before it is needed: `moorage --help` must be instant."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from moorage._version import __version__

#: name -> module, and what it does, in the order of `moorage --help`
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run something": {
        "run": ("running", "Create a session, run code or a command in it, and end with its exit code."),
        "exec": ("running", "Run code or a command in a session."),
        "execution": ("inside", "What has run in a session: ls, output, kill."),
        "interrupt": ("running", "Interrupt what runs in a session, as Ctrl-C would."),
        "complete": ("running", "Complete a piece of code."),
    },
    "Sessions": {
        "create": ("sessions", "Create a session and wait until it runs."),
        "cluster": ("clusters", "Sessions of several kernels: create."),
        "template": ("templates", "Templates of sessions: create, ls, show, edit, rm."),
        "ps": ("sessions", "List your sessions."),
        "info": ("sessions", "Show everything about a session."),
        "explain": ("explain", "Say why a session waits, and what it would start with."),
        "match": ("sessions", "Find sessions by a pattern of their name or id."),
        "history": ("sessions", "Show every change of a session's status."),
        "logs": ("sessions", "Show what a session's container wrote."),
        "graph": ("batch", "Show what a session waits for, and what waits for it."),
        "results": ("batch", "Fetch the files that a batch session has left."),
        "wait": ("sessions", "Wait until a session has a status."),
        "events": ("sessions", "Show what happens."),
        "rename": ("sessions", "Give a session another name."),
        "modify": ("sessions", "Change a session's settings."),
        "keepalive": ("apps", "Let a session's idle time begin anew."),
        "restart": ("sessions", "Give a session new containers; its files stay."),
        "rm": ("sessions", "End sessions and free what they hold."),
    },
    "Apps": {
        "app": ("apps", "Apps that answer calls: deploy, ls, show, rm, call."),
        "call": ("apps", "Calls of worker sessions: start, ls, show, output, cancel."),
    },
    "Services": {
        "service": ("services", "Services of a session: start, stop, ls, url, access."),
        "port-forward": ("services", "Reach a port of a session at a port of this machine."),
    },
    "SSH": {
        "ssh": ("ssh", "Log in to a session with this machine's SSH client."),
        "config-ssh": ("ssh", "Let `ssh NAME.moorage` work."),
        "ssh-key": ("ssh", "Keys that open your sessions by SSH: add, ls, rm."),
        "ssh-certificate": ("ssh", "What `ssh` calls for NAME.moorage."),
    },
    "Reports": {
        "stats": ("reports", "Show what a session uses, live or as a chart."),
        "top": ("reports", "Show who holds and who uses which CPU, memory and GPU."),
        "abuse-report": ("reports", "Say whether a session wastes or harms what is shared."),
    },
    "Files": {
        "cp": ("files", "Copy files to and from a session."),
        "ls": ("files", "List a session's files."),
        "state": ("state", "Small JSON values that a session keeps: get, set, ls, rm."),
        "file": ("inside", "Files where they are: stat, mkdir, mv, cp, rm, chmod."),
        "volume": ("volumes", "Volumes: create, ls, show, share, clone, rm, put, get, files."),
    },
    "Images": {
        "commit": ("images", "Make a snapshot of a session."),
        "commit-status": ("images", "Show how far a session's last commit is."),
        "imagify": ("images", "Make an image of a session, and push it to a registry."),
        "image": ("images", "Images: ls, rm, share."),
        "registry": ("images", "Registries: ls, login, logout."),
    },
    "More": {
        "task": ("tasks", "Background tasks: ls, wait, cancel."),
        "login": ("sign_in", "Sign in by e-mail address and password."),
        "logout": ("sign_in", "End the sign-in."),
        "whoami": ("access", "Show who the server takes you for."),
        "quota": ("quotas", "Show the limits that bind you; administrators set them."),
        "resource-group": ("groups", "Resource groups, whose hosts sessions may get: ls, show."),
        "share": ("groups", "Show how much of the resource groups you have, and whose turn it is."),
        "webhook": ("access", "What sessions' callbacks are told: secret, ls."),
        "admin": ("admin", "Users, keypairs, projects, images, agents, everybody's sessions."),
        "completion": ("shells", "Print the completion script of your shell."),
    },
}
#: Commands of the package moorage-server, where it is installed.
SERVER = {
    "up": "Start everything on this machine: database, manager and agent.",
    "down": "Stop what 'moorage up' started.",
    "status": "Show whether this machine's server runs.",
    "doctor": "Look for what is missing or wrong on this machine.",
    "backup": "Keep the whole installation in a file, while it runs.",
    "restore": "Make an installation of a backup again.",
    "upgrade": "Go over to the version that is installed, while sessions go on.",
    "manager": "Run a manager.",
    "agent": "Run an agent, or let this host join an installation.",
    "simulate": "Replay a workload, and compare policies and fleets.",
}
COMMANDS = {name: module for section in SECTIONS.values() for name, (module, _) in section.items()}
ENTRY_POINTS = "moorage.commands"


class LazyGroup(click.Group):
    """Finds its commands by name, and lists them without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *server_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := COMMANDS.get(cmd_name):
            found = getattr(import_module(f"moorage.cli.{module}"), f"{cmd_name.replace('-', '_')}_command")
            assert isinstance(found, click.Command)
            return found
        entries = server_entries()
        for entry in entries:
            if entry.name == cmd_name:
                loaded = entry.load()
                return loaded if isinstance(loaded, click.Command) else None
        if cmd_name in SERVER and not entries:
            raise click.UsageError(f"'{cmd_name}' is a command of the server: install moorage-server on this machine.")
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            if close := get_close_matches(args[0], self.list_commands(ctx), 1):
                raise click.UsageError(f"There is no command '{args[0]}'; did you mean '{close[0]}'?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in section.items()])
        if installed := server_commands():
            with formatter.section("This machine's server"):
                formatter.write_dl([(name, SERVER.get(name, "")) for name in installed])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="moorage")
@click.option("--endpoint", metavar="URL", help="The server. [default: MOORAGE_ENDPOINT, or the configuration file]")
@click.option("--config", metavar="FILE", help="Another configuration file. [default: MOORAGE_CONFIG]")
@click.pass_context
def cli(ctx: click.Context, endpoint: str | None, config: str | None) -> None:
    """Ask for sessions on shared GPU and CPU hosts, run code in them, move files.

    \b
    moorage run -c 'print(1 + 1)' --rm          a session for one piece of code
    moorage create demo --cpu 2 --mem 4g        one that stays,
    moorage exec demo -- python train.py        a command in it,
    moorage cp demo:out.csv .                   a file out of it,
    moorage rm demo                             and its end
    """
    ctx.obj = {"endpoint": endpoint, "config": config}


def server_entries() -> list[Any]:
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINTS))


def server_commands() -> list[str]:
    names = {entry.name for entry in server_entries()}
    return [*(name for name in SERVER if name in names), *sorted(names - SERVER.keys())]


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code (docs/cli.md lists them)."""
    given = sys.argv[1:] if args is None else args
    try:
        code = cli.main(given, prog_name="moorage", standalone_mode=False)
    except click.ClickException as problem:
        from moorage.cli.terminal import misused

        code = misused(problem, as_json="--json" in given)
    except (click.Abort, KeyboardInterrupt):
        click.echo("moorage: interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except BaseException as problem:
        from moorage.cli.terminal import Stopped, report

        if isinstance(problem, Stopped):
            code = 128 + problem.number
        elif isinstance(problem, Exception):
            code = report(problem, as_json="--json" in given)
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)
