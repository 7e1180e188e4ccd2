"""What `moorage doctor` says: one line for each thing that it looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  #: works, and will hurt one day
    BAD = "bad"  #: does not work, or is a door left open


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    level: Level
    subject: str  #: engine, postgres, ...
    found: str
    meaning: str = ""  #: what follows from it, and what to do


def fine(subject: str, found: str) -> Diagnosis:
    return Diagnosis(level=Level.OK, subject=subject, found=found)


def warn(subject: str, found: str, meaning: str) -> Diagnosis:
    return Diagnosis(level=Level.WARN, subject=subject, found=found, meaning=meaning)


def bad(subject: str, found: str, meaning: str) -> Diagnosis:
    return Diagnosis(level=Level.BAD, subject=subject, found=found, meaning=meaning)


def release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: `v1.1.5+ds1` is (1, 1, 5); () when there are none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


_SIGNS = {Level.OK: "  ok  ", Level.WARN: " warn ", Level.BAD: " BAD  "}


def show(found: Sequence[Diagnosis]) -> str:
    """As people read it: what was found, and below what follows from it."""
    width = max(len(one.subject) for one in found)
    lines = []
    for one in found:
        lines.append(f"[{_SIGNS[one.level]}] {one.subject:<{width}}  {one.found}")
        if one.meaning:
            lines.append(f"{'':<8} {'':<{width}}  -> {one.meaning}")
    return "\n".join(lines)
