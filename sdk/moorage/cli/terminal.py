"""What people see: tables, JSON, progress, errors; and the connection every command starts with."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from moorage._errors import MoorageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from moorage.sync import Client

F = TypeVar("F", bound=Callable[..., Any])

OK, FAILED, USAGE, NOT_FOUND, DENIED, CONFLICT, UNAVAILABLE = 0, 1, 2, 3, 4, 5, 6
_EXIT_CODES = {
    400: USAGE,
    401: DENIED,
    403: DENIED,
    404: NOT_FOUND,
    408: UNAVAILABLE,
    409: CONFLICT,
    412: CONFLICT,
    416: USAGE,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
_EXIT_CODES_BY_CODE = {"unreachable": UNAVAILABLE, "wait_timeout": UNAVAILABLE, "not_configured": USAGE}
_EXIT_CODES_BY_CODE |= {"invalid_resources": USAGE, "invalid_configuration": USAGE}


if TYPE_CHECKING:
    TextParameter = click.ParamType[str]
    PairParameter = click.ParamType[tuple[str, str]]
    NumberParameter = click.ParamType[float]
else:  # older ones are not generic
    TextParameter = PairParameter = NumberParameter = click.ParamType


class Group(click.Group):
    """Says of each of its commands all that its first sentence says."""

    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(200)) for name, command in found if command and not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Named(TextParameter):
    """The name of something; completed by asking the server, when a shell completes."""

    def __init__(self, name: str, find: Callable[[Client, str], Iterable[tuple[str, str]]]) -> None:
        self.name = name
        self._find = find

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            with connect(ctx, retry_for=0.0, timeout=1.0) as client:
                found = [(name, said) for name, said in self._find(client, incomplete) if name.startswith(incomplete)]
        except MoorageError:
            return []
        return [CompletionItem(name, help=said) for name, said in found]


def _sessions(client: Client, begun: str) -> Iterable[tuple[str, str]]:
    return [(session.name, session.status) for session in client.sessions.iterate(limit=200)]


def _images(client: Client, begun: str) -> Iterable[tuple[str, str]]:
    return [(name, "") for image in client.images.iterate(limit=200) for name in (*image.aliases, image.name)]


def _places(client: Client, begun: str) -> Iterable[tuple[str, str]]:
    """Sessions, and what is in the folder that has been typed."""
    session, colon, path = begun.partition(":")
    if not colon:
        return [(f"{name}:", status) for name, status in _sessions(client, begun)]
    folder, slash, _ = path.rpartition("/")
    stats = client.sessions.get(session).files.iterate(folder or slash or ".", limit=200)
    endings = {"directory": "/"}
    return [(f"{session}:{folder}{slash}{stat.name}{endings.get(stat.type, '')}", "") for stat in stats]


SESSION = Named("session", _sessions)
IMAGE = Named("image", _images)
PLACE = Named("place", _places)
TEMPLATE = Named("template", lambda client, begun: [(one.name, "") for one in client.templates.iterate(limit=200)])
VOLUME = Named("volume", lambda client, begun: [(one.name, "") for one in client.volumes.iterate(limit=200)])


def session_argument(function: F) -> F:
    return click.argument("session", type=SESSION, metavar="SESSION")(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


@contextmanager
def connect(ctx: click.Context | None = None, **settings: Any) -> Iterator[Client]:
    """A client of the server that the options, the environment or the configuration file name."""
    from moorage.sync import Client

    context = ctx or click.get_current_context()
    given = context.find_root().obj or {}
    with Client(given.get("endpoint"), config=given.get("config"), **settings) as client:
        yield client


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(value: Any) -> None:
    """One JSON document in a stream of them."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Columns; on a terminal, fitted to its width."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for header in headers:
            drawn.add_column(header, overflow="fold", no_wrap=header in ("NAME", "STATUS", "SIZE", "ID"))
        for row in cells:
            drawn.add_row(*(_styled(cell) for cell in row))
        Console(highlight=False).print(drawn)
        return
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    for line in [list(headers), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


_COLOURS = {"RUNNING": "green", "ERROR": "red", "RUNNING_DEGRADED": "yellow", "PENDING": "cyan", "alive": "green"}


def _styled(cell: str) -> Any:
    from rich.text import Text

    return Text(printable(cell), style=_COLOURS.get(cell, ""))


def details(pairs: Mapping[str, object]) -> None:
    """One thing per line."""
    shown = {name: str(value) for name, value in pairs.items() if value not in (None, "", {}, [])}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name.ljust(width)}  " + printable(value).replace("\n", "\n" + " " * (width + 2)))


