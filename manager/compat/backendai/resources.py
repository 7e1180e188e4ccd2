"""Resource slots, limits, what is free, and what was held: the numbers of `backend.ai admin resource`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from actions import (
    FsckRepairAction,
    GetUsageAction,
    ListAgentsAction,
    ListProjectsAction,
    ListQuotasAction,
    ListRegistriesAction,
)
from actions.quotas import QuotaData
from actions.views import AgentData, ProjectData, SessionData
from domain.errors import InvalidRequest, ProjectNotFound
from domain.resources import ResourceSlot
from manager.compat.backendai import shapes
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.gql_lists import Lists
from manager.compat.backendai.table import Route
from repositories.usage import UsageRow

#: What may be asked for, and in which unit.
SLOTS: Final = {"cpu": "count", "mem": "bytes", "cuda.device": "count", "cuda.mem": "bytes"}
_NAMES: Final = ("cpu", "mem")
#: Everything that is counted twice by whoever holds it, and can be counted again.
_RECOUNTED: Final = ("slots_in_use", "quota_counters")
_MONTH: Final = re.compile(r"\d{6}")
_DAY: Final = re.compile(r"([12]\d{3})(\d{2})(\d{2})")
_LONGEST: Final = timedelta(days=100)


async def slots(ask: Ask) -> web.StreamResponse:
    return ask.answer(SLOTS)


async def folder_types(ask: Ask) -> web.StreamResponse:
    """Volumes belong to users; projects are let in by sharing."""
    return ask.answer(["user"])


async def registries(ask: Ask) -> web.StreamResponse:
    """Those with credentials, one's own and everybody's; images come from any."""
    return ask.answer([one.host for one in (await ask.run(ListRegistriesAction())).items])


async def presets(ask: Ask) -> web.StreamResponse:
    """Sizes by name are templates here."""
    return ask.answer({"presets": []})


# -- what is free --------------------------------------------------------------------------------------------------------
async def check_presets(ask: Ask) -> web.StreamResponse:
    """Limits of the one who asks; free slots of hosts for those who see hosts, and for others as unknown."""
    body = await ask.body()
    quotas = (await ask.run(ListQuotasAction())).items
    own = _limits([one for one in quotas if one.scope in ("keypair", "user")])
    using = await _using(ask)
    project = body.get("group") or next(iter(ask.by.projects), None)
    of_group = _limits([one for one in quotas if one.scope == "project" and one.of == project])
    agents = await _agents(ask, body.get("scaling_group"))
    return ask.answer(
        {
            "keypair_limits": own[0],
            "keypair_using": using,
            "keypair_remaining": own[1],
            "group_limits": of_group[0],
            "group_using": dict.fromkeys(_NAMES, "NaN"),
            "group_remaining": of_group[1],
            "scaling_group_remaining": _amounts(agents, left=True) if agents else dict.fromkeys(_NAMES, "NaN"),
            "scaling_groups": _groups(agents),
            "presets": [],
        }
    )


def _limits(quotas: Sequence[QuotaData]) -> tuple[dict[str, str], dict[str, str]]:
    """(limits, left), the narrowest of each; what nobody limits is infinite."""
    most: dict[str, str] = dict.fromkeys(_NAMES, "Infinity")
    left: dict[str, str] = dict.fromkeys(_NAMES, "Infinity")
    for name in _NAMES:
        rows = [one for one in quotas if one.name == name and one.free is not None]
        if rows:
            narrow = min(rows, key=lambda one: one.free or 0)
            most[name], left[name] = _amount(name, narrow.max), _amount(name, narrow.free or 0)
    return most, left


async def _using(ask: Ask) -> dict[str, str]:
    """What one's live sessions hold."""
    live = await _lists(ask).sessions((), str(ask.by.access_key), None)
    held: dict[str, int] = dict.fromkeys(_NAMES, 0)
    for session in live:
        for name in _NAMES:
            held[name] += session.occupied_slots.get(name, 0)
    return {name: _amount(name, amount) for name, amount in held.items()}


def _amount(name: str, units: int) -> str:
    return shapes.amounts(ResourceSlot.from_units({name: units})).get(name, "0")


async def _agents(ask: Ask, group: Any) -> list[AgentData]:
    """Those that take sessions."""
    if not ask.by.sees_all:
        return []
    found = (await ask.run(ListAgentsAction())).items
    return [one for one in found if one.schedulable and not one.lost and group in (None, one.resource_group)]


def _groups(agents: Sequence[AgentData]) -> dict[str, Any]:
    found: dict[str, list[AgentData]] = {}
    for agent in agents:
        found.setdefault(agent.resource_group, []).append(agent)
    return {
        name: {"using": _amounts(some, left=False), "remaining": _amounts(some, left=True)}
        for name, some in found.items()
    }


def _amounts(agents: Sequence[AgentData], *, left: bool) -> dict[str, str]:
    told = {}
    for name in _NAMES:
        used = sum(agent.used.get(name, 0) for agent in agents)
        offered = sum(agent.capacity.get(name, 0) for agent in agents)
        told[name] = _amount(name, max(0, offered - used) if left else used)
    return told


