"""Spans of time as people write them: 90, 90s, 15m, 6h, 7d, 1h30m."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
LONGEST_SECONDS: Final = 100 * 365 * 86400.0


def parse_seconds(text: str) -> float | None:
    """None for what is no span of time."""
    text = text.strip().lower()
    if len(text) > 32:
        return None
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    else:
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return seconds if seconds <= LONGEST_SECONDS else None


def span(seconds: float) -> str:
    """Two units at most, for people: 93784 -> 1 d 2 h"""
    if seconds < 1:
        return "0 s"
    left, parts = round(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
