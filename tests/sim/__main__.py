"""`python -m tests.sim [--seeds N] [--first N] [--seconds S]`; `--replay SEED` prints one seed's trace."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time

from tests.sim.server import bench
from tests.sim.story import play


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    words.add_argument("--seeds", type=int, default=200)
    words.add_argument("--first", type=int, default=1)
    words.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    words.add_argument("--replay", type=int, metavar="SEED")
    words.add_argument("--keep-going", action="store_true", help="go on after a violation")
    given = words.parse_args()
    logging.lastResort = None
    sys.unraisablehook = lambda _unraisable: None  # what a killed process would have said
    gc.freeze()
    gc.disable()
    with bench() as stage:
        if given.replay is not None:
            outcome = play(given.replay, stage.fresh())
            print("\n".join(outcome.trace))
            print(f"seed {given.replay}: {outcome.failure or 'holds'} ({outcome.digest[:16]})")
            return 1 if outcome.failure else 0
        started, played, failed, virtual = time.monotonic(), 0, [], 0.0
        for seed in range(given.first, given.first + given.seeds):
            outcome = play(seed, stage.fresh())
            gc.collect()
            played, virtual = played + 1, virtual + outcome.virtual_seconds
            if outcome.failure:
                failed.append(seed)
                print(f"seed {seed}: {outcome.failure}\n  python -m tests.sim --replay {seed}", flush=True)
                if not given.keep_going or len(failed) == 5:
                    break
            if time.monotonic() - started > given.seconds:
                break
        took = time.monotonic() - started
        print(
            f"{played} seeds, {len(failed)} violated; {virtual / 3600:.1f} virtual hours in {took:.1f} s ({took / played:.3f} s a seed)"
        )
        return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of words come in the same order then
        os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
