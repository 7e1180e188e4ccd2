"""Writes what campaigns have found into docs/fault-ledger.md: `python -m tests.faults ledger RESULTS...`."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

LEDGER: Final = Path(__file__).resolve().parents[2] / "docs" / "fault-ledger.md"
_BEGIN: Final = "<!-- crash points: written by `python -m tests.faults ledger` -->"
_END: Final = "<!-- crash points: end -->"
_BEFORE: Final = "## Bugs found"
_ROLES: Final = ("api", "control", "proxy", "ssh", "manager", "agent")


def write(results: Sequence[Path], note: str = "") -> None:
    """In place of the section that is there. `note`: on what machine that was, and what else it had to do."""
    text = LEDGER.read_text()
    section = f"{_BEGIN}\n{render([_read(file) for file in results], note)}{_END}\n"
    if _BEGIN in text:
        before, _, rest = text.partition(_BEGIN)
        text = before + section + rest.partition(f"{_END}\n")[2]
    else:
        before, found, rest = text.partition(_BEFORE)
        text = f"{before}{section}\n{found}{rest}"
    LEDGER.write_text(text)


def _read(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The kills, and what was said at the end."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if "point" in line], next((line for line in lines if "hits" in line), {})


def render(runs: Sequence[tuple[list[dict[str, Any]], dict[str, Any]]], note: str) -> str:
    out = ["## Crash points: kill -9 between any two things that last", ""]
    out += [
        "`make faults` runs an installation of real processes on real PostgreSQL and a real engine, arms one of the points",
        "that `python -m tests.faults points` lists (they are read out of the code), works until it kills its process, waits",
        "until what was under way is done, and checks: fsck, what was acknowledged, one effect for each key, no execution",
        "twice, nothing left over as seen from outside. Every eighth kill comes at any moment. The results are written here by",
        "`python -m tests.faults ledger RESULTS`.",
        "",
        *([note, ""] if note else []),
    ]
    for kills, end in runs:
        out += _run(kills, end)
    every = [kill for kills, _ in runs for kill in kills]
    return "\n".join([*out, *_by_point(every), ""])


def _run(kills: Sequence[Mapping[str, Any]], end: Mapping[str, Any]) -> list[str]:
    points = {kill["point"] for kill in kills if not kill["point"].startswith("random ")}
    random = sum(kill["point"].startswith("random ") for kill in kills)
    wrong = [kill for kill in kills if kill["violations"]]
    minutes = sum(kill["seconds"] for kill in kills) / 60
    seed, at_any = end.get("seed", "?"), f"{random} of them at any moment"
    out = [
        f"### Seed {seed}: {len(kills)} kills at {len(points)} points, {at_any}, {minutes:.0f} minutes, {len(wrong)} violations",
        "",
        "| process | kills | ready again p50 s | p99 s | worst s | under way done p50 s | p99 s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    by_process: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for kill in kills:
        by_process[kill["process"]].append(kill)
    for process in (*_ROLES, *sorted(by_process.keys() - set(_ROLES) - {""})):
        if found := by_process.get(process):
            ready = sorted(kill["ready_seconds"] for kill in found if kill["ready_seconds"] is not None)
            done = sorted(kill["done_seconds"] for kill in found if kill["done_seconds"] is not None)
            cells = [_share(ready, 0.5), _share(ready, 0.99), _share(ready, 1.0), _share(done, 0.5), _share(done, 0.99)]
            out.append(f"| {process} | {len(found)} | {' | '.join(cells)} |")
    out.append("")
    out += [f"- {kill['point']}: {'; '.join(kill['violations'])}" for kill in wrong]
    hits = Counter(end.get("hits", {}))
    if hits:
        out += [f"The points were passed {hits.total():,} times.", ""]
    return out


def _by_point(kills: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row for each point that was killed at."""
    out = ["<details><summary>Kills and recovery by point</summary>", ""]
    out += [
        "| point | kills | ready again p50 s | worst s | under way done p50 s | worst s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    by_point: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for kill in kills:
        by_point[kill["point"]].append(kill)
    for point, found in sorted(by_point.items()):
        ready = sorted(kill["ready_seconds"] for kill in found if kill["ready_seconds"] is not None)
        done = sorted(kill["done_seconds"] for kill in found if kill["done_seconds"] is not None)
        cells = [_share(ready, 0.5), _share(ready, 1.0), _share(done, 0.5), _share(done, 1.0)]
        out.append(f"| {point} | {len(found)} | {' | '.join(cells)} |")
    return [*out, "", "</details>", ""]


def _share(ordered: Sequence[float], share: float) -> str:
    """The value that so much of them do not exceed."""
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}" if ordered else ""
