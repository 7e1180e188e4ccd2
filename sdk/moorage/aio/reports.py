"""What sessions use and have used: live figures, series, and who holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from moorage import _wire
from moorage._models import AbuseReport, FsckReport, Metrics, SessionDevices, SessionInfo, Top, Usage, WatchRules
from moorage.aio._transport import Transport, decoded


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
        asked = _wire.query(range=_span(range), step=_span(step), until=_time(until), kernel=kernel)
        params = {**self._owner, **asked}
        return Metrics.from_json(await self._transport.get(f"{self._base}/metrics", **params))

    async def gpus(self) -> SessionDevices:
        """Its GPUs: model, UUID, share, the checks at hand-over and release, use now, and what is seen to of them."""
        return SessionDevices.from_json(await self._transport.get(f"{self._base}/gpus", **self._owner))

    async def abuse_report(self) -> AbuseReport:
        """Whether it wastes or harms what is shared, rule by rule, with figures, times and thresholds."""
        return AbuseReport.from_json(await self._transport.get(f"{self._base}/abusing-report", **self._owner))

    async def exempt(self, exempt: bool = True, *, reason: str = "") -> SessionInfo:
        """Keep idle checkers from ending it, or let them again; for administrators."""
        fields = {"exempt": exempt, "reason": reason}
        answer = await self._transport.request("POST", f"{self._base}/exempt", params=self._owner, json=fields)
        return SessionInfo.from_json(decoded(answer))


class ClientReports:
    """Of many sessions; part of `Client`."""

    _transport: Transport

    async def top(self, *, all: bool = False, sort: str = "cpu") -> Top:
        """Who holds and who uses what now; `all` is everybody, for administrators. `sort`: cpu, mem, gpu or held."""
        params = _wire.query(all=all or None, sort=sort)
        return Top.from_json(await self._transport.get(_wire.path("top"), **params))

    async def abuse_reports(self, *, project: str | None = None, quiet: bool = False) -> list[AbuseReport]:
        """Of everybody's running sessions, where a rule has fired; `quiet`: also of the others. For administrators."""
        pages = self._transport.pages(_wire.path("abusing-reports"), project=project, quiet=quiet or None)
        return [AbuseReport.from_json(item) async for item in pages]

    async def usage(
        self,
        *,
        by: str = "user",
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        user: str | None = None,
        project: str | None = None,
    ) -> Usage:
        """CPU-, memory- and GPU-hours that were held, exactly, by user, project, session, host or day.

        One's own; for administrators everybody's. By default of the last 30 days.
        """
        params = _wire.query(by=by, since=_time(since), until=_time(until), user=user, project=project)
        return Usage.from_json(await self._transport.get(_wire.path("usage"), **params))

    async def trace(
        self, *, since: datetime | str | None = None, until: datetime | str | None = None
    ) -> dict[str, Any]:
        """What everybody's sessions asked for and how long they ran: `sessions`, in the fields of docs/simulation.md.

        For administrators and monitors. By default of the last 30 days.
        """
        params = _wire.query(since=_time(since), until=_time(until))
        answer: dict[str, Any] = await self._transport.get(_wire.path("usage", "trace"), **params)
        return answer

    async def fsck(self, *, hosts: bool = True) -> FsckReport:
        """Check every invariant in the database and, with `hosts`, of each host's containers; changes nothing. For
        administrators and monitors."""
        return FsckReport.from_json(await self._transport.get(_wire.path("fsck"), hosts=hosts))

    async def fsck_repair(self, checks: Sequence[str]) -> dict[str, int]:
        """Put right what these checks find in the database; how many rows that were, by check. For administrators."""
        answer = await self._transport.request("POST", _wire.path("fsck", "repair"), json={"checks": list(checks)})
        rows: dict[str, int] = decoded(answer)["rows"]
        return rows

    async def watch_rules(self, *, project: str | None = None) -> WatchRules:
        """The thresholds of abuse rules and idle checkers, for all or for one project."""
        params = _wire.query(project=project)
        return WatchRules.from_json(await self._transport.get(_wire.path("policies", "watch"), **params))

    async def set_watch_rules(
        self, rules: Mapping[str, Mapping[str, float]], *, project: str | None = None, reset: bool = False
    ) -> WatchRules:
        """Change some of them, such as {"cpu_idle": {"max_share": 0.05}}; for administrators."""
        fields = _wire.body(rules={name: dict(values) for name, values in rules.items()}, project=project)
        address = _wire.path("policies", "watch")
        answer = await self._transport.request("PUT", address, json={**fields, "reset": reset})
        return WatchRules.from_json(decoded(answer))


def _time(value: datetime | str | None) -> str | None:
    return value.isoformat() if isinstance(value, datetime) else value


def _span(value: str | float | None) -> str | None:
    return value if value is None or isinstance(value, str) else f"{value:g}"
