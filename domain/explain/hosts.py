"""What each host lacks for a session, and the same for people: hosts that lack alike are counted together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from domain.explain import words
from domain.explain.values import Away, HostCount, HostReport, Missing
from domain.placement import GPU, Host, PendingSession, Plan, Snapshot
from domain.scheduler.obstacles import Obstacle, obstacles

_EXAMPLES: Final = 5
_TEXTS: Final = {
    "architecture": "other architecture",
    "agent": "not the host that was asked for",
    "image_elsewhere": "does not have its image, a snapshot",
    "store": "does not have the store of its volumes",
    "apart_from": "holds another session of its owner, from which it is to be kept apart",
    "address": "has no address under which other hosts of the cluster reach it, and not room for all of it",
    "reserved": "kept for a session that comes first",
}
_FITS: Final = "has room"


def look(
    session: PendingSession, snapshot: Snapshot, made: Plan, away: Sequence[Away]
) -> tuple[tuple[HostReport, ...], tuple[HostCount, ...]]:
    """Every host of the session's group, and those of them that lack the same, the nearest first."""
    own = replace(snapshot, holdings=tuple(h for h in snapshot.holdings if h.user_id == session.user_id))
    taken = _taken(made)
    found: list[tuple[Host | Away, Sequence[Obstacle]]] = []
    for host in sorted(snapshot.hosts, key=lambda host: host.id):
        if host.resource_group == session.resource_group:
            free = {name: amount - taken.get((host.id, name), 0) for name, amount in host.free.items()}
            found.append((host, obstacles(session, host, own, free=free, reservations=made.reservations)))
    reports = [
        HostReport(agent=host.id, missing=tuple(_missing(o, host, session) for o in all_)) for host, all_ in found
    ]
    reports += [HostReport(agent=one.id, missing=(Missing(code=one.code, text=one.text),)) for one in away]
    return tuple(reports), _counts(found, away, session)


def _taken(made: Plan) -> Mapping[tuple[str, str], int]:
    """By sessions that are placed just now."""
    taken: dict[tuple[str, str], int] = {}
    for placement in made.placements:
        for kernel in placement.kernels:
            for name, amount in kernel.amounts.items():
                taken[kernel.agent_id, name] = taken.get((kernel.agent_id, name), 0) + amount
    return taken


def _missing(obstacle: Obstacle, host: Host | Away, session: PendingSession) -> Missing:
    return Missing(code=obstacle.code, text=_text([obstacle], host.architecture, session))


def _text(alike: Sequence[Obstacle], architecture: str, session: PendingSession) -> str:
    """Of obstacles of one kind on several hosts."""
    match alike[0].code:
        case "insufficient":
            return _too_few([obstacle.missing for obstacle in alike]) + (
                ", even when it is empty" if alike[0].ever else ""
            )
        case "architecture":
            return f"other architecture ({architecture})"
        case "labels" | "gpu_model" | "gpu_sharing":
            return alike[0].detail.removeprefix("has ")
        case code:
            return _TEXTS.get(code, alike[0].detail)


def _too_few(gaps: Sequence[Mapping[str, int]]) -> str:
    """2 GPUs too few; 1 to 3 GPUs and 4 CPUs too few"""
    parts = []
    for name in sorted(gaps[0], key=lambda name: (name != GPU, name)):
        least, most = (pick(gap[name] for gap in gaps) for pick in (min, max))
        number = words.amount(name, least).partition(" ")[0] if name not in ("mem", "gpu-mem") else words.memory(least)
        parts.append(words.amount(name, most) if least == most else f"{number} to {words.amount(name, most)}")
    return f"{words.listed(parts)} too few"


def _counts(
    found: Iterable[tuple[Host | Away, Sequence[Obstacle]]], away: Iterable[Away], session: PendingSession
) -> tuple[HostCount, ...]:
    alike: dict[tuple[object, ...], list[tuple[Host | Away, Sequence[Obstacle]]]] = {}
    for host, all_ in found:
        alike.setdefault(_kind(host, all_), []).append((host, all_))
    counts = []
    for members in alike.values():
        host, all_ = members[0]
        texts, codes = [_FITS], []
        if all_:
            shown = _foremost(all_)
            codes = [obstacle.code for obstacle in shown]
            texts = [
                _text([_foremost(theirs)[at] for _, theirs in members], host.architecture, session)
                for at in range(len(shown))
            ]
        counts.append(_count([one.id for one, _ in members], words.listed(texts), codes))
    absent: dict[tuple[str, str], list[Away]] = {}
    for one in away:
        absent.setdefault((one.code, one.text), []).append(one)
    counts += [_count([one.id for one in ones], text, [code]) for (code, text), ones in absent.items()]
    return tuple(sorted(counts, key=lambda count: (_rank(count), -count.hosts, count.text)))


def _kind(host: Host | Away, all_: Sequence[Obstacle]) -> tuple[object, ...]:
    """Hosts of one kind are told of together; amounts may differ."""
    parts: list[object] = []
    for obstacle in _foremost(all_):
        detail: object = obstacle.detail if obstacle.code in ("labels", "gpu_model", "gpu_sharing") else ""
        if obstacle.code == "architecture":
            detail = host.architecture
        parts.append((obstacle.code, detail, tuple(sorted(obstacle.missing)), obstacle.ever))
    return tuple(parts)


def _foremost(all_: Sequence[Obstacle]) -> Sequence[Obstacle]:
    """What could not be helped by any room says enough."""
    lasting = [obstacle for obstacle in all_ if obstacle.ever and obstacle.code != "insufficient"]
    return lasting[:1] or all_


def _count(agents: Sequence[str], text: str, codes: Sequence[str]) -> HostCount:
    first = tuple(sorted(agents)[:_EXAMPLES])
    return HostCount(hosts=len(agents), text=text, codes=tuple(codes), agents=first)  # type: ignore[arg-type]


def _rank(count: HostCount) -> int:
    """What may pass comes first."""
    if not count.codes:
        return 0
    passing = all(code in ("insufficient", "reserved", "apart_from") for code in count.codes)
    return 1 if passing and "even when" not in count.text else 2
