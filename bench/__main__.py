"""`python -m bench [NAME...]`: benchmarks side by side with their references; one table, and JSON in bench/results/."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext

from bench.installation import installation
from bench.report import Row, save, show

#: In this order; each module's `run(installation)` yields rows.
NAMES = (
    "memory",
    "create",
    "execute",
    "inference",
    "worker",
    "pty",
    "rest_reads",
    "files",
    "small_files",
    "proxy",
    "grpc_relay",
    "placement",
    "scheduled",
    "plan",
    "simulate",
    "bombs",
)
#: These need nothing that runs.
PURE = {"plan", "simulate"}


def load(words: list[str]) -> int:
    """`python -m bench load [SECONDS=600]`: takes its time, and a machine of its own, so it is run by its name only."""
    from bench.load import run

    rows = list(run(None, words))
    show(rows)
    print(f"bench: written to bench/results/{save(rows).name}")
    return 0


def main(wanted: list[str]) -> int:
    if wanted[:1] == ["load"]:
        return load(wanted[1:])
    if unknown := set(wanted) - set(NAMES):
        print(f"bench: there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    with nullcontext() if wanted and PURE.issuperset(wanted) else installation() as running:
        for name in wanted or NAMES:
            print(f"bench: {name} ...", file=sys.stderr, flush=True)
            rows += importlib.import_module(f"bench.{name}").run(running)
    show(rows)
    print(f"bench: written to bench/results/{save(rows).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
