"""Apps are kept in every version, and belong to somebody."""

from __future__ import annotations

import asyncio
import io
from typing import Any, Final

import asyncpg
import pytest

from actions import DeleteAppAction, DeployAppAction, GetAppAction, ListAppsAction
from actions.apps import Archive
from actions.scopes import TemplateScope
from domain.errors import (
    AppNotFound,
    ImageNotFound,
    InvalidApp,
    InvalidName,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    RequestTooLarge,
    StillInUse,
)
from domain.session import Status
from repositories import apps as app_rows
from repositories.database import Database
from tests.scenario import (
    ALICE,
    IMAGE,
    MALLORY,
    PROJECT,
    ROOT,
    WATCHER,
    NotApplicable,
    TestScenario,
    a_worker,
    an_app,
    new_id,
    scenarios,
    stage,
    wrong,
)

ZIP: Final = b"PK\x03\x04" + bytes(3 * 1024 * 1024)
MADE: Final = f"{new_id(0)}"
BLOCKED: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def archive(content: bytes = ZIP, size: int | None = None) -> Archive:
    return Archive(io.BytesIO(content), size=len(content) if size is None else size, sha256="0" * 64)


def deploy(**fields: Any) -> DeployAppAction:
    return DeployAppAction(**{"name": "blur", "image": "python", "entry": "app:App", "path": "/opt/app", **fields})


