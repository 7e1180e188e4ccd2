"""What GraphQL's fields are answered from: actions, run as whoever asks, each at most once a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from actions import (
    GetAbusingReportAction,
    GetDependencyGraphAction,
    GetMetricsAction,
    GetTopAction,
    ListKeypairsAction,
    ListPoliciesAction,
    ListProjectsAction,
    ListUsersAction,
    ListVolumesAction,
    SearchSessionsAction,
    WhoAmIAction,
)
from actions.views import KeypairData, ProjectData, SessionData, UserData
from actions.volumes import VolumeData
from domain.errors import InvalidRequest, MoorageError
from domain.principal import Principal, Role
from manager.compat.backendai import gql_rows as rows
from manager.compat.backendai.minilang import BadExpression, condition, ordered
from manager.world import validated

T = TypeVar("T")
#: Lists are filtered and ordered here; of longer ones only so many are looked at, the newest.
MOST_LOOKED_AT: Final = 10_000
#: Rows of a page.
MOST_ROWS: Final = 100
_PAGE: Final = 500
#: Fields that are looked up row by row, at the same time.
_AT_ONCE: Final = 4
#: Rows before others have their turn.
_TURN: Final = 200
#: Of an answer, in fields.
MOST_COST: Final = 30_000


class Asker(Protocol):
    """`Ask`, as far as it is used here."""

    @property
    def by(self) -> Principal: ...
    async def run(self, action: Any, /) -> Any: ...


class Lists:
    """One request's view. What was looked up once is remembered, so that fields may ask for it as often as they like."""

    def __init__(self, asker: Asker, now: datetime, proxy_url: str) -> None:
        self._asker = asker
        self.by = asker.by
        self.now = now
        self.proxy_url = proxy_url
        self._found: dict[str, asyncio.Future[Any]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._spent = 0

    async def run(self, action: Any) -> Any:
        async with self._gate:
            return await self._asker.run(validated(action))

    async def _once(self, name: str, find: Callable[[], Awaitable[T]]) -> T:
        if name not in self._found:
            self._found[name] = asyncio.ensure_future(find())
        return await self._found[name]  # type: ignore[no-any-return]

    def spend(self, fields: int) -> None:
        """For lists whose length shows when they are there. Raises InvalidRequest."""
        self._spent += fields
        if self._spent > MOST_COST:
            raise InvalidRequest(
                f"The answer would have more than {MOST_COST:,} fields: ask for fewer, or for pages (keypair_list, user_list).",
                field="query",
            )

    @property
    def administers(self) -> bool:
        return self.by.role is not Role.USER

    # -- people --------------------------------------------------------------------------------------------------------
    async def users(self) -> Sequence[UserData]:
        """For administrators everybody they see; for others themselves."""
        return await self._once("users", self._users)

    async def _users(self) -> list[UserData]:
        if not self.administers:
            return [(await self.run(WhoAmIAction())).user]
        found: list[UserData] = []
        cursor = None
        while len(found) < MOST_LOOKED_AT:
            page = await self.run(ListUsersAction(cursor=cursor, limit=_PAGE))
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def user(self, email_or_id: str) -> UserData | None:
        return (await self._once("users by name", self._users_by_name)).get(email_or_id)

    async def _users_by_name(self) -> Mapping[str, UserData]:
        return {name: user for user in await self.users() for name in (user.email, str(user.id))}

    async def keypairs(self) -> Sequence[KeypairData]:
        return await self._once("keypairs", self._keypairs)

    async def _keypairs(self) -> list[KeypairData]:
        return list((await self.run(ListKeypairsAction())).items)

    async def projects(self) -> Sequence[ProjectData]:
        return await self._once("projects", self._projects)

    async def _projects(self) -> list[ProjectData]:
        return list((await self.run(ListProjectsAction())).items)

    async def policy_names(self) -> Mapping[tuple[str, str], str]:
        """Who has which, by (scope, of); others than administrators are not told."""
        return await self._once("policies", self._policy_names)

    async def _policy_names(self) -> Mapping[tuple[str, str], str]:
        return rows.policies_by_owner((await self.run(ListPoliciesAction())).items) if self.administers else {}

    async def owner_of(self, access_key: str) -> UserData | None:
        email = (await self._once("owners", self._owners)).get(access_key)
        return None if email is None else await self.user(email)

    async def _owners(self) -> Mapping[str, str]:
        return {keypair.access_key: keypair.user for keypair in await self.keypairs()}

    async def _main_keys(self) -> Mapping[str, str]:
        """Of each user the first that is active."""
        return {keypair.user: keypair.access_key for keypair in reversed(await self.keypairs()) if keypair.active}

    async def _project_ids(self) -> Mapping[tuple[str, str], str]:
        return {(project.domain, project.name): str(project.id) for project in await self.projects()}

    async def keypair_row(self, keypair: KeypairData) -> dict[str, Any]:
        policies = await self.policy_names()
        policy = policies.get(("keypair", keypair.access_key)) or policies.get(("user", keypair.user))
        row = rows.keypair(keypair, await self.user(keypair.user), policy)

        async def concurrency_used(_info: Any) -> int:
            return (await self.live_by_key()).get(keypair.access_key, 0)

        return {**row, "concurrency_used": concurrency_used}

    async def user_row(self, user: UserData) -> dict[str, Any]:
        async def groups(_info: Any) -> list[dict[str, str]]:
            ids = await self._once("project ids", self._project_ids)
            seen = [(name, ids.get((user.domain, name))) for name in user.projects]
            return [{"id": project_id, "name": name} for name, project_id in seen if project_id is not None]

        async def main_access_key(_info: Any) -> str | None:
            return (await self._once("main keys", self._main_keys)).get(user.email)

        return {**rows.user(user), "groups": groups, "main_access_key": main_access_key}

    # -- sessions ------------------------------------------------------------------------------------------------------
    async def sessions(self, statuses: Sequence[str], access_key: str | None, name: str | None) -> list[SessionData]:
        """Newest first. One's own; for administrators everybody's, or those of one keypair."""
        whose: dict[str, Any] = {}
        if access_key is not None and access_key != self.by.access_key:
            whose["owner_access_key"] = access_key
        elif access_key is None and self.administers:
            whose["all"] = True
        found: list[SessionData] = []
        cursor, looked_at = None, 0
        while looked_at < MOST_LOOKED_AT:
            asked = SearchSessionsAction(status=tuple(statuses), name=name, cursor=cursor, limit=_PAGE, **whose)
            page = await self.run(asked)
            found += [s for s in page.items if access_key is None or s.access_key == access_key]
            looked_at += len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def live_by_key(self) -> Mapping[str, int]:
        return await self._once("live", self._live_by_key)

    async def _live_by_key(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for session in await self.sessions((), None, None):
            counts[session.access_key] = counts.get(session.access_key, 0) + 1
        return counts

    def session_row(self, s: SessionData) -> dict[str, Any]:
        """What has to be looked up is looked up when it is asked for."""

        async def group_id(_info: Any) -> str | None:
            return (await self._once("project ids", self._project_ids)).get((s.domain, s.project))

        async def user_id(_info: Any) -> str | None:
            owner = await self.owner_of(s.access_key)
            return None if owner is None else str(owner.id)

        async def user_email(_info: Any) -> str | None:
            owner = await self.owner_of(s.access_key)
            return None if owner is None else owner.email

        async def containers(_info: Any) -> list[dict[str, Any]]:
            metrics = await self.run(GetMetricsAction(session_name=str(s.id), range="1m"))
            by_id = {one.kernel_id: one for one in metrics.kernels}
            return [rows.container(s, kernel, by_id.get(kernel.id)) for kernel in s.kernels]

        async def dependencies(_info: Any) -> list[dict[str, str]]:
            if not s.waits_for:
                return []
            graph = (await self.run(GetDependencyGraphAction(session_name=str(s.id)))).graph
            before = {edge.source for edge in graph.edges if edge.target == s.id}
            return [{"id": str(node.id), "name": node.name} for node in graph.nodes if node.id in before]

        async def abusing_reports(_info: Any) -> list[str]:
            report = await self.run(GetAbusingReportAction(session_name=str(s.id)))
            return [
                rows.text({"rule": check.rule, "explanation": check.explanation})
                for check in report.checks
                if check.fired
            ]

        lookups = {
            "group_id": group_id,
            "user_id": user_id,
            "user_email": user_email,
            "created_user_id": user_id,
            "created_user_email": user_email,
            "containers": containers,
            "dependencies": dependencies,
            "abusing_reports": abusing_reports,
        }
        return {**rows.session(s, self.now), **lookups}

    # -- volumes and hosts ---------------------------------------------------------------------------------------------
    async def volumes(self, *, everybodys: bool) -> list[VolumeData]:
        found: list[VolumeData] = []
        cursor = None
        while len(found) < MOST_LOOKED_AT:
            page = await self.run(ListVolumesAction(all=everybodys, cursor=cursor, limit=_PAGE))
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def use_by_agent(self) -> Mapping[str, tuple[float, float]]:
        """CPUs and MiB that sessions use on each host; a cluster's in equal parts."""
        return await self._once("use", self._use_by_agent)

    async def _use_by_agent(self) -> Mapping[str, tuple[float, float]]:
        used: dict[str, tuple[float, float]] = {}
        for session in (await self.run(GetTopAction(all=True, limit=1000))).sessions:
            for agent in session.agents:
                cpu, mem = used.get(agent, (0.0, 0.0))
                parts = len(session.agents)
                used[agent] = (cpu + (session.cpu or 0.0) / parts, mem + (session.mem or 0.0) / parts)
        return used


async def paged(
    found: Sequence[Mapping[str, Any]], columns: frozenset[str], asked: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], int]:
    """The page that is asked for, and how many there are in all. Raises InvalidRequest."""
    limit, offset = checked_page(asked["limit"], asked["offset"])
    try:
        fits = condition(asked.get("filter"), columns)
        fitting = ordered([row async for row in in_turns(found) if fits(row)], asked.get("order"), columns)
    except BadExpression as error:
        raise InvalidRequest(str(error), field="filter") from None
    return fitting[offset : offset + limit], len(fitting)


async def in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """One by one, with room for what others want now and then."""
    for start in range(0, len(items), _TURN):
        for item in items[start : start + _TURN]:
            yield item
        await asyncio.sleep(0)


def checked_page(limit: int, offset: int) -> tuple[int, int]:
    if not 1 <= limit <= MOST_ROWS or not 0 <= offset <= 10**9:
        raise InvalidRequest(f"The limit is 1 to {MOST_ROWS}, and the offset not negative.", field="limit")
    return limit, offset


async def or_none(answer: Awaitable[T], *errors: type[MoorageError]) -> T | None:
    """What is not there is null."""
    try:
        return await answer
    except errors:
        return None
