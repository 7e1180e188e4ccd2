"""Amounts and times as people say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from domain.placement import GPU, GPU_SHARE

_KINDS = {"cpu": "CPUs", "mem": "memory", GPU: "GPUs", GPU_SHARE: "GPU memory", "sessions": "sessions"}


def amount(name: str, units: int) -> str:
    """2 CPUs, 512 MiB of memory, 1 GPU, 20 GiB of GPU memory, 3 sessions"""
    if name == "cpu":
        return f"{units / 1000:g} CPU" + ("" if units == 1000 else "s")
    if name in ("mem", GPU_SHARE):
        return f"{memory(units)} of {_KINDS[name]}"
    what = _KINDS.get(name, name)
    return f"{units} {what.removesuffix('s') if units == 1 and name in _KINDS else what}"


def memory(mib: int) -> str:
    """1.5 GiB; whole MiB when it would not be exact"""
    if mib >= 1024 and mib * 100 % 1024 == 0:
        return f"{mib / 1024:g} GiB"
    return f"{mib} MiB" if mib < 10240 else f"{mib / 1024:.1f} GiB"


def amounts(slots: Mapping[str, int]) -> str:
    return listed([amount(name, units) for name, units in slots.items()])


def listed(words: Sequence[str], word: str = "and") -> str:
    """a, b and c"""
    return f" {word} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def moment(at: datetime, now: datetime) -> str:
    """15:04 UTC (in 25 min); with the date when that is another day."""
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    clock = f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"
    return f"{clock} (in {span((at - now).total_seconds())})" if at > now else f"{clock} (now)"


def span(seconds: float) -> str:
    """45 s, 25 min, 2 h 10 min, 3 d 4 h"""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for unit, length in units:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    if len(parts) > 1 and parts[1].endswith(" s") and not parts[0].startswith(("1 ", "2 ")):
        parts = parts[:1]
    return " ".join(parts[:2])


def bold_start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
