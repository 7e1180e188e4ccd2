"""The simulation: `python -m tests.sim [--seeds N] [--seconds S]`, `--replay SEED` for one seed's trace, `planted` for bugs on purpose."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.sim.planted import BUGS, ROOT, Bug
from tests.sim.server import Bench, bench, dsn
from tests.sim.story import play

_TREE = ("domain", "actions", "repositories", "migrations", "agent", "runner", "manager", "images", "tests", "sdk")
_PROGRESS_SECONDS = 10.0


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["run", "planted"], default="run")
    parser.add_argument("--seeds", type=int, default=None, help="200; 1000 for each planted bug")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print this seed's trace")
    parser.add_argument("--twice", type=int, default=0, metavar="N", help="play the first N seeds twice, and compare")
    parser.add_argument("--keep-going", action="store_true", help="go on after a violation")
    parser.add_argument("--only", default="", help="planted bugs whose names fit this expression")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="a copy of the tree with all of them, for the unit tests"
    )
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # PostgreSQL is stopped then, too
    if given.what == "planted":
        chosen = [bug for bug in BUGS if re.search(given.only, bug.name)]
        if given.into is not None:
            return together(chosen, given.into)
        return planted(chosen, given.first, given.seeds or 1000, given.seconds)
    logging.getLogger().addHandler(logging.NullHandler())
    sys.unraisablehook = lambda _unraisable: None  # what a killed process would have said
    warnings.simplefilter("ignore", RuntimeWarning)  # and what it has left unfinished
    gc.freeze()
    gc.disable()
    with bench() as stage:
        if given.replay is not None:
            return replay(stage, given.replay)
        return run(stage, given)


def run(stage: Bench, given: argparse.Namespace) -> int:
    started, played, virtual, steps = time.monotonic(), 0, 0.0, 0
    failed: list[int] = []
    said = started
    for seed in range(given.first, given.first + (given.seeds or 200)):
        outcome = play(seed, stage.fresh())
        if outcome.failure is None and played < given.twice and play(seed, stage.fresh()).digest != outcome.digest:
            print(f"seed {seed}: does not replay")
            failed.append(seed)
        gc.collect()
        played, virtual, steps = played + 1, virtual + outcome.virtual_seconds, steps + len(outcome.trace)
        if outcome.failure:
            failed.append(seed)
            print(f"seed {seed}: {outcome.failure}\n  python -m tests.sim --replay {seed}", flush=True)
            if not given.keep_going or len(failed) == 10:
                break
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"{played} seeds, {len(failed)} violated, {said - started:.0f} s", file=sys.stderr, flush=True)
        if time.monotonic() - started > given.seconds:
            break
    took = time.monotonic() - started
    print(
        f"{played} seeds from {given.first} on, {len(failed)} violated; {steps} steps in {virtual / 3600:.1f} virtual"
        f" hours, {took:.0f} s ({took / played:.2f} s a seed)",
        flush=True,
    )
    return 1 if failed else 0


def replay(stage: Bench, seed: int) -> int:
    outcome = play(seed, stage.fresh())
    print("\n".join(outcome.trace))
    print(f"seed {seed}: {outcome.failure or 'holds'} (trace {outcome.digest[:16]})")
    return 1 if outcome.failure else 0


def together(bugs: Sequence[Bug], folder: Path) -> int:
    """All of them at once, but those whose place another one has changed already."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for bug in bugs:
        file = folder / bug.path
        if file.read_text().count(bug.old) == bug.times:
            bug.apply(folder)
        else:
            print(f"left out, another one is there: {bug.name}")
    return 0


def planted(bugs: Sequence[Bug], first: int, seeds: int, seconds: float) -> int:
    """Each in a copy of the tree; how many seeds it took to find it."""
    missed = 0
    folder = Path(tempfile.mkdtemp(prefix="moorage-planted-"))
    try:
        with dsn() as server:
            for name in _TREE:
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("alembic.ini", "pyproject.toml"):
                shutil.copy2(ROOT / name, folder / name)
            for bug in bugs:
                found = _hunt(bug, folder, server, first, seeds, seconds)
                missed += not found[0].isdigit()
                print(f"| {bug.name} | `{bug.path}` | {found} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(bugs) - missed} of {len(bugs)} found")
    return 1 if missed else 0


def _hunt(bug: Bug, folder: Path, server: str, first: int, seeds: int, seconds: float) -> str:
    """The first seed that finds it, and what was seen; else how far it was looked for."""
    file = folder / bug.path
    before = file.read_text()
    bug.apply(folder)
    try:
        bounds = ["--first", str(first), "--seeds", str(seeds), "--seconds", str(seconds)]
        command = [sys.executable, "-m", "tests.sim", *bounds]
        places = {"PYTHONPATH": f"{folder}:{folder / 'sdk'}", "PYTHONHASHSEED": "0", "DATABASE_URL": server}
        said = subprocess.run(
            command, cwd=folder, env={**os.environ, **places}, capture_output=True, text=True, check=False
        )
        if (seed := re.search(r"^seed (\d+): (.*)", said.stdout, re.MULTILINE)) is None:
            played = re.search(r"^\d+ seeds from \d+ on", said.stdout, re.MULTILINE)
            return f"not found in {played[0]}" if played else f"does not run: {said.stderr[-300:]}"
        return f"{seed[1]} | {re.sub(r'[0-9a-f]{8}-[0-9a-f-]+', '…', seed[2])[:90]}"
    finally:
        file.write_text(before)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of words come in the same order then
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main(sys.argv[1:]))
