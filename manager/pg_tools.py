"""PostgreSQL's own dump and restore: which one fits a server, and how it is run without a password in sight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from manager.postgres import wheel_binaries

#: What a table's line begins with in the words of pg_dump, and in those of pg_restore.
_TABLES: Final = re.compile(r"pg_(?:dump|restore): (?:dumping contents of|processing data for) table \"?([\w.]+)")
#: Called with the name of each table that is begun.
Progress = Callable[[str], None]


class ToolFailed(Exception):
    """One of PostgreSQL's tools is not here, or has refused; the message says what it said."""


def dump(dsn: str, to: Path, *, server: int, progress: Progress) -> None:
    """The whole database, as it is at one moment, into a new file in PostgreSQL's own compressed format."""
    words = ("--format=custom", "--no-owner", "--no-privileges", "--verbose", f"--file={to}")
    _run("pg_dump", dsn, *words, server=server, progress=progress)


def restore(dsn: str, dump_file: Path, *, server: int, progress: Progress) -> None:
    """Into an empty database; everything, or an error."""
    words = ("--no-owner", "--no-privileges", "--single-transaction", "--verbose", str(dump_file))
    _run("pg_restore", dsn, *words, server=server, progress=progress)


def _run(tool: str, dsn: str, *words: str, server: int, progress: Progress) -> None:
    address, secret = _apart(dsn)
    # --dbname is an address here; the words after it may be a file, which comes last
    command = [str(_find(tool, server)), f"--dbname={address}", *words]
    environ = {**os.environ, "LC_ALL": "C", **secret}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ
    ) as running:
        assert running.stderr is not None
        said = [line for line in _told(running.stderr, progress) if "error" in line.lower() or "fatal" in line.lower()]
    if running.returncode != 0:
        raise ToolFailed(f"{tool} failed: {' '.join(said)[:600] or f'exit code {running.returncode}'}")


def _told(lines: Iterator[str], progress: Progress) -> Iterator[str]:
    for line in lines:
        if found := _TABLES.match(line):
            progress(found[1])
        yield line.strip()


def _find(tool: str, server: int) -> Path:
    """The oldest that knows this server: a newer one writes settings that the server does not know."""
    homes = [*wheel_binaries(), *Path("/usr/lib/postgresql").glob("*/bin")]
    if (on_path := shutil.which(tool)) is not None:
        homes.append(Path(on_path).resolve().parent)
    there = {home: _major(home / tool) for home in homes if (home / tool).exists()}
    fitting = {home: major for home, major in there.items() if major >= server}
    if not fitting:
        raise ToolFailed(
            f"No {tool} for PostgreSQL {server} is on this machine: install the package postgresql-client-{server}, "
            "or 'moorage-server[all]'."
        )
    return min(fitting, key=lambda home: fitting[home]) / tool


def _major(tool: Path) -> int:
    told = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r" (\d+)", told)
    return int(found[1]) if found else 0


def _apart(dsn: str) -> tuple[str, Mapping[str, str]]:
    """A DSN without its password, which others could read among the processes; and the password, for the environment."""
    parts = urlsplit(dsn)
    query = parse_qsl(parts.query, keep_blank_values=True)
    password = dict(query).get("password")
    user, at, host = parts.netloc.rpartition("@")
    name, colon, given = user.partition(":")
    if colon:
        password = password or unquote(given)
    kept = urlencode([(key, value) for key, value in query if key != "password"])
    address = urlunsplit((parts.scheme, f"{name}{at}{host}", parts.path, kept, ""))
    return address, {"PGPASSWORD": password} if password else {}