@scenarios(
    DeployAppAction,
    success=TestScenario(
        do=deploy(idle_timeout=5, functions=("run", "train")),
        answer=lambda a: (
            (a.app.name, a.app.version, a.app.idle_timeout, a.app.functions) == ("blur", 1, 5, ("run", "train"))
            and (a.app.of, a.app.archive_bytes) == ("alice@example.org", 0)
        ),
        then_rows=("+apps blur", f"+app_versions {MADE} 1"),
    ),
    stranger=TestScenario(do=deploy(), by=WATCHER, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(do=deploy(image="nosuch"), error=ImageNotFound, then_audit="image_not_found"),
    bad_input=TestScenario(do=deploy(entry="app"), error=InvalidRequest, then_audit=None),
    more={
        "an_archive_is_kept_in_pieces": TestScenario(
            do=deploy(path=None, archive=archive()),
            answer=lambda a: (a.app.path, a.app.archive_bytes, a.app.archive_sha256) == (None, len(ZIP), "0" * 64),
            then_rows=(
                "+apps blur",
                f"+app_versions {MADE} 1",
                *(f"+app_chunks {MADE} {number} 1" for number in range(4)),
            ),
        ),
        "a_name_that_is_there_gets_its_next_version": TestScenario(
            given=(an_app(),),
            do=deploy(),
            answer=lambda a: a.app.version == 2 and [v.version for v in a.app.versions] == [2, 1],
            then_rows=("+app_versions 33333333-0000-7000-8000-000000000001 2",),
        ),
        "anothers_name_is_free": TestScenario(
            given=(an_app(owner=MALLORY),),
            do=deploy(),
            answer=lambda a: a.app.version == 1,
            then_rows=("+apps blur", f"+app_versions {MADE} 1"),
        ),
        "one_of_a_project_is_its_makers": TestScenario(
            given=(an_app(owner=MALLORY, scope={"project_id": PROJECT}),),
            do=deploy(scope="project", project="default"),
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "one_of_a_domain_is_for_administrators": TestScenario(
            do=deploy(scope="domain"), error=PermissionDenied, then_audit="permission_denied"
        ),
        "neither_archive_nor_path": TestScenario(do=deploy(path=None), error=InvalidApp, then_audit=None),
        "both_archive_and_path": TestScenario(do=deploy(archive=archive()), error=InvalidApp, then_audit=None),
        "an_archive_that_is_none": TestScenario(
            do=deploy(path=None, archive=archive(b"print(1)")), error=InvalidApp, then_audit=None
        ),
        "an_archive_that_is_empty": TestScenario(
            do=deploy(path=None, archive=archive(b"")), error=RequestTooLarge, then_audit=None
        ),
        "an_archive_that_is_too_large": TestScenario(
            do=deploy(path=None, archive=archive(size=64 * 1024 * 1024 + 1)), error=RequestTooLarge, then_audit=None
        ),
        "a_name_with_a_version_in_it": TestScenario(do=deploy(name="blur@2"), error=InvalidName, then_audit=None),
        "an_idle_timeout_that_is_too_long": TestScenario(
            do=deploy(idle_timeout=3601), error=InvalidRequest, then_audit=None
        ),
        "a_project_without_its_scope": TestScenario(
            do=deploy(project="default"), error=InvalidRequest, then_audit=None
        ),
    },
)
async def test_deploy_app(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListAppsAction,
    success=TestScenario(
        given=(an_app(),),
        do=ListAppsAction(),
        answer=lambda a: [one.name for one in a.items] == ["blur"],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(an_app(),), do=ListAppsAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
    more={
        "a_projects_are_its_members": TestScenario(
            given=(an_app(scope={"project_id": PROJECT}),),
            do=ListAppsAction(),
            by=MALLORY,
            answer=lambda a: [(one.scope, one.of) for one in a.items] == [("project", "default")],
            then_audit=None,
        ),
    },
)
async def test_list_apps(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetAppAction,
    success=TestScenario(
        given=(an_app(version=3),),
        do=GetAppAction(app="blur"),
        answer=lambda a: (a.app.version, a.app.image) == (3, IMAGE) and a.app.versions[0].by == ALICE.access_key,
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(an_app(),), do=GetAppAction(app="blur"), by=MALLORY, error=AppNotFound, then_audit="app_not_found"
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(do=GetAppAction(app="blur"), error=AppNotFound, then_audit="app_not_found"),
    bad_input=TestScenario(do=GetAppAction(app=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "a_version_that_is_not_there": TestScenario(
            given=(an_app(),), do=GetAppAction(app="blur@2"), error=AppNotFound, then_audit="app_not_found"
        ),
        "a_version_that_is_none": TestScenario(
            given=(an_app(),), do=GetAppAction(app="blur@new"), error=AppNotFound, then_audit="app_not_found"
        ),
        "by_its_id_and_version": TestScenario(
            given=(an_app(),),
            do=GetAppAction(app="33333333-0000-7000-8000-000000000001@1"),
            answer=lambda a: a.app.name == "blur",
            then_audit=None,
        ),
    },
)
async def test_get_app(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


GONE: Final = ("-apps blur", "-app_versions 33333333-0000-7000-8000-000000000001 1")
remove: Final = DeleteAppAction(app="blur")


@scenarios(
    DeleteAppAction,
    success=TestScenario(given=(an_app(),), do=remove, then_rows=GONE),
    stranger=TestScenario(given=(an_app(),), do=remove, by=MALLORY, error=AppNotFound, then_audit="app_not_found"),
    wrong_status=TestScenario(given=(an_app(), a_worker()), do=remove, error=StillInUse, then_audit=None),
    not_found=TestScenario(do=remove, error=AppNotFound, then_audit="app_not_found"),
    bad_input=TestScenario(do=DeleteAppAction(app=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "the_last_version_takes_it_along": TestScenario(
            given=(an_app(),), do=DeleteAppAction(app="blur@1"), then_rows=GONE
        ),
        "sessions_that_have_ended_do_not_hold_it": TestScenario(
            given=(an_app(), a_worker(Status.TERMINATED)), do=remove, then_rows=GONE
        ),
        "an_administrator_removes_anybodys": TestScenario(
            given=(an_app(),),
            do=DeleteAppAction(app="33333333-0000-7000-8000-000000000001"),
            by=ROOT,
            then_rows=GONE,
        ),
        "a_domains_is_its_administrators": TestScenario(
            given=(an_app(scope={"domain": "default"}),),
            do=remove,
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
    },
)
async def test_delete_app(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_the_newest_is_the_newest_that_is_there(database: Database) -> None:
    processor = await stage(database, an_app())
    await processor.run(deploy(), by=ALICE)
    await processor.run(DeleteAppAction(app="blur@2"), by=ALICE)
    found = await processor.run(GetAppAction(app="blur"), by=ALICE)
    assert (found.app.version, found.app.latest) == (1, 1)
    made = await processor.run(deploy(), by=ALICE)
    assert (made.app.version, made.app.latest) == (3, 3)


async def test_an_app_of_a_project_is_not_changed_by_who_comes_second(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = await stage(database)
    create = app_rows.AppRepository.create

    async def late(self: Any, *arguments: Any) -> bool:
        monkeypatch.undo()
        await processor.run(deploy(scope=TemplateScope.PROJECT, project="default"), by=MALLORY)
        return await create(self, *arguments)

    monkeypatch.setattr(app_rows.AppRepository, "create", late)
    with pytest.raises(PermissionDenied):
        await processor.run(deploy(scope=TemplateScope.PROJECT, project="default"), by=ALICE)


async def test_a_version_is_not_forgotten_while_a_session_is_made_of_it(
    database: Database, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_rows, "MOST_VERSIONS", 1)
    processor = await stage(database, an_app())
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM app_versions FOR KEY SHARE")  # as `employ` does
        deploying = asyncio.create_task(processor.run(deploy(), by=ALICE))
        await until_blocked(dsn)
        await a_worker().put(connection)
    made = await deploying
    assert [version.version for version in made.app.versions] == [2, 1]


async def until_blocked(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(20):
            while not await connection.fetchval(BLOCKED):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def test_archives_take_no_more_room_than_there_is(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_rows, "MOST_STORED_BYTES", len(ZIP) + 10)
    processor = await stage(database)
    await processor.run(deploy(path=None, archive=archive()), by=ALICE)
    with pytest.raises(QuotaExceeded):
        await processor.run(deploy(path=None, archive=archive()), by=ALICE)
    await processor.run(deploy(path=None, archive=archive()), by=MALLORY)


async def test_old_versions_are_forgotten_unless_a_session_is_made_of_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_rows, "MOST_VERSIONS", 2)
    processor = await stage(database, an_app(), a_worker())
    for _ in range(3):
        made = await processor.run(deploy(), by=ALICE)
    assert [version.version for version in made.app.versions] == [4, 3, 1]
