"""What administrators do to users, keys, projects, quotas, images and hosts, and what everybody may see of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from actions import (
    AliasImageAction,
    CreateAgentTokenAction,
    CreateKeypairAction,
    CreateProjectAction,
    CreateTokenAction,
    CreateUserAction,
    DeleteKeypairAction,
    DeleteProjectAction,
    DeleteTokenAction,
    DeleteUserAction,
    ForgetImageAction,
    GetAgentAction,
    GetUserAction,
    ListAgentsAction,
    ListImagesAction,
    ListKeypairsAction,
    ListProjectsAction,
    ListTokensAction,
    ListUsersAction,
    ModifyAgentAction,
    ModifyKeypairAction,
    ModifyProjectAction,
    ModifyUserAction,
    PullImageAction,
    RegisterImageAction,
    RemoveAgentAction,
    WhoAmIAction,
)
from actions.administration import hash_secret
from domain.errors import (
    AgentNotFound,
    AlreadyExists,
    ImageNotFound,
    InvalidRequest,
    KeypairNotFound,
    NotFound,
    PermissionDenied,
    ProjectNotFound,
    StillInUse,
    UserNotFound,
)
from domain.principal import Role
from domain.session import Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    HOST,
    IMAGE,
    MALLORY,
    NOW,
    PROJECT,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    new_id,
    scenarios,
    stage,
    wrong,
)


def denied(do: Any, by: Any = ALICE, *given: Given) -> TestScenario:
    return TestScenario(given=given, do=do, by=by, error=PermissionDenied, then_audit="permission_denied")


def malformed(do: Any, by: Any = ROOT) -> TestScenario:
    return TestScenario(do=do, by=by, error=InvalidRequest, then_audit=None)


NO_STATUS = NotApplicable("this is about no session's status")


# -- users -------------------------------------------------------------------------------------------------------------
@scenarios(
    WhoAmIAction,
    success=TestScenario(
        do=WhoAmIAction(),
        answer=lambda a: (a.user.email, a.role, a.projects) == ("alice@example.org", Role.USER, ("default",)),
        then_audit=None,
    ),
    stranger=NotApplicable("everybody is somebody"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("who asks is there"),
    bad_input=NotApplicable("it takes no input"),
)
async def test_who_am_i(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


bob = CreateUserAction(email="bob@example.org")


@scenarios(
    CreateUserAction,
    success=TestScenario(
        do=bob,
        by=ROOT,
        answer=lambda a: (a.user.username, a.user.role, a.user.projects) == ("bob", "user", ["default"]),
        then_rows=(f"+project_members {PROJECT} {new_id(0)}", "+users bob@example.org"),
    ),
    stranger=denied(bob),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=CreateUserAction(email="bob@example.org", domain="nowhere"), by=ROOT, error=NotFound, then_audit="not_found"
    ),
    bad_input=malformed(CreateUserAction(email="bob at home")),
    more={
        "an_address_that_is_known": TestScenario(
            do=CreateUserAction(email="alice@example.org"), by=ROOT, error=AlreadyExists, then_audit=None
        ),
        "a_monitor_adds_nobody": denied(bob, WATCHER),
        "an_unknown_role": malformed(CreateUserAction(email="bob@example.org", role=wrong("king"))),
    },
)
async def test_create_user(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListUsersAction,
    success=TestScenario(
        do=ListUsersAction(),
        by=ROOT,
        answer=lambda a: [u.username for u in a.items] == ["alice", "mallory", "root", "watcher"],
        then_audit=None,
    ),
    stranger=denied(ListUsersAction()),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("who asks is there"),
    bad_input=malformed(ListUsersAction(limit=0)),
    more={"a_monitor_may_look": TestScenario(do=ListUsersAction(), by=WATCHER, then_audit=None)},
)
async def test_list_users(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_pages_of_users_leave_nobody_out(database: Database) -> None:
    processor = await stage(database)
    first = await processor.run(ListUsersAction(limit=3), by=ROOT)
    second = await processor.run(ListUsersAction(limit=3, cursor=first.next_cursor), by=ROOT)
    assert [user.username for user in (*first.items, *second.items)] == ["alice", "mallory", "root", "watcher"]
    assert second.next_cursor is None


@scenarios(
    GetUserAction,
    success=TestScenario(
        do=GetUserAction(user="alice@example.org"),
        by=ROOT,
        answer=lambda a: a.user.id == ALICE.user_id,
        then_audit=None,
    ),
    stranger=denied(GetUserAction(user="alice@example.org"), MALLORY),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=GetUserAction(user="nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"),
    bad_input=malformed(GetUserAction(user=wrong(None))),
    more={"by_id": TestScenario(do=GetUserAction(user=str(ALICE.user_id)), by=ROOT, then_audit=None)},
)
async def test_get_user(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def edit(user: str = "alice@example.org", **fields: Any) -> ModifyUserAction:
    return ModifyUserAction(user=user, **fields)


@scenarios(
    ModifyUserAction,
    success=TestScenario(
        do=edit(role=Role.MONITOR, username="al"),
        by=ROOT,
        answer=lambda a: (a.user.role, a.user.username) == ("monitor", "al"),
        then_rows=("users alice@example.org: role user -> monitor", "users alice@example.org: username alice -> al"),
    ),
    stranger=denied(edit(role=Role.SUPERADMIN)),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=edit("nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"),
    bad_input=malformed(edit(username="two words")),
    more={
        "an_account_is_closed": TestScenario(
            do=edit(active=False), by=ROOT, then_rows=("users alice@example.org: active true -> false",)
        ),
        "not_ones_own_account": denied(edit("root@example.org", active=False), ROOT),
        "not_ones_own_role": denied(edit("root@example.org", role=Role.USER), ROOT),
        "ones_own_name_of_course": TestScenario(
            do=edit("root@example.org", username="admin"),
            by=ROOT,
            then_rows=("users root@example.org: username root -> admin",),
        ),
    },
)
async def test_modify_user(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteUserAction,
    success=TestScenario(
        do=DeleteUserAction(user="alice@example.org"),
        by=ROOT,
        then_rows=(
            "-keypairs KEY-alice",
            f"-project_members {PROJECT} {ALICE.user_id}",
            "-users alice@example.org",
        ),
    ),
    stranger=denied(DeleteUserAction(user="alice@example.org"), MALLORY),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=DeleteUserAction(user="alice@example.org"),
        by=ROOT,
        error=StillInUse,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=DeleteUserAction(user="nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"
    ),
    bad_input=malformed(DeleteUserAction(user=wrong(1))),
    more={"not_oneself": denied(DeleteUserAction(user="root@example.org"), ROOT)},
)
async def test_delete_user(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- keypairs ----------------------------------------------------------------------------------------------------------
async def test_create_keypair_shows_its_secret_once(database: Database) -> None:
    processor = await stage(database)
    made = (await processor.run(CreateKeypairAction(), by=ALICE, key="k")).keypair
    again = (await processor.run(CreateKeypairAction(), by=ALICE, key="k")).keypair
    assert made.user == "alice@example.org"
    assert len(made.secret_key or "") >= 32
    assert (again.access_key, again.secret_key) == (made.access_key, None)
    async with database.reader() as connection:
        stored = await connection.fetchval("SELECT secret_hash FROM keypairs WHERE access_key = $1", made.access_key)
    assert stored == hash_secret(made.secret_key or "")


#: The access key is drawn by lot; `new_keypair` says what the answer has to be.
def new_keypair(answer: Any) -> bool:
    return bool(answer.keypair.access_key.startswith("MO") and answer.keypair.active and answer.keypair.secret_key)


@pytest.fixture
def not_by_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actions.credentials.secrets.token_hex", lambda size: "ab" * size)


@scenarios(
    CreateKeypairAction,
    success=TestScenario(do=CreateKeypairAction(), answer=new_keypair, then_rows=("+keypairs MO" + "AB" * 9,)),
    stranger=denied(CreateKeypairAction(user="alice@example.org"), MALLORY),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=CreateKeypairAction(user="nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"
    ),
    bad_input=malformed(CreateKeypairAction(user=wrong(5))),
    more={
        "an_administrator_makes_one_for_another": TestScenario(
            do=CreateKeypairAction(user="alice@example.org"),
            by=ROOT,
            answer=lambda a: new_keypair(a) and a.keypair.user == "alice@example.org",
            then_rows=("+keypairs MO" + "AB" * 9,),
        ),
        "a_monitor_makes_none": denied(CreateKeypairAction(), WATCHER),
    },
)
@pytest.mark.usefixtures("not_by_lot")
async def test_create_keypair(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def keys(*names: str) -> Any:
    return lambda answer: sorted(k.access_key for k in answer.items) == [f"KEY-{name}" for name in names]


@scenarios(
    ListKeypairsAction,
    success=TestScenario(do=ListKeypairsAction(), answer=keys("alice"), then_audit=None),
    stranger=denied(ListKeypairsAction(user="alice@example.org"), MALLORY),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=ListKeypairsAction(user="nobody"), by=ROOT, error=UserNotFound, then_audit="user_not_found"
    ),
    bad_input=malformed(ListKeypairsAction(user=wrong({}))),
    more={
        "everybodys_for_an_administrator": TestScenario(
            do=ListKeypairsAction(),
            by=ROOT,
            answer=keys("alice", "mallory", "root", "watcher"),
            then_audit=None,
        ),
        "one_users_for_an_administrator": TestScenario(
            do=ListKeypairsAction(user="alice@example.org"), by=ROOT, answer=keys("alice"), then_audit=None
        ),
        "no_secret_is_listed": TestScenario(
            do=ListKeypairsAction(), answer=lambda a: a.items[0].secret_key is None, then_audit=None
        ),
    },
)
async def test_list_keypairs(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


off = ModifyKeypairAction(keypair="KEY-alice", active=False)


@scenarios(
    ModifyKeypairAction,
    success=TestScenario(
        do=off, answer=lambda a: not a.keypair.active, then_rows=("keypairs KEY-alice: active true -> false",)
    ),
    stranger=TestScenario(do=off, by=MALLORY, error=KeypairNotFound, then_audit="keypair_not_found"),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=ModifyKeypairAction(keypair="KEY-x", active=True),
        by=ROOT,
        error=KeypairNotFound,
        then_audit="keypair_not_found",
    ),
    bad_input=malformed(ModifyKeypairAction(keypair="KEY-alice", active=wrong("perhaps"))),
    more={
        "an_administrator_disables_anybodys": TestScenario(
            do=off, by=ROOT, then_rows=("keypairs KEY-alice: active true -> false",)
        ),
    },
)
async def test_modify_keypair(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteKeypairAction,
    success=TestScenario(do=DeleteKeypairAction(keypair="KEY-alice"), then_rows=("-keypairs KEY-alice",)),
    stranger=TestScenario(
        do=DeleteKeypairAction(keypair="KEY-alice"),
        by=MALLORY,
        error=KeypairNotFound,
        then_audit="keypair_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=DeleteKeypairAction(keypair="KEY-x"), by=ROOT, error=KeypairNotFound, then_audit="keypair_not_found"
    ),
    bad_input=malformed(DeleteKeypairAction(keypair=wrong(None))),
)
async def test_delete_keypair(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- tokens ------------------------------------------------------------------------------------------------------------
@scenarios(
    CreateTokenAction,
    success=TestScenario(
        do=CreateTokenAction(token_name="ci", ttl_seconds=60),
        answer=lambda a: (
            a.token.secret_token.startswith("mot_") and a.token.expires_at - a.token.created_at == timedelta(minutes=1)
        ),
        then_rows=("+tokens ci",),
    ),
    stranger=denied(CreateTokenAction(), WATCHER),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it is made for who asks"),
    bad_input=malformed(CreateTokenAction(ttl_seconds=59)),
    more={"not_for_ever": malformed(CreateTokenAction(ttl_seconds=10**9))},
)
async def test_create_token(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


TOKEN = UUID("44444444-0000-7000-8000-000000000001")
A_TOKEN = a_row(
    "tokens", id=TOKEN, token_hash=b"t", access_key=ALICE.access_key, name="ci", expires_at=NOW + timedelta(days=1)
)


@scenarios(
    ListTokensAction,
    success=TestScenario(
        given=(A_TOKEN,),
        do=ListTokensAction(),
        answer=lambda a: [(t.name, t.secret_token) for t in a.items] == [("ci", None)],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(A_TOKEN,), do=ListTokensAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
    ),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
)
async def test_list_tokens(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteTokenAction,
    success=TestScenario(given=(A_TOKEN,), do=DeleteTokenAction(token_id=TOKEN), then_rows=("-tokens ci",)),
    stranger=TestScenario(
        given=(A_TOKEN,),
        do=DeleteTokenAction(token_id=TOKEN),
        by=MALLORY,
        error=NotFound,
        then_audit="not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=DeleteTokenAction(token_id=TOKEN), error=NotFound, then_audit="not_found"),
    bad_input=malformed(DeleteTokenAction(token_id=wrong("ci"))),
    more={
        "an_administrator_revokes_anybodys": TestScenario(
            given=(A_TOKEN,), do=DeleteTokenAction(token_id=TOKEN), by=ROOT, then_rows=("-tokens ci",)
        ),
    },
)
async def test_delete_token(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- projects ----------------------------------------------------------------------------------------------------------
VISION = UUID("55555555-0000-7000-8000-000000000001")
A_PROJECT = a_row("projects", id=VISION, domain="default", name="vision")


@scenarios(
    CreateProjectAction,
    success=TestScenario(
        do=CreateProjectAction(project="vision", members=["alice@example.org"]),
        by=ROOT,
        answer=lambda a: a.project.members == ["alice@example.org"],
        then_rows=(f"+project_members {new_id(0)} {ALICE.user_id}", "+projects vision"),
    ),
    stranger=denied(CreateProjectAction(project="vision")),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=CreateProjectAction(project="vision", members=["nobody"]),
        by=ROOT,
        error=UserNotFound,
        then_audit="user_not_found",
    ),
    bad_input=malformed(CreateProjectAction(project="a/b")),
    more={
        "a_name_that_is_known": TestScenario(
            given=(A_PROJECT,),
            do=CreateProjectAction(project="vision"),
            by=ROOT,
            error=AlreadyExists,
            then_audit=None,
        ),
        "an_unknown_domain": TestScenario(
            do=CreateProjectAction(project="vision", domain="x"), by=ROOT, error=NotFound, then_audit="not_found"
        ),
    },
)
async def test_create_project(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def names(*expected: str) -> Any:
    return lambda answer: [item.name for item in answer.items] == list(expected)


@scenarios(
    ListProjectsAction,
    success=TestScenario(given=(A_PROJECT,), do=ListProjectsAction(), answer=names("default"), then_audit=None),
    stranger=TestScenario(
        given=(A_PROJECT,), do=ListProjectsAction(), by=MALLORY, answer=names("default"), then_audit=None
    ),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
    more={
        "all_for_an_administrator": TestScenario(
            given=(A_PROJECT,), do=ListProjectsAction(), by=ROOT, answer=names("default", "vision"), then_audit=None
        ),
    },
)
async def test_list_projects(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def members(add: list[str], remove: list[str] | None = None, project: str = "vision") -> ModifyProjectAction:
    return ModifyProjectAction(project=project, add_members=add, remove_members=remove or [])


@scenarios(
    ModifyProjectAction,
    success=TestScenario(
        given=(A_PROJECT,),
        do=members(["alice@example.org", "alice@example.org"]),
        by=ROOT,
        answer=lambda a: a.project.members == ["alice@example.org"],
        then_rows=(f"+project_members {VISION} {ALICE.user_id}",),
    ),
    stranger=denied(members(["mallory@example.org"]), MALLORY, A_PROJECT),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=members([], project="nothing"), by=ROOT, error=ProjectNotFound, then_audit="project_not_found"
    ),
    bad_input=malformed(ModifyProjectAction(project="vision", add_members=wrong("alice@example.org"))),
    more={
        "a_member_leaves": TestScenario(
            do=members([], ["alice@example.org"], "default"),
            by=ROOT,
            then_rows=(f"-project_members {PROJECT} {ALICE.user_id}",),
        ),
        "one_who_is_unknown_lets_nobody_in": TestScenario(
            given=(A_PROJECT,),
            do=members(["alice@example.org", "nobody"]),
            by=ROOT,
            error=UserNotFound,
            then_audit="user_not_found",
        ),
    },
)
async def test_modify_project(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteProjectAction,
    success=TestScenario(
        given=(A_PROJECT,), do=DeleteProjectAction(project="vision"), by=ROOT, then_rows=("-projects vision",)
    ),
    stranger=denied(DeleteProjectAction(project="default")),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=DeleteProjectAction(project="default"),
        by=ROOT,
        error=StillInUse,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=DeleteProjectAction(project="vision"), by=ROOT, error=ProjectNotFound, then_audit="project_not_found"
    ),
    bad_input=malformed(DeleteProjectAction(project=wrong(None))),
)
async def test_delete_project(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- images ------------------------------------------------------------------------------------------------------------
@scenarios(
    ListImagesAction,
    success=TestScenario(
        do=ListImagesAction(),
        answer=lambda a: [(i.name, i.aliases) for i in a.items] == [(IMAGE, ("python", "python:3.9"))],
        then_audit=None,
    ),
    stranger=NotApplicable("everybody may see the images"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
)
async def test_list_images(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def register(image: str = "r:4", **fields: Any) -> RegisterImageAction:
    return RegisterImageAction(image=image, **fields)


@scenarios(
    RegisterImageAction,
    success=TestScenario(
        do=register(aliases=["r", "stats"], labels={"a": "b"}),
        by=ROOT,
        answer=lambda a: (a.image.aliases, a.image.labels) == (("r", "stats"), {"a": "b"}),
        then_rows=("+image_aliases r", "+image_aliases stats", "+images r:4"),
    ),
    stranger=denied(register()),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it is there from now on"),
    bad_input=malformed(register("no spaces")),
    more={
        "a_name_that_is_known": TestScenario(do=register(IMAGE), by=ROOT, error=AlreadyExists, then_audit=None),
        "an_alias_that_is_taken_registers_nothing": TestScenario(
            do=register(aliases=["python"]), by=ROOT, error=AlreadyExists, then_audit=None
        ),
        "replaced_when_asked": TestScenario(
            do=register(IMAGE, architecture="aarch64", replace=True),
            by=ROOT,
            then_rows=(f"images {IMAGE}: architecture x86_64 -> aarch64",),
        ),
        "an_alias_moves_when_asked": TestScenario(
            do=register(aliases=["python"], replace=True),
            by=ROOT,
            then_rows=("+images r:4", f"image_aliases python: image {IMAGE} -> r:4"),
        ),
    },
)
async def test_register_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    AliasImageAction,
    success=TestScenario(
        do=AliasImageAction(image="python", alias="py"),
        by=ROOT,
        answer=lambda a: a.image.name == IMAGE and "py" in a.image.aliases,
        then_rows=("+image_aliases py",),
    ),
    stranger=denied(AliasImageAction(image="python", alias="py")),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=AliasImageAction(image="nothing", alias="py"), by=ROOT, error=ImageNotFound, then_audit="image_not_found"
    ),
    bad_input=malformed(AliasImageAction(image="python", alias="")),
    more={
        "one_that_is_taken": TestScenario(
            do=AliasImageAction(image=IMAGE, alias="python"), by=ROOT, error=AlreadyExists, then_audit=None
        ),
    },
)
async def test_alias_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ForgetImageAction,
    success=TestScenario(
        given=(a_session(Status.TERMINATED),),
        do=ForgetImageAction(image="python"),
        by=ROOT,
        then_rows=("-image_aliases python", "-image_aliases python:3.9", f"-images {IMAGE}"),
    ),
    stranger=denied(ForgetImageAction(image="python")),
    wrong_status=TestScenario(
        given=(a_session(Status.PENDING),),
        do=ForgetImageAction(image=IMAGE),
        by=ROOT,
        error=StillInUse,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=ForgetImageAction(image="nothing"), by=ROOT, error=ImageNotFound, then_audit="image_not_found"
    ),
    bad_input=malformed(ForgetImageAction(image=wrong(None))),
)
async def test_forget_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    PullImageAction,
    success=TestScenario(
        do=PullImageAction(image="r:4", agent=HOST),
        by=ROOT,
        answer=lambda a: (a.task.id, a.task.status, a.task.action) == (new_id(0), "queued", "pull_image"),
        then_rows=("+tasks pull_image",),
    ),
    stranger=denied(PullImageAction(image="r:4")),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=PullImageAction(image="r:4", agent="host-9"), by=ROOT, error=AgentNotFound, then_audit="agent_not_found"
    ),
    bad_input=malformed(PullImageAction(image="--privileged")),
)
async def test_pull_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- hosts -------------------------------------------------------------------------------------------------------------
@scenarios(
    ListAgentsAction,
    success=TestScenario(
        given=(a_session(),),
        do=ListAgentsAction(),
        by=ROOT,
        answer=lambda a: (
            [(host.id, host.kernels) for host in a.items] == [(HOST, 1)]
            and (a.items[0].capacity["cpu"], a.items[0].used["cpu"]) == (8000, 1000)
        ),
        then_audit=None,
    ),
    stranger=denied(ListAgentsAction()),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
    more={"a_monitor_may_look": TestScenario(do=ListAgentsAction(), by=WATCHER, then_audit=None)},
)
async def test_list_agents(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetAgentAction,
    success=TestScenario(
        do=GetAgentAction(agent=HOST), by=ROOT, answer=lambda a: a.agent.architecture == "x86_64", then_audit=None
    ),
    stranger=denied(GetAgentAction(agent=HOST)),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=GetAgentAction(agent="host-9"), by=ROOT, error=AgentNotFound, then_audit="agent_not_found"
    ),
    bad_input=malformed(GetAgentAction(agent=wrong(None))),
)
async def test_get_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ModifyAgentAction,
    success=TestScenario(
        do=ModifyAgentAction(agent=HOST, schedulable=False),
        by=ROOT,
        answer=lambda a: not a.agent.schedulable,
        then_rows=(f"agents {HOST}: schedulable true -> false",),
    ),
    stranger=denied(ModifyAgentAction(agent=HOST, schedulable=False)),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=ModifyAgentAction(agent="host-9", schedulable=True),
        by=ROOT,
        error=AgentNotFound,
        then_audit="agent_not_found",
    ),
    bad_input=malformed(ModifyAgentAction(agent=HOST, schedulable=wrong("later"))),
)
async def test_modify_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


GONE = (f"-agents {HOST}", "-resources cpu", "-resources mem")


def lost() -> Given:
    async def put(connection: Any) -> None:
        await connection.execute("UPDATE agents SET lost = true")

    return Given(put=put)


async def _force(connection: Any) -> None:
    await connection.execute("UPDATE sessions SET status = 'TERMINATED', prev_status = status, ended_at = $1", NOW)


#: A session that was ended by force: its slots stay taken on a host that does not answer.
FORCED = (a_session(Status.TERMINATING), Given(put=_force))


@scenarios(
    RemoveAgentAction,
    success=TestScenario(do=RemoveAgentAction(agent=HOST), by=ROOT, then_rows=GONE),
    stranger=denied(RemoveAgentAction(agent=HOST)),
    wrong_status=TestScenario(
        given=(a_session(),), do=RemoveAgentAction(agent=HOST), by=ROOT, error=StillInUse, then_audit=None
    ),
    not_found=TestScenario(
        do=RemoveAgentAction(agent="host-9"), by=ROOT, error=AgentNotFound, then_audit="agent_not_found"
    ),
    bad_input=malformed(RemoveAgentAction(agent=HOST, lost_for_good=wrong("who knows"))),
    more={
        "what_has_ended_keeps_its_row_without_a_host": TestScenario(
            given=(a_session(Status.TERMINATED),),
            do=RemoveAgentAction(agent=HOST),
            by=ROOT,
            then_rows=(*GONE, f"kernels train: agent_id {HOST} -> null", "kernels train: want GONE -> NONE"),
        ),
        "slots_that_a_host_has_not_freed_keep_it": TestScenario(
            given=FORCED, do=RemoveAgentAction(agent=HOST), by=ROOT, error=StillInUse, then_audit=None
        ),
        "a_host_that_answers_is_not_lost_for_good": TestScenario(
            given=FORCED,
            do=RemoveAgentAction(agent=HOST, lost_for_good=True),
            by=ROOT,
            error=StillInUse,
            then_audit=None,
        ),
        "lost_for_good_its_slots_are_freed": TestScenario(
            given=(*FORCED, lost()),
            do=RemoveAgentAction(agent=HOST, lost_for_good=True),
            by=ROOT,
            then_rows=(
                *GONE,
                "-allocations train cpu 1000",
                "-allocations train mem 512",
                f"kernels train: agent_id {HOST} -> null",
                "kernels train: observed RUNNING -> GONE",
                "kernels train: want GONE -> NONE",
            ),
        ),
        "not_while_a_session_lives_there": TestScenario(
            given=(a_session(), lost()),
            do=RemoveAgentAction(agent=HOST, lost_for_good=True),
            by=ROOT,
            error=StillInUse,
            then_audit=None,
        ),
    },
)
async def test_remove_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


join = CreateAgentTokenAction(ttl_seconds=60)


async def test_create_agent_token_is_kept_as_a_hash_only(database: Database) -> None:
    processor = await stage(database)
    made = await processor.run(join, by=ROOT, key="k")
    async with database.reader() as connection:
        kept = await connection.fetchval("SELECT string_agg(t::text, '') FROM agent_tokens t")
        answer = await connection.fetchval("SELECT answer::text FROM idempotency_keys")
    assert made.secret is not None
    assert len(made.secret) >= 20
    assert made.secret not in kept + answer
    assert (await processor.run(join, by=ROOT, key="k")).secret is None


def joins(answer: Any) -> bool:
    return bool(answer.secret) and answer.expires_at == NOW + timedelta(seconds=61)


@scenarios(
    CreateAgentTokenAction,
    success=TestScenario(do=join, by=ROOT, answer=joins, then_rows=("+agent_tokens token",)),
    stranger=denied(join),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it is for a host that is not there yet"),
    bad_input=malformed(CreateAgentTokenAction(ttl_seconds=0)),
    more={"a_monitor_lets_nobody_join": denied(join, WATCHER)},
)
async def test_create_agent_token(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
