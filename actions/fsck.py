"""Check what must always hold, in the database and on the hosts, and put right what can be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from actions.base import Effect, Remote, Result, Rules, ScopeAction, Work, action, superadmin, superadmin_or_monitor
from domain.errors import InvalidRequest, MoorageError
from domain.fsck import Finding, compare
from domain.ids import AgentId
from domain.names import as_uuid
from domain.principal import TokenScope
from repositories import fsck
from repositories.agents import list_agents

#: What is found on a host is looked at again after so long: things that pass are no findings.
_PASSES_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport(Result):
    """What is wrong; nothing, when `findings` is empty. Hosts that were not reached were not looked at."""

    findings: list[Finding]
    checks: list[str]
    hosts: list[str]  #: whose containers were compared
    not_reached: list[str]


@action(Rules(allow=superadmin_or_monitor, effect=Effect.AGENT, deadline_seconds=300.0, scope=TokenScope.READ))
class FsckAction(ScopeAction[Remote, FsckReport]):
    """Check every invariant on the live system, and change nothing: the database, and each host's containers."""

    hosts: bool = True  #: compare the hosts' containers too

    async def run(self, call: Remote, /) -> FsckReport:
        async with call.service.reading(call) as reading:
            seal = call.service.seal
            findings = await fsck.find(
                reading.db.connection,
                now=reading.now,
                audit_key=seal.key if seal else None,
                audit_kept=seal.kept if seal else None,
            )
            agents = [AgentId(row["id"]) for row in await list_agents(reading.db.connection) if not row["lost"]]
        reached, away = await _compare_all(call, agents) if self.hosts else ({}, [])
        if suspects := {agent for agent, found in reached.items() if found}:
            await call.service.sleep(_PASSES_SECONDS)
            again, _ = await _compare_all(call, sorted(suspects))
            for agent in sorted(suspects):
                findings += [one for one in again.get(agent, []) if one in reached[agent]]
        checks = [*(check.name for check in fsck.CHECKS), "audit_chain"]
        return FsckReport(findings=findings, checks=checks, hosts=sorted(reached), not_reached=away)


async def _compare_all(call: Remote, agents: Sequence[AgentId]) -> tuple[dict[AgentId, list[Finding]], list[str]]:
    censuses = dict(zip(agents, await asyncio.gather(*(_census(call, agent) for agent in agents)), strict=True))
    counted = {agent: census for agent, census in censuses.items() if census is not None}
    ids = {as_uuid(str(one["kernel_id"])) for census in counted.values() for one in census["containers"]} - {None}
    async with call.service.reading(call) as reading:
        expected = await fsck.expected(reading.db.connection, list(counted))
        on_record = await fsck.known(reading.db.connection, ids)
    found = {
        agent: compare(agent, census, [row for row in expected if row.agent_id == agent], on_record)
        for agent, census in counted.items()
    }
    return found, sorted(set(agents) - counted.keys())


async def _census(call: Remote, agent: AgentId) -> dict[str, Any] | None:
    try:
        return await call.agents.census(agent)
    except MoorageError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckRepaired(Result):
    rows: dict[str, int]  #: changed, by check


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class FsckRepairAction(ScopeAction[Work, FsckRepaired]):
    """Put right what these checks find in the database, by recounting, freeing or setting what is missing."""

    checks: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]

    def target(self) -> str:
        return ", ".join(self.checks)[:200]

    async def run(self, call: Work, /) -> FsckRepaired:
        can = [check.name for check in fsck.CHECKS if check.repair is not None]
        for name in self.checks:
            if name not in can:
                raise InvalidRequest(
                    f"Nothing is repaired for '{name[:80]}'; there is {', '.join(can)}.", field="checks"
                )
        rows = await fsck.repair(call.db.connection, self.checks, now=call.now, cause=call.db.cause)
        for topic in ("queue", "dispatch", "events"):
            call.announce(topic)
        return FsckRepaired(rows=rows)
