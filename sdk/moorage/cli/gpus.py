"""Commands for GPUs: `moorage admin gpu ls|out|in`, and what `info --gpu` and `top --gpu` show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from moorage.cli import terminal
from moorage.cli.terminal import Group, connect, json_option, print_json, table
from moorage.errors import DeviceNotFound

if TYPE_CHECKING:
    from moorage._models import Device, DeviceCheck, DeviceHolder, SessionDevice, SessionDevices
    from moorage.sync import Client

_NEAR = ((90, "one NVLink"), (60, "one PCIe switch"), (40, "one PCIe host bridge"), (20, "one NUMA node"))
_PHASES = {"handover": "handed over", "release": "given back", "watch": "watched"}


@click.group("gpu", cls=Group)
def admin_gpu() -> None:
    """GPUs of all hosts: look at them, take bad ones out, put them in again."""


@admin_gpu.command("ls")
@click.option("--agent", metavar="HOST", help="Only of this host.")
@json_option
def gpu_ls(agent: str | None, as_json: bool) -> None:
    """List GPUs: what they are, who holds them, and which are out and why."""
    with connect() as client:
        found = client.devices.list(agent=agent)
    if as_json:
        print_json([device.to_json() for device in found])
        return
    names = [device.device for device in found]
    headers = ["HOST", "#", "DEVICE", "MODEL", "MEM", "STATE", "HELD BY", "NOTE"]
    rows = [
        [
            device.agent,
            device.index,
            short(device.device, names),
            device.model,
            terminal.memory(device.memory_mib),
            device.state,
            ", ".join(_holder(device, holder) for holder in device.holders),
            note_of(device),
        ]
        for device in found
    ]
    table(headers, rows, empty="No GPUs.")


@admin_gpu.command("out")
@click.argument("device")
@click.option("--reason", required=True, metavar="TEXT", help="That people are told.")
@json_option
def gpu_out(device: str, reason: str, as_json: bool) -> None:
    """Hand a GPU to nobody from now on. DEVICE is a UUID or its beginning, or HOST:NUMBER.

    Sessions that hold it keep it, and are told.
    """
    with connect() as client:
        meant = _find(client, device)
        _changed(client.devices.take_out(meant.agent, meant.device, reason=reason), as_json)


@admin_gpu.command("in")
@click.argument("device")
@json_option
def gpu_in(device: str, as_json: bool) -> None:
    """Offer a GPU again that was taken out. DEVICE is a UUID or its beginning, or HOST:NUMBER."""
    with connect() as client:
        meant = _find(client, device)
        _changed(client.devices.put_in(meant.agent, meant.device), as_json)


def _find(client: Client, text: str) -> Device:
    agent, colon, index = text.rpartition(":")
    wanted = text.removeprefix("gpu/").lower()
    known = client.devices.list()
    found = [one for one in known if one.device.lower() == wanted]
    found = found or [one for one in known if colon and (one.agent, str(one.index)) == (agent, index)]
    found = found or [one for one in known if len(wanted) >= 4 and one.device.lower().startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = "no GPU" if not found else f"{len(found)} GPUs"
    raise DeviceNotFound(f"There is {what} '{text}'; 'moorage admin gpu ls' lists them.")


def _changed(device: Device, as_json: bool) -> None:
    if as_json:
        print_json(device.to_json())
    else:
        click.echo(f"{device.agent}:{device.index} {short(device.device)} {device.state}")
        for holder in device.holders:
            terminal.note(
                f"moorage: {holder.session} ({holder.owner}) holds it as long as it lives, and has been told."
            )


def short(uuid: str, among: Iterable[str] = ()) -> str:
    """Enough of it to name it by."""
    if not uuid.startswith(("GPU-", "MIG-")):
        return uuid
    others = set(among) - {uuid}
    least = 12
    while least < len(uuid) and any(other.startswith(uuid[:least]) for other in others):
        least += 1
    return uuid[:least]


def _holder(device: Device, holder: DeviceHolder) -> str:
    part = f" {terminal.memory(holder.held_mib)}" if holder.held_mib < device.offered_mib else ""
    return f"{holder.session}{part}"


def note_of(device: Device) -> str:
    """What an administrator should know of it."""
    said = [f"{device.out_by}: {device.out_reason}"] if device.out_reason else []
    if not device.healthy and device.out_by == "admin":
        said.append("its host says that it is bad, too")
    if device.shared_only:
        said.append(device.shared_only)
    elif device.outside_mib:
        said.append(f"{terminal.memory(device.outside_mib)} used by others")
    return "; ".join(said + (["simulated"] if device.simulated else []))


# -- top --gpu -----------------------------------------------------------------------------------------------------------
def show_top(devices: Sequence[Device]) -> None:
    """Each device with who uses how much of it."""
    names = [device.device for device in devices]
    headers = ["HOST", "#", "DEVICE", "MODEL", "SESSION", "OWNER", "HELD", "BUSY", "MEM", "POWER", "NOTE"]
    table(headers, [row for device in devices for row in _top_rows(device, names)], empty="No GPUs.")


def _top_rows(device: Device, names: Iterable[str]) -> list[list[object]]:
    about: list[object] = [device.agent, device.index, short(device.device, names), device.model]
    if not device.holders:
        return [[*about, f"({device.state})", "", "", "", "", "", note_of(device)]]
    rows: list[list[object]] = []
    for at, holder in enumerate(device.holders):
        used: list[object] = [
            f"{terminal.memory(holder.held_mib)} of {terminal.memory(device.memory_mib)}",
            percent(holder.busy),
            "" if holder.used_mib is None else f"{holder.used_mib:.0f} MiB",
            watts(holder.power_watts),
        ]
        rows.append([*about, holder.session, holder.owner, *used, "" if at else note_of(device)])
        about = ["", "", "", ""]
    return rows


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def watts(power: float | None) -> str:
    return "" if power is None else f"{power:.0f} W"


# -- info --gpu ----------------------------------------------------------------------------------------------------------
def show_session(found: SessionDevices) -> None:
    """A session's devices with their checks, and what is enforced of them."""
    if not found.devices and not found.earlier:
        click.echo(f"{found.name} has no GPUs.")
        return
    for device in found.devices:
        for line in _session_lines(device, found.devices):
            click.echo(terminal.printable(line))
    for used in found.used:
        click.echo(
            f"{used.kernel} uses now: {used.busy:.2f} of {used.devices} GPUs, {used.used_mib:.0f} MiB, {used.power_watts:.0f} W"
        )
    for earlier in found.earlier:
        said = _check(earlier.check) if earlier.check is not None else ""
        click.echo(terminal.printable(f"try {earlier.attempt} on {earlier.agent}: {short(earlier.device)} {said}"))
    for guarantee in found.guarantees:
        click.echo(f"\nSeen to, of {_KINDS.get(guarantee.kind, guarantee.kind)}: {guarantee.enforced}")
        click.echo(f"Not seen to: {guarantee.not_enforced}")


