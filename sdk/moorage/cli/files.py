"""Commands for a session's files."""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.terminal import PLACE, connect, json_option, print_json, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moorage._models import FileStat
    from moorage.sync import Client, Files


@click.command("cp")
@click.argument("source", type=PLACE, metavar="SOURCE")
@click.argument("target", type=PLACE, metavar="TARGET")
@click.option("-r", "--recursive", is_flag=True, help="A folder with everything in it.")
@click.option("--no-clobber", is_flag=True, help="Do not replace a file that is there.")
@click.option("--kernel", metavar="NAME", help="Of a cluster, the kernel that is meant, such as worker1.")
@json_option
def cp_command(source: str, target: str, recursive: bool, no_clobber: bool, kernel: str | None, as_json: bool) -> None:
    """Copy files to and from a session.

    \b
    moorage cp data.csv demo:                into the session's home, /home/work
    moorage cp -r src demo:project           a folder; what is in it comes to be in 'project'
    moorage cp demo:out/model.bin .          out of the session
    moorage cp -r demo:out out.tar           a folder as a tar archive
    moorage cp demo:report.txt -             to standard output ('-' as SOURCE: from standard input)

    A local name that holds a ':' is written with a folder: ./a:b
    """
    here, there = split(source), split(target)
    if (here is None) == (there is None):
        both = "both are in sessions: copy through a local file" if here else "none names a session: write SESSION:PATH"
        raise click.UsageError(f"One of SOURCE and TARGET must be in a session; {both}.")
    if there is not None:
        _upload(source, *there, recursive, no_clobber, kernel, as_json)
    elif here is not None:
        _download(*here, target, recursive, no_clobber, kernel, as_json)


def _files_of(client: Client, session: str, kernel: str | None) -> Files:
    found = client.sessions.get(session)
    return found.kernel(kernel).files if kernel else found.files


def _upload(
    source: str, session: str, path: str, recursive: bool, no_clobber: bool, kernel: str | None, as_json: bool
) -> None:
    local = Path(source)
    if source != "-":
        if not local.exists():
            raise FileNotFoundError(2, "there is no such file here", source)
        if local.is_dir() and not recursive:
            raise click.UsageError(f"{source} is a folder; copy it with -r.")
    with connect() as client:
        files = _files_of(client, session, kernel)
        target = path or ("stdin" if source == "-" else local.resolve().name)
        if source != "-" and not local.is_dir() and not path.endswith("/") and path and _is_folder(files, path):
            target = f"{path}/"
        if source == "-":
            sent = [files.write(target, sys.stdin.buffer, overwrite=not no_clobber)]
        else:
            with terminal.progress(local.name, shown=not as_json) as report:
                sent = files.upload(local, target, overwrite=not no_clobber, on_progress=report)
    if as_json:
        print_json([stat.to_json() for stat in sent])


def _is_folder(files: object, path: str) -> bool:
    from moorage.errors import FileNotFound
    from moorage.sync import Files

    assert isinstance(files, Files)
    try:
        return files.stat(path).type == "directory"
    except FileNotFound:
        return False


def _download(
    session: str, path: str, target: str, recursive: bool, no_clobber: bool, kernel: str | None, as_json: bool
) -> None:
    path = path or "."
    with connect() as client:
        files = _files_of(client, session, kernel)
        if target == "-":
            for chunk in files.stream(path):
                sys.stdout.buffer.write(chunk)
            return
        stat = files.stat(path)
        if stat.type == "directory" and not recursive:
            raise click.UsageError(f"{session}:{path} is a folder; copy it with -r.")
        local = Path(target)
        if local.is_dir() and posixpath.basename(posixpath.normpath(path)) not in ("", "."):
            local = local / posixpath.basename(posixpath.normpath(path))
        if no_clobber and local.exists():
            raise FileExistsError(17, "is there already", str(local))
        with terminal.progress(posixpath.basename(path), shown=not as_json) as report:
            written = files.download(path, local, on_progress=report)
    if as_json:
        print_json({"path": str(written), "type": stat.type})


@click.command("ls")
@click.argument("location", type=PLACE, metavar="SESSION[:PATH]")
@click.argument("path", required=False)
@click.option("-l", "--long", is_flag=True, help="With size, time, permissions and owner.")
@click.option("--kernel", metavar="NAME", help="Of a cluster, the kernel that is meant, such as worker1.")
@json_option
def ls_command(location: str, path: str | None, long: bool, kernel: str | None, as_json: bool) -> None:
    """List a session's files; by default those of its home, /home/work."""
    session, folder = split(location) or (location, "")
    with connect() as client:
        found = _files_of(client, session, kernel).list(path or folder or ".")
    show_files(found, long=long, as_json=as_json)


def show_files(found: Sequence[FileStat], *, long: bool, as_json: bool) -> None:
    if as_json:
        print_json([stat.to_json() for stat in found])
        return
    if not long:
        for stat in found:
            click.echo(terminal.printable(stat.name) + ("/" if stat.type == "directory" else ""))
        return
    table(
        ["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"],
        [
            [
                f"{_letter(stat.type)}{_permissions(stat.mode)}",
                stat.owner,
                terminal.size(stat.size),
                terminal.local_time(stat.mtime),
                stat.name + (f" -> {stat.link_target}" if stat.link_target else ""),
            ]
            for stat in found
        ],
        empty="The folder is empty.",
    )


def split(text: str) -> tuple[str, str] | None:
    """Session and path of `session:path`; None for a local name."""
    session, colon, path = text.partition(":")
    if not colon or "/" in session or session in ("", ".", "..", "-"):
        return None
    return session, path


def _letter(kind: str) -> str:
    return {"directory": "d", "link": "l", "symlink": "l", "file": "-"}.get(kind, "?")


def _permissions(mode: str) -> str:
    bits = int(mode or "0", 8)
    return "".join(letter if bits & (1 << (8 - i)) else "-" for i, letter in enumerate("rwxrwxrwx"))
