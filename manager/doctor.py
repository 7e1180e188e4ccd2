"""`moorage doctor`: looks at this machine's installation and says what may hurt, what it means and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from domain.doctor import Diagnosis, bad, fine, release, warn
from domain.errors import DatabaseUnavailable
from manager.config import FILE_NAME, ConfigError, ManagerConfig
from repositories import doctor as rows
from repositories.database import connected
from repositories.fsck import find
from repositories.migrate import newest_revision

_OLDEST_POSTGRES: Final = 15
_CLOCK_SECONDS: Final = 2.0
_SECRETS: Final = ("manager.toml", "admin.json", "pki/*.key", "pki/ssh_*key", "pki/ssh_ca")


async def examine(data_dir: Path, *, now: datetime) -> list[Diagnosis]:
    """The manager whose things are in `data_dir`, and the database that it uses."""
    try:
        config = ManagerConfig.load(data_dir)
    except ConfigError as error:
        return [bad("manager", str(error), "the manager of this machine cannot start")]
    found = [fine("version", version("moorage-server")), *_files(data_dir)]
    if not config.database_url:
        said = f"{data_dir / FILE_NAME} names none, and DATABASE_URL is not set"
        return [*found, bad("postgres", said, "the manager cannot start")]
    try:
        async with connected(config.database_url) as connection:
            return [*found, *await _database(connection, now)]
    except DatabaseUnavailable as error:
        meaning = "nothing works without it; 'moorage status' says whether it was started"
        return [*found, bad("postgres", f"does not answer: {error}", meaning)]


def _files(data_dir: Path) -> Iterator[Diagnosis]:
    secrets = [path for pattern in _SECRETS for path in sorted(data_dir.glob(pattern))]
    open_ones = [str(path) for path in secrets if path.stat().st_mode & 0o077]
    if open_ones:
        names = ", ".join(open_ones)
        yield bad(
            "secrets",
            f"{names} can be read by others",
            "whoever reads them owns the installation; chmod 600, then change them",
        )
    else:
        yield fine("secrets", f"readable by their owner only, in {data_dir}")
    if data_dir.stat().st_mode & 0o022:
        yield bad("data dir", f"{data_dir} may be written by others", f"chmod 700 {data_dir}")


async def _database(connection: Any, now: datetime) -> list[Diagnosis]:
    settings = await rows.settings(connection)
    said = await rows.facts(connection)
    found = [*_server(settings), *_schema(said["revision"])]
    if abs(offset := (said["now"] - now).total_seconds()) > _CLOCK_SECONDS:
        meaning = "leases and lifetimes go by the database's clock; let both machines use NTP"
        found.append(warn("clock", f"the database is {offset:+.1f} s off this machine", meaning))
    else:
        found.append(fine("clock", f"within {abs(offset):.1f} s of the database's"))
    if said["revision"] is None:
        return found
    found += _fleet(await rows.fleet(connection))
    wrong = [one for one in await find(connection, now=said["now"]) if one.check != "durability"]
    if wrong:
        names = ", ".join(sorted({one.check for one in wrong}))
        found.append(
            bad(
                "invariants",
                f"{len(wrong)} things are not as they should be: {names}",
                "'moorage admin fsck' tells what, and what to do",
            )
        )
    else:
        found.append(fine("invariants", "all hold in the database; 'moorage admin fsck' compares the hosts as well"))
    return found


def _server(settings: Mapping[str, str]) -> Iterator[Diagnosis]:
    number = settings["server_version"]
    if release(number)[:1] < (_OLDEST_POSTGRES,):
        yield bad("postgres", number, f"{_OLDEST_POSTGRES} is the oldest that is supported")
    else:
        yield fine("postgres", number)
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if settings[name] == "off":
            yield bad(
                "durability",
                f"{name} is off",
                "what users were told is done may be lost with the machine; switch it on",
            )
    if int(settings["max_connections"]) < 60:
        yield warn(
            "connections",
            f"{settings['max_connections']} at most",
            "a manager of each role takes up to 60; set max_connections to 100",
        )
    if settings["idle_in_transaction_session_timeout"] != "0":
        yield fine("idle transactions", f"ended after {settings['idle_in_transaction_session_timeout']} ms")


def _schema(revision: str | None) -> Iterator[Diagnosis]:
    newest = newest_revision()
    if revision is None:
        yield warn("schema", "the database is empty", "'moorage up' or the first manager makes it")
    elif revision < newest:
        yield warn(
            "schema",
            f"{revision}, and this version has {newest}",
            "the next start of a manager upgrades it; make a backup before",
        )
    elif revision > newest:
        yield bad(
            "schema",
            f"{revision}, and this version knows only {newest}",
            "a newer version has upgraded it: install that one here too",
        )
    else:
        yield fine("schema", f"{revision}, the newest")


def _fleet(said: Mapping[str, Any]) -> Iterator[Diagnosis]:
    if said["managers"]:
        yield fine("managers", f"{said['managers']} processes have been seen lately")
    else:
        yield warn("managers", "none has been seen lately", "'moorage up' starts what is needed")
    for agent in said["agents"]:
        subject = f"host {agent['id']}"
        if agent["lost"]:
            yield bad(
                subject,
                f"not heard of since {agent['seen_at']:%Y-%m-%d %H:%M} UTC",
                "its sessions go on without control; start its agent, or see its log",
            )
        for warning in agent["warnings"] or ():
            yield warn(subject, str(warning), "said by its agent")
        if agent["version"] and agent["version"] != version("moorage-server"):
            yield warn(
                subject, f"has version {agent['version']}", "one release apart is fine; upgrade it before the next one"
            )
        if agent["quarantined"]:
            yield warn(
                subject,
                f"{agent['quarantined']} containers that nothing is known of",
                "'moorage admin fsck' names them",
            )
    if not said["agents"]:
        yield warn(
            "hosts",
            "none has joined",
            "no session can start; 'moorage admin agent token', then 'moorage agent join' on a host",
        )
