"""What sessions use and have used: live figures, series, and who holds what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from moorage import _wire
from moorage._models import Metrics, Top
from moorage.aio._transport import Transport


class SessionReports:
    """Of one session; part of `Session`."""

    _transport: Transport
    _base: str
    _owner: dict[str, str]

    async def stats(self, *, kernel: str | None = None) -> dict[str, Any]:
        """What its container's own accounting says at this moment: counters since its start, in seconds and bytes."""
        params = {**self._owner, **_wire.query(kernel=kernel)}
        found: dict[str, Any] = await self._transport.get(f"{self._base}/statistics", **params)
        return found

    async def metrics(
        self,
        range: str | float = "15m",
        step: str | float | None = None,
        *,
        until: datetime | str | None = None,
        kernel: str | None = None,
    ) -> Metrics:
        """What its containers have used, in steps over time; `now` of each is the last sample.

        `range` and `step` in seconds or as "15m", "6h", "7d"; about 120 points when no step is given.
        """
        end = until.isoformat() if isinstance(until, datetime) else until
        params = {**self._owner, **_wire.query(range=_span(range), step=_span(step), until=end, kernel=kernel)}
        return Metrics.from_json(await self._transport.get(f"{self._base}/metrics", **params))


class ClientReports:
    """Of many sessions; part of `Client`."""

    _transport: Transport

    async def top(self, *, all: bool = False, sort: str = "cpu") -> Top:
        """Who holds and who uses what now; `all` is everybody, for administrators. `sort`: cpu, mem, gpu or held."""
        params = _wire.query(all=all or None, sort=sort)
        return Top.from_json(await self._transport.get(_wire.path("top"), **params))


def _span(value: str | float | None) -> str | None:
    return value if value is None or isinstance(value, str) else f"{value:g}"