def note(text: str) -> None:
    """For people; never mixed into output that programs read."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Names come from others: no control characters on our terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def size(count: float | None) -> str:
    """1536 -> 1.5 KiB"""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def memory(mib: object) -> str:
    """MiB as people write them: 4096 -> 4g"""
    if not isinstance(mib, int | float):
        return "" if mib is None else str(mib)
    return f"{mib / 1024:g}g" if mib >= 1024 and mib % 512 == 0 else f"{mib:g}m"


def span(seconds: float | None) -> str:
    """Two units of time at most: 93784 -> 1d 2h"""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    left, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def age(moment: datetime | None) -> str:
    if moment is None:
        return ""
    return span((datetime.now(UTC) - moment).total_seconds()).partition(" ")[0]


def due_in(moment: datetime) -> str:
    """in 4m 10s, or now"""
    left = (moment - datetime.now(UTC)).total_seconds()
    return f"in {span(left)}" if left > 1 else "now"


_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)", re.ASCII)
_AGO_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str) -> datetime:
    """A time as people write it: 2026-03-01, 2026-03-01T12:00 (of this machine's zone when none is said), or 10m ago."""
    if ago := _AGO.fullmatch(text.strip().removesuffix("ago").strip()):
        return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _AGO_SECONDS[ago[2]])
    try:
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.UsageError(f"'{text}' is no time; write 2026-03-01, 2026-03-01T12:00 or 10m.") from None
    return found if found.tzinfo else found.astimezone()


def local_time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def slots_text(slots: Mapping[str, Any]) -> str:
    """cpu 2, mem 4g, gpu 1; a host's devices are counted"""
    plain = {name: amount for name, amount in slots.items() if not name.startswith("gpu/")}
    if len(plain) < len(slots):
        plain["gpu"] = len(slots) - len(plain)
    return ", ".join(
        f"{name} {memory(amount) if name in ('mem', 'gpu-mem') else amount}" for name, amount in plain.items()
    )


@contextmanager
def progress(
    label: str, *, unit_bytes: bool = True, shown: bool = True
) -> Iterator[Callable[[float, float | None], None]]:
    """A bar on a terminal, nothing elsewhere; called with how much is done, and of how much."""
    if not shown or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [DownloadColumn(binary_units=True), TransferSpeedColumn()] if unit_bytes else []
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(printable(label), total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextmanager
def waiting(text: str, *, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal, nothing elsewhere; called with a new text."""
    if not shown or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(printable(text)) as status:
        yield lambda text: status.update(printable(text))


class Stopped(BaseException):
    """This process was told to end by a signal; as an exception, so that what was begun is put away first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """A handler: end as after an exception."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


@contextmanager
def signals(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Handle these so, for a while. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def misused(problem: click.ClickException, *, as_json: bool) -> int:
    """What was typed cannot be, or a command of this machine failed: one sentence, and where to read on."""
    said = problem.format_message()
    said += "" if said.endswith((".", "?", ")")) else "."
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "moorage"
    typed = isinstance(problem, click.UsageError)
    if as_json:
        fields = {"code": "usage" if typed else "local_error", "message": said, "request_id": None}
        facts = {"help": f"{path} --help"} if typed else {}
        click.echo(json.dumps({"error": {**fields, "facts": facts}}, ensure_ascii=False), err=True)
    elif isinstance(problem, click.exceptions.NoArgsIsHelpError):
        problem.show()
    else:
        note(f"moorage: {printable(said)}" + (f" See '{path} --help'." if typed else ""))
    return problem.exit_code


def exit_code(problem: MoorageError) -> int:
    """What scripts can tell apart."""
    return _EXIT_CODES_BY_CODE.get(problem.code, _EXIT_CODES.get(problem.http_status, FAILED))


def report(problem: Exception, *, as_json: bool) -> int:
    """Tell it on stderr in one sentence; the exit code."""
    if not isinstance(problem, MoorageError):
        if isinstance(problem, OSError):
            what = problem.strerror or str(problem)
            sentence = f"{problem.filename}: {what}." if problem.filename else f"{what}."
            return report(MoorageError(sentence, code="local_error"), as_json=as_json)
        raise problem
    if as_json:
        fields = {"code": problem.code, "message": problem.message, "request_id": problem.request_id}
        click.echo(json.dumps({"error": {**fields, "facts": problem.facts}}, ensure_ascii=False), err=True)
    else:
        hidden = problem.http_status >= 500 and problem.http_status != 503 and problem.request_id
        note(f"moorage: {printable(problem.message)}" + (f" (request {problem.request_id})" if hidden else ""))
    return exit_code(problem)
