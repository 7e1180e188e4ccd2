"""The policy that a workload is replayed under: what a resource group says, and what binds each user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from domain.durations import parse_seconds
from domain.errors import InvalidResources, InvalidSimulation
from domain.placement import Group
from domain.resources import ResourceSlot

#: What may be limited per user; who is at the limit waits.
LIMITED: Final = frozenset({"cpu", "mem", "gpu", "gpu-mem", "sessions"})
_SHORTEST_HALF_LIFE, _LONGEST_HALF_LIFE = 60.0, 315360000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How hosts are given out. What is not said is as in a new resource group."""

    name: str = "default"
    fair_share: bool = True
    spread: bool = False
    backfill: bool = True
    gpu_sharing: bool = True
    half_life_seconds: float = 7 * 86400.0
    priorities: bool = True  #: those of the workload count; otherwise all are equal
    lifetime_seconds: float | None = None  #: of sessions that asked for no timeout: backfill needs to know an end
    weights: Mapping[str, float] = field(default_factory=dict)  #: of users; 1 for the others
    per_user: Mapping[str, int] = field(default_factory=dict)  #: limits of what one user holds at once

    def group(self, name: str) -> Group:
        return Group(
            name=name,
            fair_share=self.fair_share,
            spread=self.spread,
            backfill=self.backfill,
            gpu_sharing=self.gpu_sharing,
            half_life_seconds=self.half_life_seconds,
        )


#: By the names under which they may be asked for.
KNOWN: Final = {
    policy.name: policy
    for policy in (
        Policy(),
        Policy(name="fair-share"),
        Policy(name="fifo", fair_share=False, backfill=False),
        Policy(name="fifo-backfill", fair_share=False),
        Policy(name="no-backfill", backfill=False),
        Policy(name="spread", spread=True),
    )
}


def described(document: Mapping[str, Any], name: str) -> Policy:
    """The policy of a document; raises InvalidSimulation naming what is wrong in it."""
    policy = Policy(name=name)
    for word, value in document.items():
        policy = replace(policy, **_setting(word, value, f"Policy {name}, {word}"))
    if not policy.fair_share and (policy.weights or "half_life" in document):
        raise InvalidSimulation(
            f"Policy {name} contradicts itself: weights and half_life belong to the ordering fair_share, and it says fifo."
        )
    return policy


def said(text: str) -> Policy:
    """A policy by its name, or as settings between commas: `ordering=fifo,backfill=no`."""
    if text in KNOWN:
        return KNOWN[text]
    if "=" not in text:
        raise InvalidSimulation(
            f"There is no policy '{text}': give the name of a file (.toml, .json), settings such as"
            f" ordering=fifo,backfill=no, or one of {', '.join(KNOWN)}."
        )
    document: dict[str, Any] = {}
    for part in text.split(","):
        word, _, value = part.partition("=")
        document[word.strip()] = value.strip()
    return described(document, text)


def _setting(word: str, value: Any, where: str) -> dict[str, Any]:
    if word == "name":
        return {"name": str(value)}
    if word in ("backfill", "gpu_sharing", "priorities"):
        return {word: _flag(value, where)}
    if word == "ordering":
        return {"fair_share": _choice(value, ("fifo", "fair_share"), where) == "fair_share"}
    if word == "fit":
        return {"spread": _choice(value, ("pack", "spread"), where) == "spread"}
    if word == "half_life":
        seconds = _seconds(value, where)
        if not _SHORTEST_HALF_LIFE <= seconds <= _LONGEST_HALF_LIFE:
            raise InvalidSimulation(f"{where} is from one minute to ten years.")
        return {"half_life_seconds": seconds}
    if word == "lifetime":
        return {"lifetime_seconds": _seconds(value, where)}
    if word == "weights":
        return {"weights": {str(user): _weight(weight, where) for user, weight in _table(value, where).items()}}
    if word == "per_user":
        return {"per_user": _limits(_table(value, where), where)}
    raise InvalidSimulation(
        f"{where}: there is no such setting; there are ordering, fit, backfill, gpu_sharing, half_life, priorities,"
        " lifetime, weights and per_user."
    )


def _limits(given: Mapping[str, Any], where: str) -> dict[str, int]:
    if unknown := sorted(set(given) - LIMITED):
        raise InvalidSimulation(f"{where}: {unknown[0]} is not limited here; {', '.join(sorted(LIMITED))} are.")
    try:
        return {name: ResourceSlot({name: amount}).get(name, 0) for name, amount in given.items()}
    except InvalidResources as error:
        raise InvalidSimulation(f"{where}: {error.message}") from None


def _flag(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    return _choice(value, ("yes", "no", "true", "false"), where) in ("yes", "true")


def _choice(value: Any, words: tuple[str, ...], where: str) -> str:
    if value not in words:
        raise InvalidSimulation(f"{where} is one of {', '.join(words)}, not {value!r}.")
    return str(value)


def _seconds(value: Any, where: str) -> float:
    seconds = parse_seconds(str(value))
    if not seconds:
        raise InvalidSimulation(f"{where} is a span of time, such as 12h or 7d.")
    return seconds


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1000:
        raise InvalidSimulation(f"{where}: a weight is a number from 0.001 to 1000.")
    return float(value)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidSimulation(f"{where} is a table.")
    return value
