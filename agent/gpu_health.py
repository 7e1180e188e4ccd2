"""What makes a device unfit to be given to anybody, and what of a reading is worth keeping. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from agent.gpu import Reading

#: What a program causes by its own mistakes, which is its end but no fault of the device; and 63, which is memory that
#: is to be replaced: the device itself tells of it.
HARMLESS: Final = frozenset({13, 31, 43, 45, 63, 68, 109})
#: Memory that is still held here when nobody is to be seen: the driver's own needs are less.
LEFTOVER_MIB: Final = 1024
_XIDS: Final = {
    48: "an uncorrectable memory error",
    61: "a fault of its firmware",
    62: "a fault of its firmware",
    64: "memory that could not be retired",
    74: "a fault of its NVLink",
    79: "it has fallen off the bus",
    92: "many corrected memory errors",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "its firmware does not answer",
    120: "a fault of its firmware",
}


def faults(reading: Reading, xids: Collection[int] = ()) -> list[str]:
    """Why nobody is to have it, in words; nothing when it is fit."""
    if reading.lost:
        return [reading.lost]
    found = []
    if reading.ecc_uncorrected:
        times = "once" if reading.ecc_uncorrected == 1 else f"{reading.ecc_uncorrected} times"
        found.append(f"its memory failed {times} in a way that could not be corrected: reset it")
    if reading.remap_failed:
        found.append("rows of its memory failed and could not be replaced: have it exchanged")
    elif reading.reset_pending:
        found.append("parts of its memory are to be replaced at the next reset: reset it")
    serious = sorted(set(xids) - HARMLESS)
    return found + [
        f"the driver reported {_XIDS.get(xid, 'a fault')} (XID {xid}): reset it, then restart the agent"
        for xid in serious
    ]


def figures(reading: Reading, xids: Collection[int] = ()) -> dict[str, Any]:
    """What a check keeps of it: only what the device tells."""
    told = {
        "memory_used_mib": reading.used_mib,
        "temperature_c": reading.temperature_c,
        "power_watts": reading.power_watts,
        "ecc_uncorrected": reading.ecc_uncorrected,
        "retired_pages": reading.retired_pages,
        "throttle": list(reading.throttle) or None,
        "xid": sorted(set(xids)) or None,
    }
    return {name: value for name, value in told.items() if value is not None} if not reading.lost else {}
