"""Limits of what sessions may have: their names, their units, and the sentences that refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from domain.durations import parse_seconds, span
from domain.errors import InvalidLimit
from domain.resources import MAX_AMOUNT, ResourceSlot

LimitScope = Literal["keypair", "user", "project", "domain"]
SCOPES: Final[tuple[LimitScope, ...]] = ("keypair", "user", "project", "domain")

PER_SESSION: Final = "session."  #: before a slot's name: of each session by itself
#: Limits of each session by itself; nothing is summed up. Migration 0012 says the same.
CEILINGS: Final = frozenset({"lifetime", "idle", "priority"})
COUNTS: Final = frozenset({"sessions", "pending_sessions", "volumes", "images"})
#: Beyond these, requests are refused: there is no queue for them.
_REFUSING: Final = CEILINGS | {"pending_sessions", "volumes", "images"}
_SLOT: Final = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
_MOST_SECONDS: Final = 10 * 365 * 86400


def is_ceiling(name: str) -> bool:
    return name in CEILINGS or name.startswith(PER_SESSION)


def slot_of(name: str) -> str | None:
    """The slot that is limited, in total or per session."""
    slot = name.removeprefix(PER_SESSION)
    return None if slot in CEILINGS | COUNTS else slot


def may_wait(name: str) -> bool:
    """Whether sessions beyond it may wait in the queue until there is room."""
    return name not in _REFUSING and not is_ceiling(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A limit as it is to be."""

    name: str
    amount: int
    waits: bool = False


def parse(name: str, value: object, *, waits: bool = False) -> Wanted:
    """Raises InvalidLimit for what is no limit, or no amount of it."""
    slot = slot_of(name)
    if not _SLOT.fullmatch(slot) if slot is not None else name.startswith(PER_SESSION):
        raise InvalidLimit(
            f"'{name[:80]}' is no limit: name a resource, session.RESOURCE, or one of {_known()}.", name=name
        )
    if waits and not may_wait(name):
        raise InvalidLimit(f"What exceeds {name} is refused: nothing can wait for it.", name=name)
    if slot is not None:
        amount = ResourceSlot({slot: value}).get(slot, 0)
    elif name in ("lifetime", "idle"):
        amount = _seconds(name, value)
    else:
        amount = _whole(name, value, 100 if name == "priority" else MAX_AMOUNT)
    return Wanted(name=name, amount=amount, waits=waits)


def _known() -> str:
    return ", ".join(sorted(CEILINGS | COUNTS))


def _whole(name: str, value: object, most: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidLimit(f"The limit {name} is a whole number from 0 to {most}.", name=name)
    return value


def _seconds(name: str, value: object) -> int:
    seconds = parse_seconds(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= _MOST_SECONDS:
        raise InvalidLimit(f"The limit {name} is a time from 1 second to 10 years: seconds, or '30m', '7d'.", name=name)
    return int(seconds)


# -- for people ---------------------------------------------------------------------------------------------------
_NOUNS: Final = {"cpu": "CPU", "gpu": "GPU", "sessions": "session", "pending_sessions": "session", "volumes": "volume"}


def in_words(name: str, amount: int) -> str:
    """2 CPUs, 1.5 GiB, 3 sessions, 7 d; a limit that has no unit of its own is a bare number."""
    kind = name.removeprefix(PER_SESSION)
    if kind in ("mem", "gpu-mem"):
        return f"{amount / 1024:.4g} GiB" if amount >= 1024 else f"{amount} MiB"
    if kind in ("lifetime", "idle"):
        return span(amount)
    number = f"{amount / 1000:g}" if kind == "cpu" else str(amount)
    noun = {**_NOUNS, "images": "image"}.get(kind)
    return number if noun is None else f"{number} {noun}{'' if number == '1' else 's'}"


def refusal(full: Mapping[str, Any]) -> str:
    """One sentence: the limit, whose it is, what is in use, and what was asked for."""
    name, scope, of = full["name"], full["scope"], full["of"]
    limit = f"The limit {name} of {scope} {of} is {in_words(name, full['max'])}"
    asked = in_words(name, full["asked"])
    if full["alone"]:
        return f"{limit}, and this session alone asks for {asked}; ask for less, or ask an administrator for more."
    use = [
        _are(in_words(name, full[key]), how) for key, how in (("used", "running"), ("queued", "queued")) if full[key]
    ]
    return (
        f"{limit}: {' and '.join(use) or 'nothing is in use'}, so that {asked} more would exceed it; "
        "end something, or ask an administrator for more."
    )


def _are(words: str, how: str) -> str:
    return f"{words} {'is' if words.startswith('1 ') else 'are'} {how}"


def facts(full: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs."""
    return {"limit": full["name"], **{key: full[key] for key in ("scope", "of", "max", "used", "queued", "asked")}}


def contradictions(limits: Iterable[Wanted]) -> list[str]:
    """What cannot be meant, one sentence each."""
    known = {one.name: one for one in limits}
    found = []
    for name, one in sorted(known.items()):
        slot = slot_of(name)
        if name.startswith(PER_SESSION) and slot in known and one.amount > known[slot].amount:
            found.append(
                f"{name} allows one session {in_words(name, one.amount)}, and {slot} all of them together only "
                f"{in_words(slot, known[slot].amount)}."
            )
    pending, most, idle, life = (known.get(name) for name in ("pending_sessions", "sessions", "idle", "lifetime"))
    if pending and most and not most.waits and pending.amount > most.amount:
        found.append(
            f"pending_sessions is {pending.amount}, and sessions refuses more than {most.amount} of all kinds."
        )
    if idle and life and idle.amount > life.amount:
        found.append(f"idle is {span(idle.amount)}, and no session lives longer than {span(life.amount)} (lifetime).")
    return found
