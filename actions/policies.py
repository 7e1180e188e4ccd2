"""Policies: named sets of limits, for many users, projects, domains and keypairs at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    Work,
    action,
    domain_admin,
    domain_admin_or_monitor,
)
from actions.people import asked_domain, seen_domain
from actions.quotas import LimitOwner, Limits, ScopeName, limited_scope, wanted_limits
from actions.views import Done
from domain.errors import InvalidPolicy, InvalidRequest, NotFound, PermissionDenied
from domain.limits import Wanted, contradictions

PolicyName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Description = Annotated[str, Field(max_length=500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimit:
    """cpu in thousandths, memory in MiB, times in seconds."""

    name: str
    max: int
    waits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAssignment:
    scope: str  #: keypair, user, project, domain
    of: str  #: the user's e-mail address, the project's or the domain's name, the access key


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyData:
    name: str
    description: str
    limits: list[PolicyLimit]
    assigned: list[PolicyAssignment]
    created_at: datetime
    domain: str | None  #: whose administrators keep it; None: superadmins

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> PolicyData:
        return cls(
            name=row["name"],
            description=row["description"],
            limits=[PolicyLimit(**limit) for limit in row["limits"]],
            assigned=[PolicyAssignment(**one) for one in row["assigned"]],
            created_at=row["created_at"],
            domain=row["domain"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult(Result):
    policy: PolicyData


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPage(Result):
    items: list[PolicyData]
    next_cursor: str | None = None


async def _answer(call: Reading, name: str) -> PolicyResult:
    return PolicyResult(policy=PolicyData.of_row(await call.db.policies.policy(name, domain=seen_domain(call.by))))


async def _keep(call: Work, name: str) -> None:
    """That the asker may change it: it is the installation's, or of a domain. Raises PolicyNotFound."""
    found = await call.db.policies.policy(name, domain=seen_domain(call.by))
    if found["domain"] is None and not call.by.is_admin:
        raise PermissionDenied(
            f"The policy '{name}' is of the installation: superadmins change it; make one of your own."
        )


async def _check_of_domain(call: Work, scope: tuple[str, str], domain: str) -> None:
    """A domain's policy binds nobody outside of it: its administrators could change what binds others."""
    if scope not in await call.db.policies.scopes_of_domain(domain):
        raise InvalidRequest(f"This policy is of the domain '{domain}', and binds nobody outside of it.", field="of")


def _check(limits: Iterable[Wanted]) -> None:
    if found := contradictions(limits):
        raise InvalidPolicy(f"The policy contradicts itself: {' '.join(found)}")


@action(Rules(allow=domain_admin_or_monitor, effect=Effect.READ))
class ListPoliciesAction(ScopeAction[Reading, PolicyPage]):
    """All policies, with their limits and who has them; for domain admins the installation's and the domain's."""

    async def run(self, call: Reading, /) -> PolicyPage:
        found = await call.db.policies.policies(domain=seen_domain(call.by))
        return PolicyPage(items=[PolicyData.of_row(row) for row in found])


@action(Rules(allow=domain_admin_or_monitor, effect=Effect.READ))
class GetPolicyAction(ScopeAction[Reading, PolicyResult]):
    """One policy, its limits, and who has it."""

    policy: str

    async def run(self, call: Reading, /) -> PolicyResult:
        return await _answer(call, self.policy)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class CreatePolicyAction(ScopeAction[Work, PolicyResult]):
    """Make a named set of limits. It binds nobody until it is assigned."""

    policy: PolicyName
    description: Description = ""
    limits: Limits
    domain: str | None = (
        None  #: whose administrators keep it; a domain admin's own, and otherwise superadmins', when left out
    )

    def target(self) -> str:
        return self.policy

    async def run(self, call: Work, /) -> PolicyResult:
        wanted, _ = await wanted_limits(call, self.limits)
        _check(wanted)
        domain = self.domain if call.by.is_admin else asked_domain(call.by, self.domain)
        if domain is not None:
            await call.db.identity.domain(domain)  # is there one?
        await call.db.policies.add(self.policy, self.description, wanted, domain=domain)
        return await _answer(call, self.policy)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class ModifyPolicyAction(ScopeAction[Work, PolicyResult]):
    """Change limits of a policy, for everybody who has it at once; null takes a limit out. The others stay."""

    policy: str
    description: Description | None = None
    limits: Limits | None = None

    def target(self) -> str:
        return self.policy

    async def run(self, call: Work, /) -> PolicyResult:
        if self.description is None and not self.limits:
            raise InvalidRequest("Nothing to change was given; name a description or limits.", field="limits")
        await _keep(call, self.policy)
        wanted, lifted = await wanted_limits(call, self.limits or {})
        policies = call.db.policies
        now = {
            one["name"]: Wanted(name=one["name"], amount=one["max"], waits=one["waits"])
            for one in (await policies.lock(self.policy))["limits"]
            if one["name"] not in lifted
        }
        _check({**now, **{one.name: one for one in wanted}}.values())
        await policies.change(self.policy, self.description, wanted, lifted)
        call.announce("queue")
        return await _answer(call, self.policy)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class DeletePolicyAction(ScopeAction[Work, Done]):
    """Remove a policy that nobody has."""

    policy: str

    def target(self) -> str:
        return self.policy

    async def run(self, call: Work, /) -> Done:
        await _keep(call, self.policy)
        await call.db.policies.remove(self.policy)
        return Done()


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class AssignPolicyAction(ScopeAction[Work, PolicyResult]):
    """Let a policy bind a user, project, domain or keypair, instead of the one that did before."""

    policy: str
    scope: ScopeName
    of: LimitOwner

    def target(self) -> str:
        return f"{self.policy} {self.scope} {self.of}"

    async def run(self, call: Work, /) -> PolicyResult:
        policies = call.db.policies
        found = await policies.policy(self.policy, domain=seen_domain(call.by))
        await policies.lock(self.policy)
        scope = await limited_scope(call, self.scope, self.of)
        if found["domain"] is not None:
            await _check_of_domain(call, scope, found["domain"])
        await policies.assign(self.policy, scope)
        call.announce("queue")
        return await _answer(call, self.policy)


@action(Rules(allow=domain_admin, effect=Effect.DATABASE))
class UnassignPolicyAction(ScopeAction[Work, PolicyResult]):
    """Take a policy from a user, project, domain or keypair; what was set for it by itself stays."""

    policy: str
    scope: ScopeName
    of: LimitOwner

    def target(self) -> str:
        return f"{self.policy} {self.scope} {self.of}"

    async def run(self, call: Work, /) -> PolicyResult:
        policies = call.db.policies
        await policies.policy(self.policy, domain=seen_domain(call.by))
        await policies.lock(self.policy)
        scope = await limited_scope(call, self.scope, self.of)
        if not await policies.unassign(scope, self.policy):
            raise NotFound(f"The {self.scope} {self.of} does not have the policy '{self.policy}'.")
        call.announce("queue")
        return await _answer(call, self.policy)
