"""Commands that run something in a session: output as it comes, input and signals passed on, the exit code kept."""

from __future__ import annotations

import base64
import codecs
import getpass
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from moorage._errors import MoorageError
from moorage.cli import terminal
from moorage.cli.batch import follow_batch, is_batch
from moorage.cli.sessions import creation_fields, creation_options, find, wait_for_running
from moorage.cli.terminal import F, connect, json_option, note, print_json, session_argument
from moorage.errors import SessionNotFound

if TYPE_CHECKING:
    from moorage.results import Record, RunResult
    from moorage.sync import Execution, Session
    from moorage.sync.executions import Executions


TIMED_OUT = 124
#: Sent to us, and passed on to what runs in the session.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What is asked to end by SIGTERM has so long.
GRACE_SECONDS = 10.0


def work_options(function: F) -> F:
    """What to run; the same for `run` and `exec`."""
    options = [
        click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]"),
        click.option("-c", "--code", metavar="CODE", help="Python code for the session's interpreter."),
        click.option("-f", "--file", type=click.File("r"), metavar="FILE", help="The same from a file ('-': stdin)."),
        click.option("--timeout", type=float, metavar="SECONDS", help="Stop what runs after so long."),
        click.option("--no-stdin", is_flag=True, help="Do not pass standard input on."),
        click.option("--figures", metavar="FOLDER", help="Save the images among the results there."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("run")
@creation_options
@click.option("--name", help="The session's name.")
@click.option("--rm", "remove", is_flag=True, help="End the session afterwards.")
@work_options
@json_option
def run_command(
    name: str | None,
    remove: bool,
    command: tuple[str, ...],
    code: str | None,
    file: Any,
    timeout: float | None,
    no_stdin: bool,
    figures: str | None,
    as_json: bool,
    **fields: Any,
) -> int:
    """Create a session, run code or a command in it, and end with its exit code.

    \b
    moorage run --rm -c 'print(1 + 1)'
    moorage run --rm --gpu 1 -f train.py
    moorage run --name demo -- python -m http.server

    A single COMMAND is given to the shell. Ctrl-C interrupts what runs, SIGTERM ends it; a second one kills it.
    With --retries, --batch-timeout or --keep the COMMAND becomes a batch session, which ends with it.
    """
    mode, text = work(command, code, file)
    asked = creation_fields(**fields)
    if is_batch(asked):
        return _run_batch(name, remove, command, timeout, as_json, asked)
    with terminal.signals(terminal.stop, signal.SIGTERM, signal.SIGHUP), connect() as client:
        session = client.sessions.create(name, wait=False, **asked)
        ended = remove
        try:
            try:
                wait_for_running(session, quiet=as_json)
            except BaseException:
                ended = True  # nobody asked for an idle session
                raise
            result = Work(session, as_json=as_json, stdin=not no_stdin, figures=figures).run(mode, text, timeout)
        finally:
            if ended:
                with terminal.waiting(f"{session.name}: ending", shown=not as_json):
                    _end(session)
    if not ended and not as_json:
        note(f"moorage: the session {session.name} goes on; 'moorage rm {session.name}' ends it.")
    if as_json:
        print_json({"session": session.info.to_json(), **result.to_json()})
    return program_exit_code(result)


def _run_batch(
    name: str | None, remove: bool, command: tuple[str, ...], timeout: float | None, as_json: bool, fields: Any
) -> int:
    """As a session of its own, which goes on when nobody looks any more; every attempt's output is shown."""
    if not command:
        raise click.UsageError("--retries, --batch-timeout and --keep go with -- COMMAND.")
    if timeout is not None:
        raise click.UsageError("The time of a batch session is bounded by --batch-timeout.")
    _, text = work(command, None, None)
    with terminal.signals(terminal.stop, signal.SIGTERM, signal.SIGHUP), connect() as client:
        session = client.sessions.create(name, session_type="batch", startup_command=text, wait=False, **fields)
        shown = Work(session, as_json=as_json, stdin=False)
        try:
            code = follow_batch(session, shown.attach)
        except (KeyboardInterrupt, terminal.Stopped):
            if remove:
                _end(session)
            else:
                note(f"moorage: {session.name} goes on; 'moorage rm {session.name}' ends it.")
            raise
    if as_json:
        print_json(session.info.to_json())
    return code


def _end(session: Session) -> None:
    try:
        session.destroy()
    except SessionNotFound:
        pass
    except MoorageError as problem:
        note(f"moorage: {session.name} could not be ended: {problem}")


@click.command("exec")
@session_argument
@work_options
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on: what is done anyway.")
@click.option("-t", "--tty", is_flag=True, help="On a terminal: a shell, or COMMAND. Ctrl-] leaves it open.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait; print the run id.")
@click.option(
    "--attach", metavar="ID", help="Show an execution that was started before; with -t, go on with a terminal."
)
@click.option("--kernel", metavar="NAME", help="Of a cluster, the kernel to run it on, such as worker1.")
@click.option("--all", "everywhere", is_flag=True, help="Run it on all kernels of a cluster at once.")
@json_option
def exec_command(
    session: str,
    command: tuple[str, ...],
    code: str | None,
    file: Any,
    timeout: float | None,
    no_stdin: bool,
    figures: str | None,
    interactive: bool,
    tty: bool,
    detach: bool,
    attach: str | None,
    kernel: str | None,
    everywhere: bool,
    as_json: bool,
) -> int:
    """Run code or a command in a session, and end with its exit code.

    \b
    moorage exec demo -c 'x = 41'
    moorage exec demo -c 'x + 1'
    moorage exec demo -- python train.py --epochs 3
    moorage exec demo -d -- ./long.sh        prints a run id,
    moorage exec demo --attach RUN           which shows its output, now or later
    moorage exec -it demo                    a shell on this terminal; with -- COMMAND, that
    moorage exec demo --all -- hostname      on every kernel of a cluster, its name before each line

    A single COMMAND is given to the shell. Ctrl-C interrupts what runs, SIGTERM ends it; a second one kills it.
    """
    if tty:
        if code is not None or file or detach or everywhere or as_json:
            raise click.UsageError("-t goes with none of -c, -f, --detach, --all, --json.")
        return on_terminal(session, command, attach, kernel)
    if attach and (command or code or file or detach):
        raise click.UsageError("--attach goes with nothing else to run.")
    if everywhere and (kernel or attach or detach):
        raise click.UsageError("--all goes with none of --kernel, --attach, --detach.")
    with connect() as client:
        if attach:
            found = find(client, session)
            result = Work(found, as_json=as_json, stdin=not no_stdin, figures=figures).attach(attach)
        else:
            mode, text = work(command, code, file)
            found = client.sessions.get(session)
            if everywhere:
                from moorage.cli.clusters import run_everywhere

                return run_everywhere(found, mode, text, timeout, as_json=as_json)
            where = found.kernel(kernel).executions if kernel else found.executions
            if detach:
                opts = {"stdin": False} if mode == "batch" else None
                run_id = where.start(text, mode=mode, timeout=timeout, opts=opts).run_id
                print_json({"run_id": run_id}) if as_json else click.echo(run_id)
                return terminal.OK
            shown = Work(found, as_json=as_json, stdin=not no_stdin, figures=figures, executions=where)
            result = shown.run(mode, text, timeout)
    if as_json:
        print_json(result.to_json())
    return program_exit_code(result)


def on_terminal(session: str, command: tuple[str, ...], attach: str | None, kernel: str | None) -> int:
    from moorage.cli import interactive

    words = ["/bin/sh", "-c", command[0]] if len(command) == 1 else list(command)
    with connect() as client:
        return interactive.run(client.sessions.get(session), words, attach=attach, kernel=kernel)


@click.command("interrupt")
@session_argument
@click.option("--run", "run_id", metavar="RUN", help="Only this execution.")
@click.option("--kill", is_flag=True, help="End that execution at once.")
@click.option("--kernel", metavar="NAME", help="Of a cluster: worker1, ... [default: main1]")
@json_option
def interrupt_command(session: str, run_id: str | None, kill: bool, kernel: str | None, as_json: bool) -> None:
    """Interrupt what runs in a session, as Ctrl-C would."""
    if kill and not run_id:
        raise click.UsageError("--kill needs --run RUN.")
    with connect() as client:
        found = client.sessions.get(session)
        done = found.executions.get(run_id).kill() if kill and run_id else found.interrupt(run_id, kernel=kernel)
    if as_json:
        print_json({"killed" if kill else "interrupted": done})
    else:
        click.echo(("killed" if kill else "interrupted") if done else "nothing was running")


@click.command("complete")
@session_argument
@click.argument("code")
@click.option("--kernel", metavar="NAME", help="Of a cluster: worker1, ... [default: main1]")
@json_option
def complete_command(session: str, code: str, kernel: str | None, as_json: bool) -> None:
    """Show what could follow a piece of code in a session."""
    with connect() as client:
        found = client.sessions.get(session).complete(code, kernel=kernel)
    if as_json:
        print_json(found.to_json())
    else:
        for suggestion in found.suggestions:
            click.echo(suggestion)


def work(command: tuple[str, ...], code: str | None, file: Any) -> tuple[Any, str]:
    """How to run it, and what: Python code, or a shell command."""
    if sum((bool(command), code is not None, file is not None)) != 1:
        raise click.UsageError("Say what to run: one of -c CODE, -f FILE, -- COMMAND.")
    if file is not None:
        return "query", file.read()
    if code is not None:
        return "query", code
    from moorage.sync.executions import shell

    return "batch", shell(command[0] if len(command) == 1 else command)


class Work:
    """One execution on this terminal."""

    def __init__(
        self,
        session: Session,
        *,
        as_json: bool,
        stdin: bool,
        figures: str | None = None,
        executions: Executions | None = None,
    ) -> None:
        from moorage.results import Collector

        self._executions = executions or session.executions
        self._as_json = as_json
        self._stdin = stdin
        self._figures = None if figures is None else Path(figures)
        self._figure_count = 0
        self._collector = Collector()
        self._execution: Execution | None = None
        self._mode = ""
        self._signalled = 0

    def run(self, mode: Any, text: str, timeout: float | None) -> RunResult:
        self._mode = mode
        opts = {"stdin": False} if mode == "batch" and not self._stdin else None
        records = self._executions.stream(text, mode=mode, timeout=timeout, opts=opts, binary=True)
        return self._show(records, feed=mode == "batch")

    def attach(self, run_id: str) -> RunResult:
        self._started(run_id)
        return self._show(self._executions.get(run_id).output(binary=True), feed=False)

    def _show(self, records: Iterator[Record], *, feed: bool) -> RunResult:
        with self._signals():
            for record in records:
                self._collector.add(record)
                if record.kind == "run":
                    self._started(str(record.data["run_id"]))
                    if feed and self._stdin:
                        threading.Thread(target=self._feed, daemon=True).start()
                elif record.kind == "input_request":
                    if not self._as_json and (prompt := str(record.data.get("prompt") or "")):
                        _write(sys.stdout.buffer, prompt.encode())
                    self._answer(record)
                elif record.kind == "result" and (saved := self._saved(dict(record.data))):
                    note(f"moorage: saved {saved}")
                elif not self._as_json:
                    _show_record(record)
        result = self._collector.result()
        if result.trouble and not self._as_json and not self._signalled:
            note(f"moorage: {result.trouble}")
        return result

    def _saved(self, bundle: dict[str, Any]) -> Path | None:
        """Where the image of a result was written to, if it has one and that was asked for."""
        for mime, suffix in (("image/png", "png"), ("image/svg+xml", "svg"), ("image/jpeg", "jpg")):
            if self._figures is None or not isinstance(image := bundle.get(mime), str):
                continue
            self._figures.mkdir(parents=True, exist_ok=True)
            self._figure_count += 1
            path = self._figures / f"figure-{self._figure_count}.{suffix}"
            path.write_bytes(image.encode() if suffix == "svg" else base64.b64decode(image))
            return path
        return None

    def _started(self, run_id: str) -> None:
        self._collector.run_id = run_id
        self._execution = self._executions.get(run_id)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """What we are sent goes to what runs: Ctrl-C interrupts it, SIGTERM ends it; the second kills, the third leaves it."""
        with terminal.signals(self._signal, *PASSED_ON):
            yield

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled += 1
        if self._execution is None or self._signalled > 2:
            terminal.stop(number, frame)
        assert self._execution is not None
        # not here: a handler must not wait
        if self._signalled == 2:
            note("moorage: killing it")
            ask: Any = self._execution.kill
        elif number == signal.SIGINT or self._mode == "query":  # an interpreter has no milder end than an interrupt
            ask = self._execution.interrupt
        else:
            ask = partial(self._execution.kill, grace=GRACE_SECONDS)
        threading.Thread(target=_quietly, args=(ask,), daemon=True).start()

    def _feed(self) -> None:
        """Our standard input is the program's."""
        assert self._execution is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while data := os.read(sys.stdin.fileno(), 65536):
                if text := decoder.decode(data):
                    self._execution.send_stdin(text)
            self._execution.send_stdin(decoder.decode(b"", True), eof=True)
        except (MoorageError, OSError, ValueError, RuntimeError):
            return  # it has ended, and perhaps so have we

    def _answer(self, record: Record) -> None:
        """Code asks with `input()`; without a standard input it reads an end of file."""
        assert self._execution is not None
        line = ""
        if self._stdin:
            line = _typed_line(hidden=bool(record.data.get("password")))
        self._execution.send_stdin(line, eof=not line)


def _typed_line(*, hidden: bool) -> str:
    """A line with its end; nothing at the end of the input."""
    try:
        if hidden and sys.stdin.isatty():
            return getpass.getpass("") + "\n"
        return sys.stdin.readline()
    except (EOFError, OSError, ValueError):
        return ""


def _quietly(ask: Any) -> None:
    try:
        ask()
    except MoorageError as problem:
        note(f"moorage: {problem}")


def _show_record(record: Record) -> None:
    if record.kind == "stdout":
        _write(sys.stdout.buffer, record.content)
    elif record.kind == "stderr":
        _write(sys.stderr.buffer, record.content)
    elif record.kind == "result":
        _write(sys.stdout.buffer, (_bundle_text(dict(record.data)) + "\n").encode())
    elif record.kind == "error":
        from moorage.results import error_info

        _write(sys.stderr.buffer, f"{error_info(record.data)}\n".encode())
    elif record.kind == "gap":
        note("moorage: there was too much output; some of it was not kept.")


def _write(stream: BinaryIO, content: bytes) -> None:
    stream.write(content)
    stream.flush()


def _bundle_text(bundle: dict[str, Any]) -> str:
    if isinstance(plain := bundle.get("text/plain"), str):
        return plain
    return f"[{', '.join(bundle)}]"


def program_exit_code(result: RunResult) -> int:
    """The program's own, as a shell would see it; 124 when its time was over, as `timeout` has it."""
    if result.reason == "timeout":
        return TIMED_OUT
    if result.exit_code is not None and result.exit_code >= 0:
        return result.exit_code & 0xFF if result.exit_code > 255 else result.exit_code
    if (number := _signal_number(result.signal if result.signal is not None else result.exit_code)) is not None:
        return 128 + number
    return terminal.OK if result.ok else terminal.FAILED


def _signal_number(name: int | str | None) -> int | None:
    if isinstance(name, int):
        return abs(name)
    if name is None:
        return None
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    return int(found) if found is not None else int(name) if name.isdigit() else None
