"""Sessions by name or id: looked at, changed, restarted, ended, committed; not what runs in them."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from actions import (
    CommitSessionAction,
    DestroySessionAction,
    GetAbusingReportAction,
    GetCommitStatusAction,
    GetContainerLogsAction,
    GetDependencyGraphAction,
    GetProjectAction,
    GetSessionInfoAction,
    GetStatisticsAction,
    GetStatusHistoryAction,
    InterruptAction,
    ListServicesAction,
    MatchSessionsAction,
    RenameSessionAction,
    RestartSessionAction,
)
from actions.views import SessionData
from domain.errors import InvalidRequest, MoorageError, SessionNotReady, StartFailed
from domain.graph import Graph, GraphNode
from domain.session import FINAL, Status
from manager.compat.backendai import shapes
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.creation import labels_of
from manager.compat.backendai.table import Route
from manager.rest.streams import permitted

#: A container gets 10 s to end by itself.
_ENDING_SECONDS: Final = 30.0
_RESTARTING_SECONDS: Final = 300.0
_LOG_LINES: Final = 10_000
#: Of a tree of dependencies.
_MOST_LEVELS: Final = 100
_MOST_TOLD: Final = 10_000


async def session_of(ask: Ask) -> SessionData:
    return (await ask.run(GetSessionInfoAction(**ask.session))).session_info


async def get_info(ask: Ask) -> web.StreamResponse:
    session = await session_of(ask)
    return ask.answer(
        shapes.info(
            session,
            now=ask.door.world.service.now(),
            user_id=await user_of(ask, session),
            project_id=await project_of(ask, session),
            containers=[str(kernel.id) for kernel in session.kernels],
        )
    )


async def user_of(ask: Ask, session: SessionData) -> UUID | None:
    if session.access_key == ask.by.access_key:
        return ask.by.user_id
    owner = await ask.door.world.identities.of_access_key(session.access_key)
    return None if owner is None else owner.user_id


async def project_of(ask: Ask, session: SessionData) -> UUID | None:
    try:
        found = await ask.run(GetProjectAction(project=session.project, domain=session.domain))
    except MoorageError:  # one that the asker is no member of any more
        return None
    return found.project.id


async def restart(ask: Ask) -> web.StreamResponse:
    async with permitted(ask):
        done = await ask.run(RestartSessionAction(**ask.session), settle_seconds=_RESTARTING_SECONDS)
    session = done.session_data
    if session.status in FINAL:
        raise StartFailed(f"The session did not start again: {session.status_reason}", session_id=str(session.id))
    return ask.nothing()


async def destroy(ask: Ask) -> web.StreamResponse:
    session = await session_of(ask)
    used = None
    if session.status in (Status.RUNNING, Status.RUNNING_DEGRADED):
        try:
            used = (await ask.run(GetStatisticsAction(**ask.session))).statistics
        except MoorageError:  # it is ended all the same
            used = None
    asked = DestroySessionAction(**ask.session, forced=ask.flag("forced"), recursive=ask.flag("recursive"))
    async with permitted(ask):
        ended = (await ask.run(asked, settle_seconds=_ENDING_SECONDS)).session_data
    return ask.answer({"stats": {"status": shapes.status(ended).lower(), **shapes.statistics(used)}})


async def rename(ask: Ask) -> web.StreamResponse:
    name = ask.query_value("name") or (await ask.body()).get("name")
    if not isinstance(name, str):
        raise InvalidRequest("The new name is missing: ?name=NAME.", field="name")
    await ask.run(RenameSessionAction(**ask.session, new_name=name))
    return ask.nothing()


async def interrupt(ask: Ask) -> web.StreamResponse:
    await ask.run(InterruptAction(**ask.session))
    return ask.nothing()


async def logs(ask: Ask) -> web.StreamResponse:
    try:
        stream = await ask.run(GetContainerLogsAction(**ask.session, tail=_LOG_LINES))
        async with permitted(ask):
            text = await stream.text()
    except SessionNotReady:  # it has printed nothing yet
        text = ""
    return ask.answer({"result": {"logs": text}})


async def apps(ask: Ask) -> web.StreamResponse:
    session = await session_of(ask)
    told = shapes.service_ports(await labels_of(ask, session.image), session.preopen_ports, session.id)
    known = {one["name"] for one in told}
    for service in (await ask.run(ListServicesAction(**ask.session))).items:
        if service.name not in known:  # started with a port or command of its own
            at = {"url_template": "http://{host}:{port}/"} if service.protocol == "http" else {}
            told.append({"name": service.name, "protocol": service.protocol, "ports": [service.port], **at})
    return ask.answer(told)


async def match(ask: Ask) -> web.StreamResponse:
    """Live sessions whose name or id begins so."""
    pattern = ask.query_value("id")
    if not pattern:
        raise InvalidRequest("What is looked for is missing: ?id=NAME_OR_ID.", field="id")
    found = await ask.run(MatchSessionsAction(pattern=pattern, **ask.owner))
    return ask.answer(
        {"matches": [{"id": str(one.id), "name": one.name, "status": shapes.status(one)} for one in found.items]}
    )


async def status_history(ask: Ask) -> web.StreamResponse:
    """When each status began the last time."""
    found = await ask.run(GetStatusHistoryAction(**ask.session))
    rows = found.status_history["history"]
    return ask.answer({"result": {row["status"].lower(): row["timestamp"].isoformat() for row in rows}})


async def abusing_report(ask: Ask) -> web.StreamResponse:
    """Nothing, or the rules that have fired with their evidence."""
    report = await ask.run(GetAbusingReportAction(**ask.session))
    return ask.answer({check.rule: check for check in report.checks if check.fired})


# -- what it waits for ---------------------------------------------------------------------------------------------------
async def dependency_graph(ask: Ask) -> web.StreamResponse:
    found = await ask.run(GetDependencyGraphAction(**ask.session))
    return ask.answer(_tree(found.graph))


def _tree(graph: Graph) -> dict[str, Any]:
    """A session with all that it depends on, and these with theirs. Raises InvalidRequest."""
    nodes: dict[UUID, GraphNode] = {node.id: node for node in graph.nodes}
    below: dict[UUID, list[UUID]] = {session_id: [] for session_id in nodes}
    for edge in graph.edges:
        below[edge.target].append(edge.source)
    told: dict[UUID, dict[str, Any]] = {}
    levels: dict[UUID, int] = {}
    sizes: dict[UUID, int] = {}
    for one in TopologicalSorter(below).static_order():
        told[one] = {**_node(nodes[one]), "depends_on": [told[other] for other in below[one]]}
        levels[one] = 1 + max((levels[other] for other in below[one]), default=0)
        sizes[one] = 1 + sum(sizes[other] for other in below[one])
    # a session is told once for every way that leads to it, and a few dozen can have millions of ways
    if levels[graph.root] > _MOST_LEVELS or sizes[graph.root] > _MOST_TOLD:
        raise InvalidRequest("These dependencies are too many for a tree; 'moorage graph NAME' shows them.")
    return told[graph.root]


def _node(node: GraphNode) -> dict[str, Any]:
    changed = node.ended_at or node.started_at
    return {
        "session_id": str(node.id),
        "session_name": node.name,
        "status": f"KernelStatus.{node.status}",
        "status_changed": "None" if changed is None else shapes.moment(changed),
    }


# -- snapshots -----------------------------------------------------------------------------------------------------------
async def commit(ask: Ask) -> web.StreamResponse:
    session = await session_of(ask)
    task = (await ask.run(CommitSessionAction(**ask.session))).task
    status = (await ask.run(GetCommitStatusAction(**ask.session))).commit_status
    return ask.answer({"bgtask_id": str(task.id), "kernel": _kernel(session), "path": status.image}, 201)


async def commit_status(ask: Ask) -> web.StreamResponse:
    session = await session_of(ask)
    status = (await ask.run(GetCommitStatusAction(**ask.session))).commit_status
    going_on = status.status in ("queued", "running")
    return ask.answer({"status": "ongoing" if going_on else "ready", "kernel": _kernel(session)})


def _kernel(session: SessionData) -> str:
    return str(session.kernels[0].id if session.kernels else session.id)


ROUTES: Final = (
    Route("GET", "/session/_/match", match),
    Route("GET", "/session/{session}", get_info),
    Route("PATCH", "/session/{session}", restart),
    Route("DELETE", "/session/{session}", destroy),
    Route("POST", "/session/{session}/rename", rename),
    Route("POST", "/session/{session}/interrupt", interrupt),
    Route("GET", "/session/{session}/logs", logs),
    Route("GET", "/session/{session}/status-history", status_history),
    Route("GET", "/session/{session}/abusing-report", abusing_report),
    Route("GET", "/session/{session}/dependency-graph", dependency_graph),
    Route("POST", "/session/{session}/commit", commit),
    Route("GET", "/session/{session}/commit", commit_status),
    Route("GET", "/stream/session/{session}/apps", apps),
)