# -- what was held -------------------------------------------------------------------------------------------------------
async def month(ask: Ask) -> web.StreamResponse:
    body = await ask.body()
    given = str(body.get("month") or ask.query_value("month"))
    groups = body.get("group_ids") or ask.query.get("group_ids") or []
    if not _MONTH.fullmatch(given) or not isinstance(groups, list):
        raise InvalidRequest("A month is written yyyymm: 202601.", field="month")
    since = _day(f"{given}01", "month")
    until = (since + timedelta(days=32)).replace(day=1)
    projects = (await ask.run(ListProjectsAction())).items
    chosen = [p for p in projects if not groups or str(p.id) in groups or p.name in groups]
    sessions = await _lists(ask).sessions(("all",), None, None)
    used = [await _usage(ask, project, sessions, since, until) for project in chosen]
    return ask.answer([one for one in used if one])


async def period(ask: Ask) -> web.StreamResponse:
    body = await ask.body()
    since, last = [_day(body.get(name) or ask.query_value(name), name) for name in ("start_date", "end_date")]
    until = last + timedelta(days=1)
    if not since < until or until - since > _LONGEST:
        raise InvalidRequest(
            f"The period ends after it begins, and has at most {_LONGEST.days} days.", field="end_date"
        )
    wanted = str(body.get("group_id") or ask.query_value("group_id"))
    projects = (await ask.run(ListProjectsAction())).items
    for project in projects:
        if wanted in (str(project.id), project.name):
            sessions = await _lists(ask).sessions(("all",), None, None)
            return ask.answer(await _usage(ask, project, sessions, since, until))
    raise ProjectNotFound(project=wanted[:64])


def _day(text: Any, field: str) -> datetime:
    found = _DAY.fullmatch(str(text))
    try:
        assert found is not None
        return datetime(int(found[1]), int(found[2]), int(found[3]), tzinfo=UTC)
    except (AssertionError, ValueError):
        raise InvalidRequest("A day is written yyyymmdd (20260131), a month yyyymm (202601).", field=field) from None


async def _usage(
    ask: Ask, project: ProjectData, all_sessions: Sequence[SessionData], since: datetime, until: datetime
) -> dict[str, Any]:
    """Of one's own sessions; for administrators everybody's. What only samples would tell is null."""
    now = ask.door.world.service.now()
    if since >= now:
        return {}
    used = await ask.run(GetUsageAction(by="session", since=since, until=min(until, now), project=project.name))
    held = {row.key: row for row in used.rows}
    sessions = [
        s for s in all_sessions if s.started_at is not None and str(s.id) in held and s.domain == project.domain
    ]
    if not sessions:
        return {}
    told = [_container(session, held[str(session.id)], since, min(until, now)) for session in sessions]
    return {
        "domain_name": project.domain,
        "g_id": str(project.id),
        "g_name": project.name,
        "g_smp": sum(one["smp"] for one in told),
        "g_mem_allocated": sum(one["mem_allocated"] for one in told),
        "g_cpu_used": None,
        "g_mem_used": None,
        "g_shared_memory": 0,
        "g_disk_allocated": 0,
        "g_disk_used": None,
        "g_io_read": None,
        "g_io_write": None,
        "g_device_type": sorted({kind for one in told for kind in one["device_type"]}),
        "c_infos": told,
    }


def _container(session: SessionData, row: UsageRow, since: datetime, until: datetime) -> dict[str, Any]:
    begun = max(session.started_at or since, since)
    ended = min(session.ended_at or until, until)
    slots = shapes.amounts(session.requested_slots)
    return {
        "id": str(session.id),
        "name": session.name,
        "access_key": session.access_key,
        "image_name": session.image,
        "agent": session.agent,
        "created_at": shapes.moment(session.created_at),
        "terminated_at": shapes.moment(session.ended_at) or "",
        "used_days": round(max(0.0, (ended - begun).total_seconds()) / 86400, 4),
        "used_time": str(ended - begun),
        "cpu_hours": row.cpu_hours,
        "mem_gib_hours": row.mem_gib_hours,
        "gpu_hours": row.gpu_hours,
        "smp": float(slots.get("cpu", 0)) * session.cluster_size,
        "mem_allocated": int(slots.get("mem", 0)) * session.cluster_size,
        "device_type": [name for name in ("cuda.device", "cuda.mem") if name in slots],
        "cpu_used": None,
        "mem_used": None,
        "io_read": None,
        "io_write": None,
        "nfs": [mount.volume for mount in session.mounts],
    }


async def recalculate(ask: Ask) -> web.StreamResponse:
    """Counters are written by triggers with what they count, so there is nothing to correct; it is counted all the same."""
    await ask.run(FsckRepairAction(checks=_RECOUNTED))
    return ask.answer({})


def _lists(ask: Ask) -> Lists:
    return Lists(ask, ask.door.world.service.now(), "")


ROUTES: Final = (
    Route("GET", "/config/resource-slots", slots),
    Route("GET", "/config/vfolder-types", folder_types),
    Route("GET", "/config/docker-registries", registries),
    Route("GET", "/resource/presets", presets),
    Route("POST", "/resource/check-presets", check_presets),
    Route("GET", "/resource/usage/month", month),
    Route("GET", "/resource/usage/period", period),
    Route("POST", "/resource/recalculate-usage", recalculate),
)
