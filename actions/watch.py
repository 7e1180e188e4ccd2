"""Abuse and idleness: what rules say of sessions, the thresholds, and who is left in peace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    Work,
    action,
    anyone,
    may_look,
    superadmin,
    superadmin_or_monitor,
)
from actions.cursor import decode_cursor, encode_cursor
from actions.views import SessionData, SessionResult
from domain.errors import InvalidRequest
from domain.ids import AccessKey, SessionId
from domain.session import ANSWERING, LIVE, Session
from domain.watch import SETTINGS, Check, check_changes, judge
from repositories.session import Search

RuleSettings = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbuseReport(Result):
    """What every enabled rule says of one session, those that fired first."""

    session_id: SessionId
    name: str
    owner: AccessKey
    project: str
    status: str
    checked_at: datetime
    abusive: bool  #: a rule has fired
    checks: list[Check]

    @classmethod
    def of(cls, session: Session, checks: list[Check], now: datetime) -> AbuseReport:
        return cls(
            session_id=session.id,
            name=session.name,
            owner=session.access_key,
            project=session.project,
            status=str(session.status),
            checked_at=now,
            abusive=any(check.fired for check in checks),
            checks=checks,
        )


@action(Rules(allow=may_look, effect=Effect.READ))
class GetAbusingReportAction(SessionAction[Reading, AbuseReport]):
    """Whether a session wastes or harms what is shared, rule by rule, with figures, times and thresholds as evidence.

    Of GPUs, CPUs and memory held but not used, data sent out, fork storms, loops of running out of memory, and lives that
    are too long. Of an ended session: up to its end.
    """

    async def run(self, call: Reading, session: Session, /) -> AbuseReport:
        ((_, watched, settings),) = await call.db.watch.watched([session])
        return AbuseReport.of(session, judge(watched, settings), call.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbuseReports(Result):
    items: list[AbuseReport]
    next_cursor: str | None


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class SearchAbusingReportsAction(ScopeAction[Reading, AbuseReports]):
    """Reports on everybody's running sessions; by default on those where a rule has fired."""

    quiet: bool = False  #: also those where none has
    project: str | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200  #: sessions that are looked at

    async def run(self, call: Reading, /) -> AbuseReports:
        search = Search(statuses=ANSWERING, project=self.project, after=decode_cursor(self.cursor), limit=self.limit)
        found = await call.db.all_sessions.search(search)
        last = found[-1] if len(found) == self.limit else None
        reports = [
            AbuseReport.of(session, judge(watched, settings), call.now)
            for session, watched, settings in await call.db.watch.watched(found)
        ]
        return AbuseReports(
            items=[report for report in reports if self.quiet or report.abusive],
            next_cursor=encode_cursor(last.created_at, last.id) if last else None,
        )


# -- thresholds ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRules(Result):
    """Every rule with its settings, as they hold for all or for one project."""

    project: str | None
    rules: dict[str, dict[str, float]]
    changed: dict[str, dict[str, float]]  #: of these, what was set here


@action(Rules(allow=anyone, effect=Effect.READ))
class GetWatchRulesAction(ScopeAction[Reading, WatchRules]):
    """The thresholds of abuse rules and idle checkers, for all or for one project."""

    project: str | None = None

    async def run(self, call: Reading, /) -> WatchRules:
        return await _rules(call, self.project)


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class SetWatchRulesAction(ScopeAction[Work, WatchRules]):
    """Change thresholds of abuse rules and idle checkers, for all or for one project; what is left out stays.

    `idle.enabled=0` for a project keeps all of its sessions from being ended by idle checkers.
    """

    settings: RuleSettings = field(default_factory=dict)
    project: str | None = None
    reset: bool = False  #: first take back everything that was set here

    async def run(self, call: Work, /) -> WatchRules:
        check_changes(self.settings)
        if not self.settings and not self.reset:
            raise InvalidRequest('Nothing to change was given; write {"rules": {"cpu_idle": {"max_share": 0.05}}}.')
        project_id = await _project(call, self.project)
        if self.reset:
            await call.db.watch.reset(project_id)
        await call.db.watch.change(project_id, self.settings)
        return await _rules(call, self.project)


async def _project(call: Reading, name: str | None) -> UUID | None:
    if name is None:
        return None
    member = None if call.by.sees_all else call.by.user_id
    return await call.db.identity.project_id(name, domain=call.by.domain, member=member)


async def _rules(call: Reading, project: str | None) -> WatchRules:
    project_id = await _project(call, project)
    stored = await call.db.watch.stored()
    own = stored.get(str(project_id or ""), {})
    return WatchRules(
        project=project,
        rules=await call.db.watch.settings(project_id),
        changed={name: dict(own[name]) for name in SETTINGS if name in own},
    )


# -- peace ---------------------------------------------------------------------------------------------------------------
@action(Rules(allow=superadmin, when=LIVE, effect=Effect.DATABASE))
class ExemptSessionAction(SessionAction[Work, SessionResult]):
    """Keep idle checkers from ending a session, or let them again; a lifetime of its own still ends it."""

    exempt: bool = True
    reason: Annotated[str, Field(max_length=500)] = ""

    async def run(self, call: Work, session: Session, /) -> SessionResult:
        if self.exempt:
            await call.db.watch.exempt(session.id, reason=self.reason, by=str(call.by.access_key))
        else:
            await call.db.watch.watch_again(session.id)
        call.announce("sessions", session.id)
        return SessionResult(session_data=SessionData.of(await call.db.sessions_of(session).get(session.id)))
