"""Why a session waits, and what it would start with, as text that reads well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from moorage._errors import MoorageError
from moorage.cli.terminal import connect, json_option, print_json, printable, session_argument, table

if TYPE_CHECKING:
    from moorage._models import Explanation, HostReport
    from moorage.sync import Session

#: Of so many hosts that lack the same, all are named.
_NAMED = 5
_PAGE = 1000


@click.command("explain")
@session_argument
@click.option("--hosts", "every_host", is_flag=True, help="Every host by itself.")
@json_option
def explain_command(session: str, every_host: bool, as_json: bool) -> None:
    """Say why a session waits, and what it would start with; why it runs where it does; why it has ended.

    Every way that is offered was tried by the scheduler.
    """
    from moorage.cli.sessions import find

    with connect() as client:
        found = find(client, session)
        told = found.explain(host_limit=_PAGE if every_host else None)
        reports = _all_hosts(found, told) if every_host else []
    if as_json:
        said = told.to_json()
        print_json({**said, "per_host": [one.to_json() for one in reports]} if every_host else said)
        return
    show(told)
    if every_host:
        click.echo()
        rows = [[one.agent, "; ".join(m.text for m in one.missing) or "has room"] for one in reports]
        table(["HOST", "WHAT KEEPS IT FROM THERE"], rows, empty="There are no hosts.")


def _all_hosts(session: Session, told: Explanation) -> list[HostReport]:
    reports = list(told.per_host)
    while reports and len(reports) < told.hosts_total:
        page = session.explain(host_limit=_PAGE, host_offset=len(reports)).per_host
        if not page:
            break
        reports += page
    return reports


def show(told: Explanation) -> None:
    """Paragraphs, with an empty line between them."""
    parts = [_head(told), _queue(told), _hosts(told), told.reservation.text if told.reservation else "", _ways(told)]
    click.echo("\n\n".join(printable(part) for part in parts if part))


def _head(told: Explanation) -> str:
    if told.status is None:
        return "\n".join([_before_it_is_asked_for(told), *told.details])
    return "\n".join([f"{told.name} is {told.status}. {told.text}", *told.details])


def _before_it_is_asked_for(told: Explanation) -> str:
    if told.code == "starting":
        return f"{told.name} would start now on {', '.join(told.on)}."
    return f"{told.name} could be asked for, but would not start now. {told.text}"


def _queue(told: Explanation) -> str:
    if told.position is None or (told.position == 1 and told.code == "starting"):
        return ""
    group = f"the queue of the resource group {told.resource_group}"
    if told.position == 1:
        return f"It is the first in {group}."
    lines = [f"It is number {told.position} of {told.queued} in {group}. Before it:" if told.before else ""]
    return "\n".join([*lines, *(f"  - {before.text}" for before in told.before)])


def _hosts(told: Explanation) -> str:
    """A table, by hand: it is part of a longer text."""
    if not told.hosts or told.code == "starting":
        return ""
    if told.hosts_total == 1:
        return f"The one host of the group, {told.hosts[0].agents[0]}: {told.hosts[0].text}."
    digits = max(len(f"{one.hosts:,}") for one in told.hosts)
    width = max(len(one.text) for one in told.hosts)
    lines = [
        f"  {one.hosts:>{digits},} {'host ' if one.hosts == 1 else 'hosts'}  {one.text.ljust(width)}  "
        f"{_such_as(one.agents, one.hosts)}"
        for one in told.hosts
    ]
    title = f"Of the {told.hosts_total:,} hosts of the group:"
    return "\n".join([title, *lines])


def _such_as(agents: list[str], hosts: int) -> str:
    return ", ".join(agents[:_NAMED]) + (", ..." if hosts > len(agents[:_NAMED]) else "")


def _ways(told: Explanation) -> str:
    later = ("ends", "time")
    sections = (
        ("It would start now", [way.text for way in told.ways if way.now and way.kind not in later]),
        ("It would start", [way.text for way in told.ways if way.kind in later]),
        ("It could start, though not now", [way.text for way in told.ways if not way.now]),
    )
    parts = ["\n".join([title, *(f"  - {text}" for text in texts)]) for title, texts in sections if texts]
    if not told.ways and told.hosts and told.code != "starting" and not told.cut_off:
        parts.append("No single change would let it start now.")
    if told.cut_off:
        parts.append("There may be other ways: the search was ended after a while.")
    return "\n\n".join(parts)


def reason(session: Session) -> str | None:
    """Why a session waits, in one sentence; nothing when that cannot be found out."""
    try:
        return session.explain(search=False, host_limit=0).text
    except MoorageError:
        return None


def show_dry_run(told: Any, *, as_json: bool) -> None:
    """What a creation has answered that was one only for show: an Explanation."""
    print_json(told.to_json()) if as_json else show(told)
