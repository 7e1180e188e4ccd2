"""`python -m tests.faults run|points|ledger`: the campaign of crash points, the list of them, and the ledger of a run."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from tests.faults.points import all_points


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("points", help="all crash points, by name")
    run = commands.add_parser("run", help="kill, and see that nothing is lost")
    run.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    run.add_argument("--kills", type=int, default=0, help="0: every point once")
    run.add_argument("--seconds", type=float, default=None)
    run.add_argument("--folder", type=Path, default=Path("/var/tmp/moorage-faults"))
    run.add_argument("--only", action="append", default=[], help="the beginning of points' names")
    ledger = commands.add_parser("ledger", help="write the results into docs/fault-ledger.md")
    ledger.add_argument("results", type=Path, nargs="+")
    ledger.add_argument("--note", default="", help="on what machine that was, and what else it had to do")
    given = parser.parse_args()
    if given.command == "points":
        print("\n".join(all_points()))
        return 0
    if given.command == "ledger":
        from tests.faults.ledger import write

        write(given.results, given.note)
        return 0
    from tests.faults.campaign import campaign

    done = asyncio.run(
        campaign(
            given.folder,
            seed=given.seed,
            kills=given.kills,
            seconds=given.seconds,
            only=given.only,
        )
    )
    wrong = [result for result in done.results if result.violations]
    print(f"{len(done.results)} kills, {len(wrong)} with something wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
