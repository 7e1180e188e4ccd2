"""Who of the queue gets which host: pure functions of a snapshot and the time."""

from domain.scheduler.plan import plan

__all__ = ["plan"]
