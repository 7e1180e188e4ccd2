"""What docs/roles.md says, tried: how far each role reaches, what it gets for an answer beyond that, what a token adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import pytest

from actions import (
    AssignPolicyAction,
    CreateFromParamsAction,
    CreateKeypairAction,
    CreatePolicyAction,
    CreateProjectAction,
    CreateTokenAction,
    CreateUserAction,
    DeletePolicyAction,
    DeleteUserAction,
    DestroySessionAction,
    DownloadFileAction,
    ExecuteSessionAction,
    GetPolicyAction,
    GetSessionInfoAction,
    GetUserAction,
    ListKeypairsAction,
    ListPoliciesAction,
    ListProjectsAction,
    ListQuotasAction,
    ListTokensAction,
    ListUsersAction,
    ModifyKeypairAction,
    ModifyProjectAction,
    ModifySessionAction,
    ModifyUserAction,
    ReadEventsAction,
    SearchSessionsAction,
    SetQuotaAction,
)
from actions.base import Action, Effect, Rules
from domain.errors import MoorageError
from domain.ids import AccessKey
from domain.principal import ALL_SCOPES, Credential, Principal, Role, TokenScope
from domain.resources import ResourceSlot
from manager.processor import Processor
from repositories.database import Database
from tests.actions.people import DORA, EVE, LARS, OTHERS, PIA
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    OTHER_ID,
    PROJECT,
    ROOT,
    WATCHER,
    Given,
    a_row,
    a_session,
    new_id,
    stage,
)

VISION: Final = UUID(int=0xF1)
#: A second project of the domain, with Alice and nobody who administers it.
vision: Final[Sequence[Given]] = (
    a_row("projects", id=VISION, domain="default", name="vision", created_at=NOW),
    a_row("project_members", project_id=VISION, user_id=ALICE.user_id),
)
ALICE2: Final = replace(ALICE, projects=("default", "vision"))


async def outcome(processor: Processor, action: Action[Any, Any], by: Principal) -> str:
    try:
        await processor.run(action, by=by)
    except MoorageError as error:
        return error.code
    return "ok"


HIDDEN, SEEN = "session_not_found", "permission_denied"
LOOK = GetSessionInfoAction(session_name=str(ID))
STEER = ModifySessionAction(session_name=str(ID), tag="x")
ENTER = ExecuteSessionAction(session_name=str(ID), code="1")


@pytest.mark.parametrize(
    ("by", "look", "steer", "enter"),
    [
        (ALICE2, "ok", "ok", "ok"),
        (MALLORY, HIDDEN, HIDDEN, HIDDEN),
        (PIA, "ok", "ok", SEEN),
        (DORA, "ok", "ok", "ok"),
        (ROOT, "ok", "ok", "ok"),
        (WATCHER, "ok", SEEN, SEEN),
        (EVE, HIDDEN, HIDDEN, HIDDEN),
        (LARS, HIDDEN, HIDDEN, HIDDEN),
        # who has left the project, looks at what is there and ends it, and gets in no more
        (replace(ALICE, projects=()), "ok", "ok", SEEN),
        # neither does a membership add anything to the role of a monitor, nor one's own session
        (replace(WATCHER, administers=frozenset({"default"})), "ok", SEEN, SEEN),
        (replace(ALICE, role=Role.MONITOR), "ok", SEEN, SEEN),
    ],
    ids="owner stranger project_admin domain_admin superadmin monitor other_domain other_domains_admin left monitor_leads demoted".split(),
)
async def test_a_session_in_a_project(database: Database, by: Principal, look: str, steer: str, enter: str) -> None:
    processor = await stage(database, OTHERS, a_session())
    got = [await outcome(processor, action, by) for action in (LOOK, STEER, ENTER)]
    assert got == [look, steer, enter]


async def test_a_project_admin_reaches_no_other_project(database: Database) -> None:
    processor = await stage(
        database, OTHERS, *vision, a_session(), a_session(id=OTHER_ID, name="other", project_id=VISION)
    )
    look = GetSessionInfoAction(session_name=str(OTHER_ID))
    assert await outcome(processor, look, PIA) == HIDDEN
    assert await outcome(processor, DestroySessionAction(session_name=str(OTHER_ID)), PIA) == HIDDEN
    found = await processor.run(SearchSessionsAction(all=True), by=PIA)
    assert [session.name for session in found.items] == ["train"]
    assert await outcome(processor, SearchSessionsAction(all=True), MALLORY) == SEEN
    assert len((await processor.run(SearchSessionsAction(all=True), by=DORA)).items) == 2
    assert (await processor.run(SearchSessionsAction(all=True), by=LARS)).items == []
    assert await outcome(processor, ReadEventsAction(session=str(ID), after=0), PIA) == "ok"
    assert await outcome(processor, ReadEventsAction(session=str(OTHER_ID), after=0), PIA) == HIDDEN


async def test_nothing_of_another_project_ends_with_it(database: Database) -> None:
    depends = a_row("session_dependencies", session_id=OTHER_ID, depends_on_id=ID, condition="success", created_at=NOW)
    other = a_session("PENDING", id=OTHER_ID, name="other", project_id=VISION)  # type: ignore[arg-type]
    processor = await stage(database, OTHERS, *vision, a_session(), other, depends)
    ending = DestroySessionAction(session_name=str(ID), recursive=True)
    assert await outcome(processor, ending, PIA) == SEEN
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT status FROM sessions WHERE id = $1", ID) == "RUNNING"
    assert await outcome(processor, ending, DORA) == "ok"


async def test_only_administrators_act_for_others_and_both_are_named(database: Database) -> None:
    processor = await stage(database, OTHERS)

    def create(owner: Principal | str, name: str) -> CreateFromParamsAction:
        key = owner if isinstance(owner, str) else owner.access_key
        return CreateFromParamsAction(
            image="python", name=name, owner_access_key=AccessKey(key), resource_slots=ResourceSlot(cpu=1, mem=512)
        )

    assert await outcome(processor, create(ALICE, "for-alice"), DORA) == "ok"
    assert await outcome(processor, create(ALICE, "for-alice-2"), ROOT) == "ok"
    # above oneself, beside oneself, and nobody at all: one answer
    for owner in (ROOT, WATCHER, EVE, "KEY-nobody"):
        assert await outcome(processor, create(owner, "never"), DORA) == SEEN
    for by in (MALLORY, PIA, LARS, WATCHER):
        assert await outcome(processor, create(ALICE, "never"), by) == SEEN
    async with database.reader() as connection:
        rows = await connection.fetch("SELECT access_key, owner_access_key FROM audit WHERE outcome = 'ok' ORDER BY id")
    assert [tuple(row) for row in rows] == [("KEY-dora", "KEY-alice"), ("KEY-root", "KEY-alice")]


# -- people ------------------------------------------------------------------------------------------------------------
async def test_a_domain_admin_looks_after_the_domain(database: Database) -> None:
    processor = await stage(database, OTHERS)

    async def got(action: Action[Any, Any], by: Principal = DORA) -> str:
        return await outcome(processor, action, by)

    assert await got(CreateUserAction(email="new@example.org")) == "ok"
    assert await got(CreateUserAction(email="boss@example.org", role=Role.DOMAIN_ADMIN)) == "ok"
    for role in (Role.SUPERADMIN, Role.MONITOR):
        assert await got(CreateUserAction(email="king@example.org", role=role)) == SEEN
        assert await got(ModifyUserAction(user="alice@example.org", role=role)) == SEEN
    for domain in ("lab", "nowhere"):
        assert await got(CreateUserAction(email="spy@example.org", domain=domain)) == "domain_not_found"
    assert await got(ModifyUserAction(user="alice@example.org", active=False)) == "ok"
    assert await got(ModifyUserAction(user="alice@example.org", uid=0)) == SEEN
    assert await got(ModifyUserAction(user="dora@example.org", role=Role.USER)) == SEEN
    # superadmins and monitors of the domain are seen and not touched, others are not there
    for action in (GetUserAction, DeleteUserAction):
        seen = "ok" if action is GetUserAction else SEEN
        assert await got(action(user="root@example.org")) == seen
        assert await got(action(user="eve@example.org")) == "user_not_found"
        assert await got(action(user="nobody@example.org")) == "user_not_found"
    assert await got(ModifyUserAction(user="watcher@example.org", active=False)) == SEEN
    listed = [user.username for user in (await processor.run(ListUsersAction(), by=DORA)).items]
    assert listed == ["alice", "boss", "dora", "mallory", "new", "pia", "root", "watcher"]
    for by in (ALICE, PIA):
        assert await got(ListUsersAction(), by) == SEEN


async def test_credentials_of_others(database: Database) -> None:
    processor = await stage(database, OTHERS)

    async def got(action: Action[Any, Any], by: Principal = DORA) -> str:
        return await outcome(processor, action, by)

    assert await got(CreateKeypairAction(user="alice@example.org")) == "ok"
    assert await got(CreateKeypairAction(user="root@example.org")) == SEEN
    assert await got(CreateKeypairAction(user="eve@example.org")) == "user_not_found"
    assert await got(CreateTokenAction(keypair="KEY-alice")) == "ok"
    assert await got(CreateTokenAction(keypair="KEY-watcher")) == SEEN
    assert await got(CreateTokenAction(keypair="KEY-eve")) == "keypair_not_found"
    assert await got(CreateTokenAction(keypair="KEY-alice"), MALLORY) == "keypair_not_found"
    assert await got(ModifyKeypairAction(keypair="KEY-alice", requests_per_second=5)) == "ok"
    assert await got(ModifyKeypairAction(keypair="KEY-alice", requests_per_second=50), ALICE) == SEEN
    assert await got(ModifyKeypairAction(keypair="KEY-alice", active=False), ALICE) == "ok"
    assert await got(ModifyKeypairAction(keypair="KEY-alice", active=True), ALICE) == SEEN
    assert await got(ModifyKeypairAction(keypair="KEY-alice", active=True)) == "ok"
    assert await got(ModifyKeypairAction(keypair="KEY-root", active=False)) == SEEN
    assert await got(ModifyKeypairAction(keypair="KEY-eve", active=False)) == "keypair_not_found"
    assert await got(ListKeypairsAction(user="alice@example.org"), MALLORY) == SEEN
    mine = (await processor.run(ListKeypairsAction(), by=LARS)).items
    assert {one.access_key for one in mine} == {"KEY-eve", "KEY-lars"}
    assert [one.user for one in (await processor.run(ListTokensAction(everybody=True), by=DORA)).items] == [
        "alice@example.org"
    ]
    assert await got(ListTokensAction(everybody=True), ALICE) == SEEN


# -- projects and limits -----------------------------------------------------------------------------------------------
async def test_members_come_and_go(database: Database) -> None:
    processor = await stage(database, OTHERS, *vision)

    async def got(by: Principal, project: str = "default", **fields: Any) -> str:
        return await outcome(processor, ModifyProjectAction(project=project, **fields), by)

    assert await got(PIA, remove_members=["mallory@example.org"]) == "ok"
    assert await got(PIA, add_members=["mallory@example.org"]) == "ok"
    assert await got(PIA, add_members=["eve@example.org"]) == "user_not_found"
    assert await got(PIA, add_admins=["alice@example.org"]) == SEEN
    assert await got(PIA, remove_members=["pia@example.org"]) == SEEN
    assert await got(PIA, "vision", add_members=["pia@example.org"]) == "project_not_found"
    assert await got(replace(PIA, projects=("default", "vision")), "vision", add_members=["pia@example.org"]) == (
        "project_not_found"
    )
    assert await got(ALICE, add_members=["alice@example.org"]) == SEEN
    assert await got(DORA, "vision", add_admins=["alice@example.org"]) == "ok"
    assert await got(DORA, "default", domain="lab", add_members=["eve@example.org"]) == "project_not_found"
    assert await got(ROOT, "default", domain="lab", add_members=["alice@example.org"]) == "user_not_found"
    assert await outcome(processor, CreateProjectAction(project="new", admins=["alice@example.org"]), DORA) == "ok"
    assert await outcome(processor, CreateProjectAction(project="new", domain="lab"), DORA) == "domain_not_found"
    assert await outcome(processor, CreateProjectAction(project="new"), PIA) == SEEN
    assert [one.name for one in (await processor.run(ListProjectsAction(), by=DORA)).items] == [
        "default",
        "new",
        "vision",
    ]
    assert [one.name for one in (await processor.run(ListProjectsAction(), by=PIA)).items] == ["default"]
    async with database.reader() as connection:
        led = await connection.fetchval("SELECT administers FROM project_members WHERE project_id = $1", VISION)
    assert led


async def test_limits_and_policies_of_a_domain(database: Database) -> None:
    processor = await stage(database, OTHERS, a_row("policies", name="common", created_at=NOW))
    limits = {"cpu": 4}

    async def got(action: Action[Any, Any], by: Principal = DORA) -> str:
        return await outcome(processor, action, by)

    assert await got(SetQuotaAction(scope="user", of="alice@example.org", limits=limits)) == "ok"
    assert await got(SetQuotaAction(scope="keypair", of="KEY-alice", limits=limits)) == "ok"
    assert await got(SetQuotaAction(scope="project", of="default", limits=limits)) == "ok"
    assert await got(SetQuotaAction(scope="domain", of="default", limits=limits)) == SEEN
    assert await got(SetQuotaAction(scope="domain", of="lab", limits=limits)) == "domain_not_found"
    assert await got(SetQuotaAction(scope="user", of="eve@example.org", limits=limits)) == "user_not_found"
    assert await got(SetQuotaAction(scope="keypair", of="KEY-eve", limits=limits)) == "keypair_not_found"
    assert await got(SetQuotaAction(scope="project", of="default@lab", limits=limits)) == "project_not_found"
    assert await got(ListQuotasAction(of="user:eve@example.org")) == "user_not_found"
    assert {one.of for one in (await processor.run(ListQuotasAction(everybody=True), by=LARS)).items} == set()
    assert len((await processor.run(ListQuotasAction(everybody=True), by=DORA)).items) == 3
    assert await got(CreatePolicyAction(policy="ours", limits=limits)) == "ok"
    assert await got(GetPolicyAction(policy="ours"), LARS) == "policy_not_found"
    assert await got(DeletePolicyAction(policy="ours"), LARS) == "policy_not_found"
    assert await got(DeletePolicyAction(policy="common")) == SEEN
    assert await got(AssignPolicyAction(policy="common", scope="user", of="alice@example.org")) == "ok"
    assert await got(AssignPolicyAction(policy="common", scope="user", of="eve@example.org")) == "user_not_found"
    assert await got(AssignPolicyAction(policy="ours", scope="user", of="eve@example.org"), ROOT) == "invalid_request"
    assert await got(AssignPolicyAction(policy="common", scope="user", of="eve@example.org"), LARS) == "ok"
    seen = {
        one.name: [whose.of for whose in one.assigned]
        for one in (await processor.run(ListPoliciesAction(), by=DORA)).items
    }
    assert seen == {"common": ["alice@example.org"], "ours": []}


# -- tokens ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scope", "look", "steer", "files", "administer"),
    [
        (TokenScope.READ, True, False, False, False),
        (TokenScope.SESSIONS, True, True, False, False),
        (TokenScope.FILES, True, False, True, False),
        (TokenScope.SERVICES, True, False, False, False),
        (TokenScope.ADMIN, True, False, False, True),
    ],
)
async def test_a_token_is_for_what_it_says(
    database: Database, scope: TokenScope, look: bool, steer: bool, files: bool, administer: bool
) -> None:
    processor = await stage(database, a_session(owner=ROOT))
    by = replace(ROOT, credential=Credential.TOKEN, scopes=frozenset({TokenScope.READ, scope}), token_id=new_id(5))
    download = DownloadFileAction(session_name=str(ID), path="x")
    asked = (LOOK, STEER, download, CreateUserAction(email="new@example.org"))
    refused = [await outcome(processor, action, by) == "scope_missing" for action in asked]
    assert refused == [not look, not steer, not files, not administer]
    missing = GetSessionInfoAction(session_name="nowhere")
    assert await outcome(processor, missing, replace(by, scopes=frozenset())) == "scope_missing"  # whatever is named


async def test_a_token_makes_nothing_that_outlives_it(database: Database) -> None:
    processor = await stage(database)
    by = replace(ROOT, credential=Credential.TOKEN, scopes=ALL_SCOPES, token_id=new_id(5))
    for action in (CreateKeypairAction(), CreateTokenAction(), CreateKeypairAction(user="alice@example.org")):
        assert await outcome(processor, action, by) == SEEN
    signed_in = replace(by, credential=Credential.SIGN_IN)
    assert await outcome(processor, CreateKeypairAction(), signed_in) == "ok"


def test_what_declares_no_scope_administers() -> None:
    def rules(effect: Effect) -> Rules:
        return Rules(allow=lambda _by, _session: True, effect=effect)

    assert rules(Effect.READ).needs is TokenScope.READ
    assert rules(Effect.DATABASE).needs is rules(Effect.AGENT).needs is TokenScope.ADMIN


def test_what_is_lost_is_noticed() -> None:
    assert not ALICE2.lost(ALICE)
    assert ALICE.lost(ALICE2)
    assert replace(PIA, administers=frozenset()).lost(PIA)
    assert replace(ROOT, role=Role.USER).lost(ROOT)
    assert replace(ALICE, scopes=frozenset({TokenScope.READ})).lost(ALICE)
    assert PROJECT != VISION
