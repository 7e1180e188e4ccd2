"""What each field of `Queries` is answered with. A field without a resolver here does not exist."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from graphql import GraphQLObjectType, GraphQLSchema, build_schema

from actions import (
    GetAgentAction,
    GetSessionInfoAction,
    ListAgentsAction,
    ListDomainsAction,
    ListImagesAction,
    ListPoliciesAction,
    ListResourceGroupsAction,
)
from domain.errors import AgentNotFound, InvalidRequest, SessionNotFound
from domain.session import Status
from manager.compat.backendai import gql_rows as rows
from manager.compat.backendai.gql_limits import cost_inside
from manager.compat.backendai.gql_lists import Lists, checked_page, in_turns, or_none, paged
from manager.compat.backendai.gql_schema import SDL

if TYPE_CHECKING:
    from typing import TypeAlias

    from graphql import GraphQLResolveInfo

    Info: TypeAlias = GraphQLResolveInfo[Lists]

Resolver = Callable[..., Awaitable[Any]]
Row = Mapping[str, Any]
#: What is looked up row by row is nothing to filter or order by, and neither are whole scripts.
_NO_COLUMNS: Final = frozenset(
    "group_id user_id user_email created_user_id created_user_email containers dependencies abusing_reports groups "
    "main_access_key concurrency_used user_info startup_command bootstrap_script".split()
)
_ITSELF: Final = ""
_NAMED: Final = re.compile(r'\s*name\s*==\s*"([\w.-]{1,64})"\s*')
_OF_LIVE: Final = tuple(str(s) for s in Status if s not in (Status.TERMINATED, Status.CANCELLED, Status.ERROR))


@cache
def schema() -> GraphQLSchema:
    """Built with the first query."""
    made = build_schema(SDL)
    queries = made.query_type
    assert queries is not None
    if queries.fields.keys() != RESOLVERS.keys():
        raise TypeError(f"fields without a resolver: {queries.fields.keys() ^ RESOLVERS.keys()}")
    for name, resolver in RESOLVERS.items():
        queries.fields[name].resolve = resolver
    return made


def _columns(info: Info, name: str) -> frozenset[str]:
    kind = info.schema.get_type(name)
    assert isinstance(kind, GraphQLObjectType)
    return frozenset(kind.fields) - _NO_COLUMNS


async def _page(info: Info, kind: str, found: Sequence[Row], asked: Mapping[str, Any]) -> dict[str, Any]:
    items, count = await paged(found, _columns(info, kind), asked)
    return {"items": items, "total_count": count}


def _whole(resolver: Resolver) -> Resolver:
    """Of a list that has no pages: how much of an answer it is shows when it is there."""

    async def counted(root: Any, info: Info, **given: Any) -> Any:
        found = await resolver(root, info, **given)
        info.context.spend(len(found) * cost_inside(info))
        return found

    return counted


# -- sessions ------------------------------------------------------------------------------------------------------------
async def _session(_: Any, info: Info, id: str) -> Any:
    asked = info.context
    found = await or_none(asked.run(GetSessionInfoAction(session_name=str(id))), SessionNotFound)
    return None if found is None else asked.session_row(found.session_info)


async def _sessions(_: Any, info: Info, **given: Any) -> Any:
    asked = info.context
    statuses = [word.strip().upper() for word in (given.get("status") or "").split(",") if word.strip()]
    named = _NAMED.fullmatch(given.get("filter") or "")  # what watch and scripts ask for: not all have to be looked at
    found = await asked.sessions(statuses or _OF_LIVE, given.get("access_key"), None if named is None else named[1])
    found = [s for s in found if _fits(s.domain, given.get("domain_name"))]
    if (group := given.get("group_id")) is not None:
        names = {(p.domain, p.name) for p in await asked.projects() if group in (str(p.id), p.name)}
        found = [s for s in found if (s.domain, s.project) in names]
    if not given.get("filter") and not given.get("order"):
        limit, offset = checked_page(given["limit"], given["offset"])
        return {"items": [asked.session_row(s) for s in found[offset : offset + limit]], "total_count": len(found)}
    table = [{**rows.session(s, asked.now), _ITSELF: s} async for s in in_turns(found)]
    page = await _page(info, "ComputeSession", table, given)
    return {**page, "items": [asked.session_row(row[_ITSELF]) for row in page["items"]]}


def _fits(value: Any, wanted: Any) -> bool:
    return wanted is None or value == wanted


# -- people --------------------------------------------------------------------------------------------------------------
async def _own_keypair(_: Any, info: Info) -> Any:
    asked = info.context
    own = next((k for k in await asked.keypairs() if k.access_key == asked.by.access_key), None)
    return None if own is None else await asked.keypair_row(own)


async def _keypair_rows(info: Info, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked = info.context
    found = [
        keypair
        for keypair in await asked.keypairs()
        if _fits(keypair.active, given.get("is_active")) and _fits(keypair.user, given.get("email"))
    ]
    if (domain := given.get("domain_name")) is not None:
        here = {user.email for user in await asked.users() if user.domain == domain}
        found = [keypair for keypair in found if keypair.user in here]
    return [await asked.keypair_row(keypair) async for keypair in in_turns(found)]


async def _keypairs(_: Any, info: Info, **given: Any) -> Any:
    return await _keypair_rows(info, given)


async def _keypair_list(_: Any, info: Info, **given: Any) -> Any:
    return await _page(info, "KeyPair", await _keypair_rows(info, given), given)


async def _user(_: Any, info: Info, **given: Any) -> Any:
    """Oneself when nobody is named; whom one may not see is null."""
    asked = info.context
    whom = given.get("email") or given.get("user_id") or str(asked.by.user_id)
    found = await asked.user(str(whom))
    return None if found is None else await asked.user_row(found)


async def _user_rows(info: Info, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked = info.context
    found = [user for user in await asked.users() if _fits(user.domain, given.get("domain_name"))]
    if (status := given.get("status")) is not None:
        found = [user for user in found if ("active" if user.active else "inactive") in status.lower().split(",")]
    if (group := given.get("group_id")) is not None:
        members = {email for p in await asked.projects() if str(p.id) == group for email in p.members}
        found = [user for user in found if user.email in members]
    return [await asked.user_row(user) async for user in in_turns(found)]


async def _users(_: Any, info: Info, **given: Any) -> Any:
    return await _user_rows(info, given)


async def _user_list(_: Any, info: Info, **given: Any) -> Any:
    return await _page(info, "User", await _user_rows(info, given), given)


# -- domains and projects ------------------------------------------------------------------------------------------------
async def _domains(_: Any, info: Info, is_active: bool | None = None) -> Any:
    found = (await info.context.run(ListDomainsAction())).items
    return [rows.domain(domain) for domain in found if _fits(domain.active, is_active)]


async def _domain(_: Any, info: Info, name: str | None = None) -> Any:
    wanted = name or info.context.by.domain
    return next((row for row in await _domains(_, info) if row["name"] == wanted), None)


async def _groups(_: Any, info: Info, domain_name: str | None = None, is_active: bool | None = None) -> Any:
    if is_active is False:
        return []
    return [rows.group(project) for project in await info.context.projects() if _fits(project.domain, domain_name)]


async def _groups_by_name(_: Any, info: Info, name: str, domain_name: str | None = None) -> Any:
    return [row for row in await _groups(_, info, domain_name) if row["name"] == name]


async def _group(_: Any, info: Info, id: str) -> Any:
    return next((row for row in await _groups(_, info) if row["id"] == str(id)), None)


# -- hosts, images, limits -----------------------------------------------------------------------------------------------
async def _agent(_: Any, info: Info, agent_id: str) -> Any:
    asked = info.context
    found = await or_none(asked.run(GetAgentAction(agent=agent_id)), AgentNotFound)
    if found is None:
        return None
    return rows.agent(found.agent, *(await asked.use_by_agent()).get(agent_id, (0.0, 0.0)))


async def _agent_list(_: Any, info: Info, **given: Any) -> Any:
    asked = info.context
    agents = (await asked.run(ListAgentsAction())).items
    wanted = [word.strip().upper() for word in (given.get("status") or "").split(",") if word.strip()]
    used = await asked.use_by_agent()
    table = [
        rows.agent(agent, *used.get(agent.id, (0.0, 0.0)))
        for agent in agents
        if (not wanted or rows.agent_status(agent) in wanted)
        and _fits(agent.resource_group, given.get("scaling_group"))
    ]
    return await _page(info, "Agent", table, given)


async def _images(_: Any, info: Info, is_operation: bool | None = None, **_more: Any) -> Any:
    if is_operation:  # images that are only for operating the installation: there are none
        return []
    return [rows.image(image) for image in (await info.context.run(ListImagesAction())).items]


async def _scaling_groups(_: Any, info: Info, is_active: bool | None = None) -> Any:
    asked = info.context
    found = (await asked.run(ListResourceGroupsAction())).items
    return [rows.scaling_group(group, asked.proxy_url) for group in found if _fits(group.active, is_active)]


async def _scaling_group(_: Any, info: Info, name: str | None = None) -> Any:
    return next((row for row in await _scaling_groups(_, info) if row["name"] == name), None)


async def _policies(_: Any, info: Info) -> Any:
    return [rows.policy(policy) for policy in (await info.context.run(ListPoliciesAction())).items]


async def _policy(_: Any, info: Info, name: str | None = None) -> Any:
    return next((row for row in await _policies(_, info) if row["name"] == name), None)


# -- volumes -------------------------------------------------------------------------------------------------------------
async def _folder_page(info: Info, given: Mapping[str, Any], owned: bool | None) -> dict[str, Any]:
    asked = info.context
    volumes = await asked.volumes(everybodys=owned is None and asked.by.sees_all)
    table = [rows.folder(volume) for volume in volumes if owned is None or volume.owned is owned]
    return await _page(info, "VirtualFolder", table, given)


async def _folders(_: Any, info: Info, **given: Any) -> Any:
    if given.get("group_id") is not None:
        raise InvalidRequest("Volumes belong to users, and are shared with projects; leave the group out.")
    return await _folder_page(info, given, None)


async def _own_folders(_: Any, info: Info, **given: Any) -> Any:
    return await _folder_page(info, given, True)


async def _invited_folders(_: Any, info: Info, **given: Any) -> Any:
    return await _folder_page(info, given, False)


RESOLVERS: Final[Mapping[str, Resolver]] = {
    "keypair": _own_keypair,
    "keypairs": _whole(_keypairs),
    "keypair_list": _keypair_list,
    "compute_session": _session,
    "compute_session_list": _sessions,
    "agent": _agent,
    "agent_list": _agent_list,
    "images": _whole(_images),
    "user": _user,
    "user_from_uuid": _user,
    "users": _whole(_users),
    "user_list": _user_list,
    "domain": _domain,
    "domains": _whole(_domains),
    "group": _group,
    "groups": _whole(_groups),
    "groups_by_name": _whole(_groups_by_name),
    "scaling_group": _scaling_group,
    "scaling_groups": _whole(_scaling_groups),
    "keypair_resource_policy": _policy,
    "keypair_resource_policies": _whole(_policies),
    "vfolder_list": _folders,
    "vfolder_own_list": _own_folders,
    "vfolder_invited_list": _invited_folders,
}
