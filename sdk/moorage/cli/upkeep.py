"""Commands that see whether all is well."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from moorage.cli.terminal import connect, json_option, note, print_json, table

if TYPE_CHECKING:
    from moorage._models import FsckReport


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Put right what can be, after showing what that is.")
@click.option("-y", "--yes", is_flag=True, help="Repair without asking.")
@click.option("--hosts/--no-hosts", default=True, help="Compare the hosts' containers too.  [default: yes]")
@json_option
def fsck_command(repair: bool, yes: bool, hosts: bool, as_json: bool) -> None:
    """Check what must always hold, in the database and on every host. Changes nothing, but with --repair.

    Exit code 1: something is wrong.
    """
    with connect() as client:
        report = client.fsck(hosts=hosts)
        if not as_json:
            _show(report)
        can = sorted({one.check for one in report.findings if one.repairable})
        rows: dict[str, int] = {}
        if repair and can:
            if not (yes or as_json or click.confirm(f"Repair {', '.join(can)}?")):
                raise click.Abort
            rows = client.fsck_repair(can)
            report = client.fsck(hosts=hosts)
    if as_json:
        print_json({**report.to_json(), "repaired": rows})
    elif rows:
        for name, number in rows.items():
            note(f"{name}: {number} rows put right")
        _show(report)
    if report.findings:
        sys.exit(1)


def _show(report: FsckReport) -> None:
    rows = [[one.invariant, one.check, one.subject, one.detail] for one in report.findings]
    looked = f"{len(report.checks)} checks of the database, {len(report.hosts)} host{'s' * (len(report.hosts) != 1)} compared"
    table(["", "CHECK", "WHAT", "WHAT IS WRONG"], rows, empty=f"All is well: {looked}.")
    for one in {one.check: one for one in report.findings}.values():
        more = f" ({one.of} in all)" if one.of > 1 else ""
        note(f"{one.check}{more}: {one.remedy}")
    if report.not_reached:
        note(f"Not reached, so not looked at: {', '.join(report.not_reached)}")
