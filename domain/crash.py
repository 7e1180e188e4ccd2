"""Places where a process may be made to die, between two things that last. In use only while faults are being injected.

`reach("agent.docker.create.after")` does nothing unless `on_reach` was set by the fault campaign's entry point.
"""

from __future__ import annotations

from collections.abc import Callable

#: Set once, at the start of a process that faults are injected into; called with each name that is reached.
on_reach: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """The process is at the named point: everything before it is durable, nothing after it has begun."""
    if on_reach is not None:
        on_reach(name)
