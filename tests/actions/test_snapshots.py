"""What commits, images of sessions and registries do to the rows, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions import (
    CollectImagesAction,
    CommitSessionAction,
    ConvertSessionToImageAction,
    CreateFromParamsAction,
    ForgetImageAction,
    GetCommitStatusAction,
    ListImagesAction,
    ListRegistriesAction,
    RemoveRegistryAction,
    RescanImagesAction,
    SetRegistryAction,
    ShareImageAction,
)
from domain.errors import (
    ImageNameTaken,
    ImageNotFound,
    ImageNotReady,
    InvalidImageName,
    InvalidRequest,
    PermissionDenied,
    ProjectNotFound,
    QuotaExceeded,
    RegistryNotFound,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StillInUse,
)
from domain.images import snapshot_reference
from domain.session import FINAL, Status
from repositories.database import Database
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    MALLORY,
    NOW,
    PROJECT,
    ROOT,
    RUN_ID,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    kernel_of,
    new_id,
    scenarios,
    wrong,
)

TRAINED = snapshot_reference(ALICE.user_id, "trained")
PUSHED = "registry.example.org/team/tool:1"
NO_STATUS = NotApplicable("this is about no session's status")


def a_snapshot(title: str = "trained", owner: Any = ALICE, **columns: Any) -> Given:
    row = {
        "name": snapshot_reference(owner.user_id, title),
        "architecture": "x86_64",
        "kind": "snapshot",
        "title": title,
        "owner_id": owner.user_id,
        "visibility": "user",
        "agent_id": HOST,
        "task_id": RUN_ID,
        "created_at": NOW,
    }
    return a_row("images", **{**row, **columns})


def a_task(status: str = "running", **columns: Any) -> Given:
    row = {"id": RUN_ID, "action": "commit_session", "user_id": ALICE.user_id, "session_id": ID, "status": status}
    ended = None if status in ("queued", "running") else NOW
    arguments = {"title": "trained", "image": TRAINED}
    return a_row("tasks", **{**row, "arguments": arguments, "created_at": NOW, "finished_at": ended, **columns})


def commit(name: str | None = "trained", **fields: Any) -> CommitSessionAction:
    return CommitSessionAction(session_name="train", name=name, **fields)


def imagify(image: str = PUSHED, **fields: Any) -> ConvertSessionToImageAction:
    return ConvertSessionToImageAction(session_name="train", image=image, **fields)


@scenarios(
    CommitSessionAction,
    success=TestScenario(
        given=(a_session(),),
        do=commit(),
        answer=lambda a: (a.task.id, a.task.status, a.task.session_id) == (new_id(0), "queued", ID),
        then_rows=(f"+images {TRAINED}", "+tasks commit_session"),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=commit(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PENDING),), do=commit(), error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=commit(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=commit("no/such name"), error=InvalidImageName, then_audit=None),
    more={
        **{
            f"a_dead_session_{status}": TestScenario(
                given=(a_session(status),),
                do=CommitSessionAction(session_name=str(ID), name="trained"),
                error=SessionEnded,
                then_audit=None,
            )
            for status in sorted(FINAL)
        },
        "a_taken_name": TestScenario(
            given=(a_session(), a_snapshot()), do=commit(), error=ImageNameTaken, then_audit=None
        ),
        "a_name_that_is_being_made": TestScenario(
            given=(a_session(), a_task(), a_snapshot(status="making")),
            do=commit(),
            error=ImageNameTaken,
            then_audit=None,
        ),
        "a_name_that_a_failed_task_has_left": TestScenario(
            given=(a_session(), a_task("failed"), a_snapshot(status="making")),
            do=commit(),
            then_rows=(
                "+tasks commit_session",
                f"images {TRAINED}: task_id {RUN_ID} -> {new_id(0)}",
                f"images {TRAINED}: session_id null -> {ID}",
            ),
        ),
        "an_alias_of_everybodys": TestScenario(
            given=(a_session(),), do=commit("python"), error=ImageNameTaken, then_audit=None
        ),
        "anothers_snapshot_takes_no_name_from_mine": TestScenario(
            given=(a_session(), a_snapshot(owner=MALLORY)),
            do=commit(),
            then_rows=(f"+images {TRAINED}", "+tasks commit_session"),
        ),
        **{
            f"more_than_a_{scope}_allows": TestScenario(
                given=(
                    a_session(),
                    a_snapshot("other"),
                    a_row("quotas", scope=scope, scope_id=scope_id, name="images", max_amount=1),
                ),
                do=commit(),
                error=QuotaExceeded,
                then_audit=None,
            )
            for scope, scope_id in (
                ("user", str(ALICE.user_id)),
                ("keypair", ALICE.access_key),
                ("project", str(PROJECT)),
                ("domain", "default"),
            )
        },
        "a_name_is_made_when_none_is_given": TestScenario(
            given=(a_session(),),
            do=commit(None),
            then_rows=(
                f"+images {snapshot_reference(ALICE.user_id, 'train-20260301-120001')}",
                "+tasks commit_session",
            ),
        ),
    },
)
async def test_commit_session(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ConvertSessionToImageAction,
    success=TestScenario(
        given=(a_session(),),
        do=imagify("registry.example.org/team/tool", visibility="project"),
        answer=lambda a: a.task.action == "convert_session_to_image",
        then_rows=("+images registry.example.org/team/tool:latest", "+tasks convert_session_to_image"),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=imagify(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.PREPARING),), do=imagify(), error=SessionNotReady, then_audit=None
    ),
    not_found=TestScenario(do=imagify(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=imagify("team/tool:1"), error=InvalidImageName, then_audit=None),
    more={
        "for_everybody_is_for_administrators": TestScenario(
            given=(a_session(),),
            do=imagify(visibility="public"),
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "for_a_project_of_others": TestScenario(
            given=(a_session(),),
            do=imagify(visibility="project", project="secret"),
            error=ProjectNotFound,
            then_audit="project_not_found",
        ),
        "a_taken_name": TestScenario(
            given=(a_session(), a_row("images", name=PUSHED, architecture="x86_64", created_at=NOW)),
            do=imagify(),
            error=ImageNameTaken,
            then_audit=None,
        ),
    },
)
async def test_convert_session_to_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetCommitStatusAction,
    success=TestScenario(
        given=(a_session(), a_task("failed", error={"code": "push_failed", "message": "No."})),
        do=GetCommitStatusAction(session_name="train"),
        answer=lambda a: (
            (a.commit_status.status, a.commit_status.image, a.commit_status.error["code"])
            == ("failed", "trained", "push_failed")
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(), a_task()),
        do=GetCommitStatusAction(session_name="train"),
        by=MALLORY,
        error=SessionNotFound,
        then_audit="session_not_found",
    ),
    wrong_status=NotApplicable("asked of a session in any status"),
    not_found=TestScenario(
        do=GetCommitStatusAction(session_name="nobody"), error=SessionNotFound, then_audit="session_not_found"
    ),
    bad_input=TestScenario(do=GetCommitStatusAction(session_name=wrong(None)), error=InvalidRequest, then_audit=None),
    more={
        "nothing_was_committed": TestScenario(
            given=(a_session(),),
            do=GetCommitStatusAction(session_name="train"),
            answer=lambda a: a.commit_status.status == "none",
            then_audit=None,
        )
    },
)
async def test_get_commit_status(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- images --------------------------------------------------------------------------------------------------------------
def share(visibility: Any = "project", image: str = "trained", **fields: Any) -> ShareImageAction:
    return ShareImageAction(image=image, visibility=visibility, **fields)


@scenarios(
    ShareImageAction,
    success=TestScenario(
        given=(a_snapshot(),),
        do=share(),
        answer=lambda a: (a.image.visibility, a.image.project) == ("project", "default"),
        then_rows=(f"images {TRAINED}: visibility user -> project", f"images {TRAINED}: project_id null -> {PROJECT}"),
    ),
    stranger=TestScenario(
        given=(a_snapshot(),), do=share(image=TRAINED), by=MALLORY, error=ImageNotFound, then_audit="image_not_found"
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=share(image="nothing"), error=ImageNotFound, then_audit="image_not_found"),
    bad_input=TestScenario(given=(a_snapshot(),), do=share("friends"), error=InvalidRequest, then_audit=None),
    more={
        "everybodys_image_is_not_mine_to_share": TestScenario(
            do=share("user", "python"), error=PermissionDenied, then_audit="permission_denied"
        ),
        "with_everybody_by_administrators": TestScenario(
            given=(a_snapshot(),), do=share("public"), error=PermissionDenied, then_audit="permission_denied"
        ),
        "an_administrator_shares_with_everybody": TestScenario(
            given=(a_snapshot(),),
            do=share("public", TRAINED),
            by=ROOT,
            then_rows=(f"images {TRAINED}: visibility user -> public",),
        ),
        "while_it_is_being_made": TestScenario(
            given=(a_task(), a_snapshot(status="making")), do=share(), error=ImageNotReady, then_audit=None
        ),
    },
)
async def test_share_image(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            TestScenario(
                given=(a_snapshot(), a_snapshot(owner=MALLORY)),
                do=ListImagesAction(),
                answer=lambda a: [i.name for i in a.items if i.kind == "snapshot"] == [TRAINED],
                then_audit=None,
            ),
            id="one_sees_ones_own",
        ),
        pytest.param(
            TestScenario(
                given=(a_snapshot(visibility="project", project_id=PROJECT),),
                do=ListImagesAction(),
                by=MALLORY,
                answer=lambda a: [i.owner for i in a.items if i.kind == "snapshot"] == ["alice@example.org"],
                then_audit=None,
            ),
            id="members_see_what_is_shared_with_their_project",
        ),
        pytest.param(
            TestScenario(
                given=(a_snapshot(),),
                do=ForgetImageAction(image="trained"),
                then_rows=(f"-images {TRAINED}", "+tasks remove_image"),
            ),
            id="a_snapshot_goes_from_its_host",
        ),
        pytest.param(
            TestScenario(
                given=(a_snapshot(visibility="project", project_id=PROJECT),),
                do=ForgetImageAction(image=TRAINED),
                by=MALLORY,
                error=PermissionDenied,
                then_audit="permission_denied",
            ),
            id="who_may_only_use_it_does_not_remove_it",
        ),
        pytest.param(
            TestScenario(
                given=(a_snapshot(), a_session(image=TRAINED)),
                do=ForgetImageAction(image="trained"),
                error=StillInUse,
                then_audit=None,
            ),
            id="what_a_session_is_made_of_stays",
        ),
        pytest.param(
            TestScenario(
                given=(a_snapshot(),),
                do=CreateFromParamsAction(image="trained", name="again"),
                by=MALLORY,
                error=ImageNotFound,
                then_audit="image_not_found",
            ),
            id="nobody_makes_a_session_of_anothers_snapshot",
        ),
        pytest.param(
            TestScenario(
                given=(a_task(), a_snapshot(status="making")),
                do=CreateFromParamsAction(image="trained", name="again"),
                error=ImageNotReady,
                then_audit=None,
            ),
            id="nor_of_one_that_is_being_made",
        ),
    ],
)
async def test_who_sees_and_uses_what(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    RescanImagesAction,
    success=TestScenario(do=RescanImagesAction(), by=ROOT, then_rows=("+tasks rescan_images",)),
    stranger=TestScenario(do=RescanImagesAction(), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it looks at whatever there is"),
    bad_input=TestScenario(
        do=RescanImagesAction(registry="http://evil/"), by=ROOT, error=InvalidImageName, then_audit=None
    ),
)
async def test_rescan_images(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    CollectImagesAction,
    success=TestScenario(do=CollectImagesAction(dry_run=True), by=ROOT, then_rows=("+tasks collect_images",)),
    stranger=TestScenario(do=CollectImagesAction(), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it looks at whatever there is"),
    bad_input=TestScenario(do=CollectImagesAction(older_than_days=-1), by=ROOT, error=InvalidRequest, then_audit=None),
)
async def test_collect_images(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


# -- registries ----------------------------------------------------------------------------------------------------------
def registry(owner: Any = ALICE) -> Given:
    columns = {"owner_id": None if owner is None else owner.user_id, "username": "bot", "sealed": b"x"}
    return a_row("registries", id=new_id(90), host="registry.example.org", **columns)


def login(host: str = "registry.example.org", **fields: Any) -> SetRegistryAction:
    return SetRegistryAction(host=host, username="robot", password="s3cret", **fields)


@scenarios(
    SetRegistryAction,
    success=TestScenario(
        do=login(),
        answer=lambda a: "s3cret" not in str(a) and not a.registry.common,
        then_rows=("+registries registry.example.org",),
    ),
    stranger=TestScenario(do=login(common=True), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("a registry is known by its credentials"),
    bad_input=TestScenario(do=login("http://x/y"), error=InvalidImageName, then_audit=None),
)
async def test_set_registry(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListRegistriesAction,
    success=TestScenario(
        given=(registry(),),
        do=ListRegistriesAction(),
        answer=lambda a: [(r.host, r.username) for r in a.items] == [("registry.example.org", "bot")],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(registry(),), do=ListRegistriesAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
    ),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("a list may be empty"),
    bad_input=NotApplicable("it takes nothing"),
)
async def test_list_registries(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    RemoveRegistryAction,
    success=TestScenario(
        given=(registry(),),
        do=RemoveRegistryAction(host="registry.example.org"),
        then_rows=("-registries registry.example.org",),
    ),
    stranger=TestScenario(
        given=(registry(),),
        do=RemoveRegistryAction(host="registry.example.org"),
        by=MALLORY,
        error=RegistryNotFound,
        then_audit="registry_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=RemoveRegistryAction(host="nowhere"), error=RegistryNotFound, then_audit="registry_not_found"
    ),
    bad_input=TestScenario(do=RemoveRegistryAction(host=""), error=InvalidRequest, then_audit=None),
)
async def test_remove_registry(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_whose_kernel_gets_which_password(database: Database) -> None:
    """Only for the image of a kernel that is meant to run on the host that asks, and with its owner's credentials."""
    from repositories.registry import RegistryRepository, owner_of_kernel
    from tests.scenario import stage

    await stage(database, a_session(), registry(), registry_for_all())
    async with database.reader() as connection:
        await connection.execute("UPDATE kernels SET spec = jsonb_build_object('image', $1::text)", PUSHED)
        kernel = kernel_of(ID)
        assert await owner_of_kernel(connection, kernel, HOST, PUSHED) == ALICE.user_id
        assert await owner_of_kernel(connection, kernel, "host-2", PUSHED) is None
        assert await owner_of_kernel(connection, kernel, HOST, "registry.example.org/other:1") is None
        rows = RegistryRepository(connection, now=NOW + timedelta(seconds=1))
        mine = await rows.of("registry.example.org", ALICE.user_id)
        others = await rows.of("registry.example.org", MALLORY.user_id)
    assert mine is not None
    assert others is not None
    assert (mine.username, others.username) == ("bot", "everybody")


def registry_for_all() -> Given:
    return a_row(
        "registries", id=new_id(91), host="registry.example.org", owner_id=None, username="everybody", sealed=b"x"
    )
