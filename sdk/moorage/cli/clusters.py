"""Sessions of several kernels: making one, and running something on all of them at once."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from moorage._errors import MoorageError
from moorage.cli import terminal
from moorage.cli.explain import show_dry_run
from moorage.cli.options import Gpus
from moorage.cli.sessions import creation_fields, creation_options, wait_for_running
from moorage.cli.terminal import Group, connect, json_option, note, print_json

if TYPE_CHECKING:
    from moorage.results import Record, RunResult
    from moorage.sync import Session


@click.group("cluster", cls=Group)
def cluster_command() -> None:
    """Sessions of several kernels that find each other by name."""


@cluster_command.command("create")
@click.argument("name", required=False)
@creation_options
@click.option("-w", "--workers", type=click.IntRange(1), default=1, show_default=True, help="Beside the main kernel.")
@click.option("--multi-node", is_flag=True, help="On as many hosts as it takes. [default: all on one host]")
@click.option("--worker-image", metavar="IMAGE", help="Of the workers. [default: that of the main kernel]")
@click.option("--worker-cpu", type=float, metavar="N", help="Of each worker. [default: that of the main kernel]")
@click.option("--worker-mem", metavar="SIZE", help="Of each worker. [default: that of the main kernel]")
@click.option("--worker-gpu", type=Gpus(), help="Of each worker: 2, h100:1. [default: that of the main kernel]")
@click.option("--worker-gpu-mem", metavar="SIZE", help="A share of one GPU for each worker instead: 20g.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs.")
@click.option("--dry-run", is_flag=True, help="Create nothing: say whether it would start now, and if not, why.")
@json_option
def create(
    name: str | None,
    workers: int,
    multi_node: bool,
    worker_image: str | None,
    worker_cpu: float | None,
    worker_mem: str | None,
    worker_gpu: str | None,
    worker_gpu_mem: str | None,
    no_wait: bool,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Create a session of a main kernel and workers. All of them run, or none. Prints its name.

    \b
    moorage cluster create train --workers 3 --cpu 2 --mem 4g --worker-gpu 1
    moorage exec train --all -- hostname
    moorage exec train --all -- torchrun train.py
    moorage modify train --cluster-size 6
    """
    given = {
        "image": worker_image,
        "cpu": worker_cpu,
        "mem": worker_mem,
        "gpu": worker_gpu,
        "gpu_mem": worker_gpu_mem,
    }
    worker = {name: value for name, value in given.items() if value is not None}
    with connect() as client:
        session = client.sessions.create_cluster(
            name,
            workers=workers,
            multi_node=multi_node,
            worker=worker or None,
            wait=False,
            dry_run=dry_run,
            **creation_fields(**fields),
        )
        if dry_run:
            show_dry_run(session, as_json=as_json)
            return
        if not no_wait:
            try:
                wait_for_running(session, quiet=as_json)
            except KeyboardInterrupt:
                note(f"moorage: {session.name} goes on; 'moorage wait {session.name}' waits, 'moorage rm' ends it.")
                raise
        if as_json:
            print_json(session.info.to_json())
        else:
            click.echo(session.name)


def run_everywhere(session: Session, mode: Any, text: str, timeout: float | None, *, as_json: bool) -> int:
    """Run it on every kernel at once, each line under its kernel's name; the first exit code that is not 0."""
    names = [kernel.name for kernel in session.info.kernels if kernel.status == "RUNNING"]
    missing = [kernel.name for kernel in session.info.kernels if kernel.status != "RUNNING"]
    if missing:
        note(f"moorage: without {', '.join(missing)}, which does not run")
    width = max((len(name) for name in names), default=0)
    screen = _Screen(width, shown=not as_json)
    runs = [_Run(session, name, screen) for name in names]
    with ThreadPoolExecutor(max(len(runs), 1)) as threads:
        futures = [threads.submit(run.run, mode, text, timeout) for run in runs]
        try:
            _wait(futures)
        except KeyboardInterrupt:
            for run in runs:
                threading.Thread(target=run.interrupt, daemon=True).start()
            _wait(futures)
    results = {run.name: future.result() for run, future in zip(runs, futures, strict=True)}
    if as_json:
        print_json({name: result.to_json() for name, result in results.items()})
    from moorage.cli.running import program_exit_code

    codes = {name: program_exit_code(result) for name, result in results.items()}
    failed = {name: code for name, code in codes.items() if code}
    if failed and not as_json:
        note("moorage: " + ", ".join(f"{name} ended with exit code {code}" for name, code in failed.items()))
    return next(iter(failed.values()), terminal.OK)


def _wait(futures: list[Any]) -> None:
    for future in futures:
        future.exception()  # raised where the results are taken


class _Screen:
    """Whole lines, never mixed."""

    def __init__(self, width: int, *, shown: bool) -> None:
        self._width = width
        self._shown = shown
        self._lock = threading.Lock()

    def write(self, name: str, stream: str, lines: bytes) -> None:
        if not self._shown or not lines:
            return
        to = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        head = f"{name.ljust(self._width)} | ".encode()
        with self._lock:
            to.write(b"".join(head + line for line in lines.splitlines(keepends=True)))
            to.flush()


class _Run:
    """On one kernel."""

    def __init__(self, session: Session, name: str, screen: _Screen) -> None:
        self.name = name
        self._executions = session.kernel(name).executions
        self._screen = screen
        self._rest = {"stdout": b"", "stderr": b""}
        self._run_id: str | None = None

    def run(self, mode: Any, text: str, timeout: float | None) -> RunResult:
        from moorage.results import Collector

        collector = Collector()
        opts = {"stdin": False} if mode == "batch" else None
        for record in self._executions.stream(text, mode=mode, timeout=timeout, opts=opts, binary=True):
            if record.kind == "run":
                self._run_id = collector.run_id = str(record.data["run_id"])
            elif record.kind == "input_request" and self._run_id is not None:
                self._executions.get(self._run_id).send_stdin("", eof=True)  # which of them should be asked?
            collector.add(record)
            self._show(record)
        for stream, rest in self._rest.items():
            self._screen.write(self.name, stream, rest + b"\n" if rest else b"")
        return collector.result()

    def _show(self, record: Record) -> None:
        from moorage.results import error_info

        if record.kind in self._rest:
            whole, newline, rest = (self._rest[record.kind] + record.content).rpartition(b"\n")
            self._rest[record.kind] = rest
            self._screen.write(self.name, record.kind, whole + newline)
        elif record.kind == "result" and isinstance(plain := record.data.get("text/plain"), str):
            self._screen.write(self.name, "stdout", f"{plain}\n".encode())
        elif record.kind == "error":
            self._screen.write(self.name, "stderr", f"{error_info(record.data)}\n".encode())

    def interrupt(self) -> None:
        try:
            if self._run_id is not None:
                self._executions.get(self._run_id).interrupt()
        except MoorageError as problem:
            note(f"moorage: {self.name}: {problem}")
