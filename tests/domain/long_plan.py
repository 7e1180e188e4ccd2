"""`python -m tests.domain.long_plan [EXAMPLES [FIRST]]`: plans of generated snapshots, checked one by one; 100,000 by default.

The short run in `make test` is of the same snapshots, by hypothesis. Each seed that fails is said, and can be run alone.
"""

from __future__ import annotations

import sys
import time

from tests.domain.snapshots import seeded
from tests.domain.test_plan_properties import assert_right


def main(examples: int, first: int) -> int:
    started, failed, placed = time.monotonic(), [], 0
    for seed in range(first, first + examples):
        # one in ten has a longer queue, on more hosts
        snapshot = seeded(seed, hosts=8, pending=40) if seed % 10 == 0 else seeded(seed)
        try:
            placed += len(assert_right(snapshot).placements)
        except Exception as error:  # whatever it is, the others go on
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    seconds = time.monotonic() - started
    print(f"{examples} snapshots, {placed} placements, {len(failed)} violations, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*given, *(100_000, 0)[len(given) :]))