_KINDS = {"whole": "whole GPUs", "instance": "instances of MIG", "share": "shares"}


def _session_lines(device: SessionDevice, others: Iterable[SessionDevice]) -> list[str]:
    size = terminal.memory(device.memory_mib) if device.memory_mib else "?"
    part = {
        "whole": f"all of its {size}",
        "instance": f"instance {device.profile or ''} with {size}",
        "share": f"a share of {terminal.memory(device.held_mib)} of {size} ({percent(device.share)})",
    }
    head = f"{device.kernel} on {device.agent}: GPU {'?' if device.index is None else device.index} {device.model}"
    lines = [f"{head}, {part.get(device.kind, size)}" + ("" if device.held else ", given back")]
    driver = f"driver {device.driver}, CUDA up to {device.cuda}" if device.driver else ""
    node = "" if device.numa is None else f"NUMA node {device.numa}"
    simulated = "simulated: made up by a test, there is no such device" if device.simulated else ""
    lines.append("  " + ", ".join(text for text in (device.device, node, driver, simulated) if text))
    near = ((other, device.links.get(other.device)) for other in others)
    lines += [f"  {_near(closeness)} from GPU {other.index}" for other, closeness in near if closeness]
    if device.out_reason:
        lines.append(f"  taken out meanwhile: {device.out_reason}; it is yours until you give it back")
    return lines + [f"  {_check(check)}" for check in device.checks]


def _near(closeness: int) -> str:
    return next((f"{name} away" for least, name in _NEAR if closeness >= least), "elsewhere in the same machine, seen")


def _check(check: DeviceCheck) -> str:
    details = check.details
    figures = [
        f"{details[name]:g} {unit}"
        for name, unit in (("temperature_c", "°C"), ("power_watts", "W"), ("memory_used_mib", "MiB used"))
        if isinstance(details.get(name), int | float)
    ]
    told = f"{_PHASES.get(check.phase, check.phase)} {terminal.local_time(check.at)}"
    verdict = "" if check.passed else "BAD: "
    warning = f"; {details['warning']}" if isinstance(details.get("warning"), str) else ""
    return f"{told}: {verdict}{check.message}{warning}" + (f" ({', '.join(figures)})" if figures else "")
