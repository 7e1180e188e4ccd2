"""Who has how much of a resource group, and why it is whose turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from actions.base import Effect, Reading, Result, Rules, ScopeAction, action, anyone
from actions.resource_groups import ResourceGroupData, found_groups, the_group
from domain.placement import Share
from domain.scheduler.order import Standing, capacity_of
from repositories.fair_share import shares
from repositories.fleet import hosts_of
from repositories.resource_groups import emails


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareData:
    """Of one user in one group. CPUs, MiB and devices."""

    resource_group: str
    user: str
    weight: float
    held: Mapping[str, float]  #: now
    past: Mapping[str, float]  #: the mean over time, what is one half-life old counting half
    share: float  #: of the group: the largest of (held + past) / capacity over cpu, mem and gpu, divided by the weight
    place: int  #: 1 for who has the lowest share, of those that hold or held something, or weigh something else than 1
    users: int  #: that have a place


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCapacity:
    """What the shares are shares of."""

    resource_group: str
    capacity: Mapping[str, float]  #: of its hosts that take sessions
    explanation: str  #: whose turn it is, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePage(Result):
    items: list[ShareData]  #: the lowest share of a group first
    groups: list[GroupCapacity]


@action(Rules(allow=anyone, effect=Effect.READ))
class ListSharesAction(ScopeAction[Reading, SharePage]):
    """What one holds and held of the resource groups that one may use, and one's place; for administrators everybody's."""

    resource_group: str | None = None

    def target(self) -> str | None:
        return self.resource_group

    async def run(self, call: Reading, /) -> SharePage:
        groups = (
            await found_groups(call) if self.resource_group is None else [await the_group(call, self.resource_group)]
        )
        connection = call.db.connection
        found = await shares(connection, call.now, [group.name for group in groups])
        hosts = await hosts_of(connection, now=call.now)
        items: list[ShareData] = []
        told = []
        for group in groups:
            capacity = capacity_of(host for host in hosts if host.resource_group == group.name)
            mine = [share for share in found if share.resource_group == group.name]
            ordered = await self._ordered(call, group, mine, capacity)
            items += [one for user_id, one in ordered if call.by.sees_all or user_id == call.by.user_id]
            told.append(
                GroupCapacity(resource_group=group.name, capacity=_readable(capacity), explanation=explanation(group))
            )
        return SharePage(items=items, groups=told)

    async def _ordered(
        self, call: Reading, group: ResourceGroupData, found: Sequence[Share], capacity: Mapping[str, int]
    ) -> list[tuple[UUID, ShareData]]:
        if not any(one.user_id == call.by.user_id for one in found) and not call.by.sees_all:
            found = [*found, Share(resource_group=group.name, user_id=call.by.user_id)]
        standing = Standing(found, capacity)
        names = await emails(call.db.connection, [one.user_id for one in found])
        ranked = sorted(found, key=lambda one: (standing.share(one.user_id), names.get(one.user_id, "")))
        return [
            (
                one.user_id,
                ShareData(
                    resource_group=group.name,
                    user=names.get(one.user_id, str(one.user_id)),
                    weight=one.weight,
                    held=_readable(one.held),
                    past=_readable(one.past),
                    share=standing.share(one.user_id),
                    place=place,
                    users=len(ranked),
                ),
            )
            for place, one in enumerate(ranked, 1)
        ]


def explanation(group: ResourceGroupData) -> str:
    """Whose turn it is in this group."""
    if group.ordering == "fifo":
        return "Higher priority first, then who asked first; what anybody held does not count here."
    days = group.half_life_seconds / 86400
    after = f"{days:g} days" if days >= 1 else f"{group.half_life_seconds / 3600:g} hours"
    return (
        "Higher priority first, then who has the lower share, then who asked first. A share is the largest of "
        "(held + past) / capacity over cpu, mem and gpu, divided by the user's weight; what was held counts half after "
        f"{after}."
    )


def _readable(amounts: Mapping[str, float]) -> dict[str, float]:
    return dict(_rounded(amounts.items()))


def _rounded(amounts: Iterable[tuple[str, float]]) -> Iterable[tuple[str, float]]:
    for name, amount in amounts:
        yield name, round(amount / 1000 if name == "cpu" else amount, 4)
