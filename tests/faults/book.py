"""What a campaign has seen: each fault with its violations, and how long it took until all was well again."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Book:
    """`violations` stays empty, or the campaign has failed."""

    seed: int
    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    begun_at: float = field(default_factory=time.monotonic)

    def fault(self, name: str, found: Sequence[str] = ()) -> None:
        """One fault was injected and is over; `found` is what was wrong after it."""
        self.faults.append(name)
        self.violations += [f"{name}: {one}" for one in found]
        said = "; ".join(found) if found else "all is well"
        print(f"{time.monotonic() - self.begun_at:7.1f} s  {name}: {said}", file=sys.stderr, flush=True)

    def took(self, what: str, seconds: float) -> None:
        self.seconds[what].append(seconds)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.took(what, time.monotonic() - begun)

    def table(self) -> str:
        """In Markdown."""
        lines = ["| recovery | n | p50 s | p99 s | most s |", "|---|---|---|---|---|"]
        for what, seconds in sorted(self.seconds.items()):
            ordered = sorted(seconds)
            p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.99))
            lines.append(f"| {what} | {len(ordered)} | {p50:.2f} | {p99:.2f} | {ordered[-1]:.2f} |")
        return "\n".join(lines)

    def finish(self, file: Path | None = None) -> int:
        """Print it all; an exit code."""
        print(self.table())
        print(f"seed {self.seed}: {len(self.faults)} faults, {len(self.violations)} violations")
        for violation in self.violations:
            print(f"  {violation}")
        if file is not None:
            told = {"seed": self.seed, "faults": self.faults, "violations": self.violations, "seconds": self.seconds}
            file.write_text(json.dumps(told, indent=1))
        return 1 if self.violations else 0
