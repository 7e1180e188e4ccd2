"""Domains, and a project looked at: who may, and what stands in the way of removing one."""

from __future__ import annotations

from typing import Any

from actions import (
    CreateDomainAction,
    DeleteDomainAction,
    GetDomainAction,
    GetProjectAction,
    ListDomainsAction,
    ModifyDomainAction,
)
from domain.errors import (
    AlreadyExists,
    Conflict,
    DomainNotFound,
    InvalidRequest,
    PermissionDenied,
    ProjectNotFound,
    StillInUse,
)
from domain.principal import Principal
from repositories.database import Database
from tests.actions.people import DORA, EVE, OTHERS, PIA
from tests.scenario import ALICE, NOW, ROOT, WATCHER, NotApplicable, TestScenario, a_row, new_id, scenarios, wrong

NO_STATUS = NotApplicable("this is about no session's status")


def denied(do: Any, by: Principal = ALICE) -> TestScenario:
    return TestScenario(given=(OTHERS,), do=do, by=by, error=PermissionDenied, then_audit="permission_denied")


def missing(do: Any, by: Principal = ROOT) -> TestScenario:
    return TestScenario(do=do, by=by, error=DomainNotFound, then_audit="domain_not_found")


def malformed(do: Any) -> TestScenario:
    return TestScenario(do=do, by=ROOT, error=InvalidRequest, then_audit=None)


@scenarios(
    ListDomainsAction,
    success=TestScenario(
        given=(OTHERS,),
        do=ListDomainsAction(),
        by=ROOT,
        answer=lambda a: (
            [(d.name, d.active, d.users, d.projects) for d in a.items] == [("default", True, 6, 1), ("lab", True, 2, 1)]
        ),
        then_audit=None,
    ),
    stranger=denied(ListDomainsAction()),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("a list may be empty"),
    bad_input=NotApplicable("it takes no input"),
    more={
        "a_monitor_may_look": TestScenario(do=ListDomainsAction(), by=WATCHER, then_audit=None),
        "a_domain_admin_has_one_and_sees_no_others": denied(ListDomainsAction(), DORA),
    },
)
async def test_list_domains(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetDomainAction,
    success=TestScenario(
        do=GetDomainAction(domain="default"), by=WATCHER, answer=lambda a: a.domain.users == 4, then_audit=None
    ),
    stranger=denied(GetDomainAction(domain="default")),
    wrong_status=NO_STATUS,
    not_found=missing(GetDomainAction(domain="nowhere")),
    bad_input=malformed(GetDomainAction(domain=wrong(None))),
)
async def test_get_domain(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    CreateDomainAction,
    success=TestScenario(
        do=CreateDomainAction(domain="lab"),
        by=ROOT,
        answer=lambda a: (a.domain.name, a.domain.projects) == ("lab", 1),
        then_rows=("+domains lab", "+projects default"),
    ),
    stranger=denied(CreateDomainAction(domain="mine")),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it is made here"),
    bad_input=malformed(CreateDomainAction(domain="two words")),
    more={
        "a_domain_admin_makes_none": denied(CreateDomainAction(domain="mine"), DORA),
        "one_that_is_there": TestScenario(
            do=CreateDomainAction(domain="default"), by=ROOT, error=AlreadyExists, then_audit=None
        ),
    },
)
async def test_create_domain(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ModifyDomainAction,
    success=TestScenario(
        given=(OTHERS,),
        do=ModifyDomainAction(domain="lab", active=False),
        by=ROOT,
        answer=lambda a: a.domain.active is False,
        then_rows=("domains lab: active true -> false",),
    ),
    stranger=denied(ModifyDomainAction(domain="lab", active=False)),
    wrong_status=NO_STATUS,
    not_found=missing(ModifyDomainAction(domain="nowhere", active=False)),
    bad_input=malformed(ModifyDomainAction(domain="lab", active=wrong("perhaps"))),
    more={
        "not_ones_own": denied(ModifyDomainAction(domain="default", active=False), ROOT),
        "a_domain_admin_does_not_open_it": denied(ModifyDomainAction(domain="default", active=True), DORA),
    },
)
async def test_modify_domain(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


EMPTY = (
    a_row("domains", name="old", created_at=NOW),
    a_row("projects", id=new_id(900), domain="old", name="default", created_at=NOW),
    a_row("quotas", scope="domain", scope_id="old", name="cpu", max_amount=1000),
    a_row("quotas", scope="project", scope_id=str(new_id(900)), name="cpu", max_amount=1000),
)


@scenarios(
    DeleteDomainAction,
    success=TestScenario(
        given=EMPTY,
        do=DeleteDomainAction(domain="old"),
        by=ROOT,
        then_rows=("-domains old", "-projects default", "-quotas cpu", "-quotas cpu"),
    ),
    stranger=denied(DeleteDomainAction(domain="lab")),
    wrong_status=NO_STATUS,
    not_found=missing(DeleteDomainAction(domain="nowhere")),
    bad_input=malformed(DeleteDomainAction(domain=wrong(7))),
    more={
        "one_with_users": TestScenario(
            given=(OTHERS,), do=DeleteDomainAction(domain="lab"), by=ROOT, error=StillInUse, then_audit=None
        ),
        "one_with_a_policy": TestScenario(
            given=(*EMPTY, a_row("policies", name="theirs", domain="old")),
            do=DeleteDomainAction(domain="old"),
            by=ROOT,
            error=StillInUse,
            then_audit=None,
        ),
        "the_one_that_everything_falls_back_to": TestScenario(
            do=DeleteDomainAction(domain="default"), by=ROOT, error=Conflict, then_audit=None
        ),
    },
)
async def test_delete_domain(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


vision = a_row("projects", id=new_id(901), domain="default", name="vision", created_at=NOW)


@scenarios(
    GetProjectAction,
    success=TestScenario(
        given=(OTHERS,),
        do=GetProjectAction(project="default"),
        answer=lambda a: a.project.admins == ["pia@example.org"] and "alice@example.org" in a.project.members,
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(vision,),
        do=GetProjectAction(project="vision"),
        error=ProjectNotFound,
        then_audit="project_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=GetProjectAction(project="no"), error=ProjectNotFound, then_audit="project_not_found"),
    bad_input=malformed(GetProjectAction(project=wrong([]))),
    more={
        "a_domain_admin_sees_all_of_the_domain": TestScenario(
            given=(OTHERS, vision), do=GetProjectAction(project="vision"), by=DORA, then_audit=None
        ),
        "and_of_no_other": TestScenario(
            given=(OTHERS,),
            do=GetProjectAction(project="default", domain="lab"),
            by=DORA,
            error=ProjectNotFound,
            then_audit="project_not_found",
        ),
        "a_project_admin_sees_no_other_project": TestScenario(
            given=(OTHERS, vision),
            do=GetProjectAction(project="vision"),
            by=PIA,
            error=ProjectNotFound,
            then_audit="project_not_found",
        ),
        "of_the_same_name_in_another_domain": TestScenario(
            given=(OTHERS,),
            do=GetProjectAction(project="default"),
            by=EVE,
            answer=lambda a: a.project.domain == "lab",
            then_audit=None,
        ),
        "a_superadmin_names_the_domain": TestScenario(
            given=(OTHERS,),
            do=GetProjectAction(project="default", domain="lab"),
            by=ROOT,
            answer=lambda a: a.project.members == ["eve@example.org", "lars@example.org"],
            then_audit=None,
        ),
    },
)
async def test_get_project(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
