"""How amounts are said to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_ONE: Final = {"cpu": "CPU", "gpu": "GPU", "sessions": "session"}
_UNITS: Final = {"cpu": "CPUs", "mem": "MiB of memory", "gpu": "GPUs", "gpu-mem": "MiB of one GPU"}


def words(slots: Mapping[str, int]) -> str:
    return ", ".join(f"{amount_words(name, amount)} {unit(name, amount)}" for name, amount in slots.items())


def unit(name: str, amount: int = 2) -> str:
    one = 1000 if name == "cpu" else 1
    return _ONE[name] if amount == one and name in _ONE else _UNITS.get(name, name)


def amount_words(name: str, amount: int) -> str:
    return f"{amount / 1000:g}" if name == "cpu" else str(amount)


def pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def names(many: Iterable[str | None]) -> str:
    return " and ".join(sorted(name or "" for name in many))
