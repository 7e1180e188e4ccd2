"""What happens when volumes are made, changed, shared, copied and removed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from actions import (
    CloneVolumeAction,
    CreateVolumeAction,
    DeleteVolumeAction,
    GetVolumeAction,
    LeaveVolumeAction,
    ListVolumesAction,
    ModifyVolumeAction,
    ShareVolumeAction,
    UnshareVolumeAction,
)
from domain.errors import (
    InvalidRequest,
    InvalidVolumeName,
    NoVolumeStore,
    QuotaExceeded,
    SharedWithNobody,
    ShareNotFound,
    UserNotFound,
    VolumeAmbiguous,
    VolumeMounted,
    VolumeNameTaken,
    VolumeNotFound,
    VolumeNotReady,
)
from domain.principal import Principal
from domain.session import Status
from repositories.database import Connection, Database
from tests.scenario import (
    ALICE,
    HOST,
    ID,
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
)

STORE = "5" * 32
VOLUME = UUID("33333333-0000-7000-8000-000000000001")
OTHER_VOLUME = UUID("33333333-0000-7000-8000-000000000002")
NO_STATUS = NotApplicable(reason="a volume that is not ready is covered where it matters")


async def _put_store(connection: Connection) -> None:
    await connection.execute("UPDATE agents SET info = $2 WHERE id = $1", HOST, {"volumes": STORE})


a_store = Given(put=_put_store)


def a_volume(
    name: str = "set", *, id: UUID = VOLUME, owner: Principal = ALICE, store: str = STORE, **columns: Any
) -> Given:
    row = {"id": id, "name": name, "user_id": owner.user_id, "store": store, "uid": 1000, "gid": 1000}
    return a_row("volumes", **{**row, "created_at": NOW, **columns})


def shared(who: Principal | None = MALLORY, *, volume: UUID = VOLUME, read_only: bool = True) -> Given:
    """With a user, or with everybody in the project."""
    whom = {"user_id": who.user_id} if who is not None else {"project_id": PROJECT}
    number = volume.int + (who.user_id.int if who is not None else 77)
    return a_row("volume_shares", id=UUID(int=number), volume_id=volume, read_only=read_only, created_at=NOW, **whom)


def mounted(read_only: bool = False, *, volume: UUID = VOLUME, path: str = "/home/work/set") -> Given:
    return a_row("volume_mounts", session_id=ID, volume_id=volume, path=path, read_only=read_only)


@scenarios(
    CreateVolumeAction,
    success=TestScenario(
        given=(a_store,),
        do=CreateVolumeAction(name="set", quota_bytes="10g", quota_files=5),
        answer=lambda a: a.volume.quota_bytes == 10 << 30 and a.volume.owned and not a.volume.read_only,
        then_rows=("+volumes set",),
    ),
    stranger=NotApplicable(reason="everybody makes volumes of their own"),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=CreateVolumeAction(name="set"), error=NoVolumeStore, then_audit=None),
    bad_input=TestScenario(
        given=(a_store,), do=CreateVolumeAction(name="../x"), error=InvalidVolumeName, then_audit=None
    ),
    more={
        "a_name_is_ones_own_once": TestScenario(
            given=(a_store, a_volume()),
            do=CreateVolumeAction(name="set"),
            error=VolumeNameTaken,
            then_audit=None,
        ),
        "another_may_have_the_name_too": TestScenario(
            given=(a_store, a_volume(owner=MALLORY)), do=CreateVolumeAction(name="set"), then_rows=("+volumes set",)
        ),
        "one_that_is_being_removed_does_not_hold_its_name": TestScenario(
            given=(a_store, a_volume(status="removing")),
            do=CreateVolumeAction(name="set"),
            then_rows=("+volumes set",),
        ),
        "a_store_that_nobody_has": TestScenario(
            given=(a_store,),
            do=CreateVolumeAction(name="set", store="nas"),
            error=NoVolumeStore,
            then_audit=None,
        ),
        **{
            f"as_many_as_a_{scope}_allows": TestScenario(
                given=(
                    a_store,
                    a_volume("other"),
                    a_volume("going", id=OTHER_VOLUME, status="removing"),
                    a_row("quotas", scope=scope, scope_id=scope_id, name="volumes", max_amount=1),
                ),
                do=CreateVolumeAction(name="set"),
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
        "each_user_may_have_as_many": TestScenario(
            given=(
                a_store,
                a_volume("other", owner=MALLORY),
                a_row("quotas", scope="domain", scope_id="default", name="volumes", max_amount=1),
            ),
            do=CreateVolumeAction(name="set"),
            then_rows=("+volumes set",),
        ),
        "a_negative_quota": TestScenario(
            given=(a_store,),
            do=CreateVolumeAction(name="set", quota_bytes=-2),
            error=InvalidRequest,
            then_audit=None,
        ),
    },
)
async def test_create(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


THREE = (a_volume(), a_volume("mine", id=OTHER_VOLUME, owner=MALLORY), shared())


@scenarios(
    ListVolumesAction,
    success=TestScenario(
        given=THREE,
        by=MALLORY,
        do=ListVolumesAction(),
        answer=lambda a: (
            [(v.name, v.owned, v.read_only) for v in a.items] == [("set", False, True), ("mine", True, False)]
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=THREE, by=WATCHER, do=ListVolumesAction(), answer=lambda a: not a.items, then_audit=None
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=ListVolumesAction(), answer=lambda a: a.items == [], then_audit=None),
    bad_input=TestScenario(do=ListVolumesAction(cursor="???"), error=InvalidRequest, then_audit=None),
    more={
        "everybodys_are_for_administrators": TestScenario(
            given=THREE, by=ROOT, do=ListVolumesAction(all=True), answer=lambda a: len(a.items) == 2, then_audit=None
        ),
        "all_of_a_users_are_those_that_it_may_use": TestScenario(
            given=THREE, by=ALICE, do=ListVolumesAction(all=True), answer=lambda a: len(a.items) == 1, then_audit=None
        ),
    },
)
async def test_list(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetVolumeAction,
    success=TestScenario(
        given=(a_store, a_volume(), shared(), shared(None, read_only=False)),
        do=GetVolumeAction(volume="set"),
        answer=lambda a: (a.volume.used_bytes, a.volume.used_files, len(a.volume.shares)) == (0, 0, 2),
        then_agent=("volume_usage",),
    ),
    stranger=TestScenario(
        given=(a_store, a_volume()),
        by=MALLORY,
        do=GetVolumeAction(volume=str(VOLUME)),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_store, a_volume(status="making")),
        do=GetVolumeAction(volume="set"),
        answer=lambda a: a.volume.status == "making" and a.volume.used_bytes is None,
    ),
    not_found=TestScenario(do=GetVolumeAction(volume="set"), error=VolumeNotFound, then_audit="volume_not_found"),
    bad_input=TestScenario(
        given=(a_volume(owner=ROOT), a_volume(id=OTHER_VOLUME, owner=WATCHER), shared(), shared(volume=OTHER_VOLUME)),
        by=MALLORY,
        do=GetVolumeAction(volume="set"),
        error=VolumeAmbiguous,
        then_audit=None,
    ),
    more={
        "without_a_host_its_use_is_unknown": TestScenario(
            given=(a_volume(),), do=GetVolumeAction(volume="set"), answer=lambda a: a.volume.used_bytes is None
        ),
        "ones_own_goes_before_a_shared_one": TestScenario(
            given=(a_volume(), a_volume(id=OTHER_VOLUME, owner=ROOT), shared(ALICE, volume=OTHER_VOLUME)),
            do=GetVolumeAction(volume="set"),
            answer=lambda a: a.volume.id == VOLUME,
        ),
        "an_administrator_reaches_it_by_id": TestScenario(
            given=(a_volume(),),
            by=ROOT,
            do=GetVolumeAction(volume=str(VOLUME)),
            answer=lambda a: not a.volume.owned and not a.volume.read_only,
        ),
        "a_monitor_only_looks": TestScenario(
            given=(a_volume(),),
            by=WATCHER,
            do=GetVolumeAction(volume=str(VOLUME)),
            answer=lambda a: a.volume.read_only,
        ),
    },
)
async def test_get(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ModifyVolumeAction,
    success=TestScenario(
        given=(a_volume(quota_bytes=7),),
        do=ModifyVolumeAction(volume="set", name="better", quota_bytes=-1, quota_files=9),
        then_rows=(
            "volumes better: name set -> better",
            "volumes better: quota_bytes 7 -> null",
            "volumes better: quota_files null -> 9",
        ),
    ),
    stranger=TestScenario(
        given=(a_volume(), shared(read_only=False)),
        by=MALLORY,
        do=ModifyVolumeAction(volume="set", name="mine"),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        do=ModifyVolumeAction(volume="set", name="mine"), error=VolumeNotFound, then_audit="volume_not_found"
    ),
    bad_input=TestScenario(
        given=(a_volume(),), do=ModifyVolumeAction(volume="set"), error=InvalidRequest, then_audit=None
    ),
    more={
        "to_a_name_that_is_taken": TestScenario(
            given=(a_volume(), a_volume("b", id=OTHER_VOLUME)),
            do=ModifyVolumeAction(volume="set", name="b"),
            error=VolumeNameTaken,
            then_audit=None,
        )
    },
)
async def test_modify(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ShareVolumeAction,
    success=TestScenario(
        given=(a_volume(),),
        do=ShareVolumeAction(volume="set", users=("mallory@example.org",), projects=("default",), read_only=False),
        answer=lambda a: (
            sorted((s.user, s.project, s.read_only) for s in a.volume.shares if s.user)
            == [("mallory@example.org", None, False)]
        ),
        then_rows=(f"+volume_shares {new_id(0)}", f"+volume_shares {new_id(1)}"),
    ),
    stranger=TestScenario(
        given=(a_volume(), shared(read_only=False)),
        by=MALLORY,
        do=ShareVolumeAction(volume="set", users=("root@example.org",)),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        given=(a_volume(),),
        do=ShareVolumeAction(volume="set", users=("nobody@example.org",)),
        error=UserNotFound,
        then_audit="user_not_found",
    ),
    bad_input=TestScenario(
        given=(a_volume(),), do=ShareVolumeAction(volume="set"), error=SharedWithNobody, then_audit=None
    ),
    more={
        "with_oneself_is_with_nobody": TestScenario(
            given=(a_volume(),),
            do=ShareVolumeAction(volume="set", users=("alice@example.org",)),
            error=SharedWithNobody,
            then_audit=None,
        ),
        "again_changes_how": TestScenario(
            given=(a_volume(), shared()),
            do=ShareVolumeAction(volume="set", users=("mallory@example.org",), read_only=False),
            then_rows=(f"volume_shares {UUID(int=VOLUME.int + 2)}: read_only true -> false",),
        ),
    },
)
async def test_share(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    UnshareVolumeAction,
    success=TestScenario(
        given=(a_volume(), shared(), shared(None)),
        do=UnshareVolumeAction(volume="set", users=("mallory@example.org",)),
        then_rows=(f"-volume_shares {UUID(int=VOLUME.int + 2)}",),
    ),
    stranger=TestScenario(
        given=(a_volume(), shared()),
        by=MALLORY,
        do=UnshareVolumeAction(volume="set", users=("mallory@example.org",)),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        given=(a_volume(), shared(None)),
        do=UnshareVolumeAction(volume="set", users=("mallory@example.org",), projects=("default",)),
        error=ShareNotFound,
        then_audit="share_not_found",
    ),
    bad_input=TestScenario(
        given=(a_volume(),),
        do=UnshareVolumeAction(volume="set"),
        error=SharedWithNobody,
        then_audit=None,
    ),
)
async def test_unshare(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    LeaveVolumeAction,
    success=TestScenario(
        given=(a_volume(), shared()),
        by=MALLORY,
        do=LeaveVolumeAction(volume="set"),
        then_rows=(f"-volume_shares {UUID(int=VOLUME.int + 2)}",),
    ),
    stranger=TestScenario(
        given=(a_volume(),),
        by=MALLORY,
        do=LeaveVolumeAction(volume="set"),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        given=(a_volume(), shared(None)),
        by=MALLORY,
        do=LeaveVolumeAction(volume="set"),
        error=ShareNotFound,
        then_audit="share_not_found",
    ),
    bad_input=TestScenario(
        given=(a_volume(),), do=LeaveVolumeAction(volume="set"), error=ShareNotFound, then_audit="share_not_found"
    ),
)
async def test_leave(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    CloneVolumeAction,
    success=TestScenario(
        given=(a_volume(quota_files=5), shared()),
        by=MALLORY,
        do=CloneVolumeAction(volume="set", name="copy"),
        answer=lambda a: a.task.action == "clone_volume" and a.task.status == "queued",
        then_rows=("+tasks clone_volume", "+volumes copy"),
    ),
    stranger=TestScenario(
        given=(a_volume(),),
        by=MALLORY,
        do=CloneVolumeAction(volume="set", name="copy"),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_volume(status="making"),),
        do=CloneVolumeAction(volume="set", name="copy"),
        error=VolumeNotReady,
        then_audit=None,
    ),
    not_found=TestScenario(
        do=CloneVolumeAction(volume="set", name="copy"), error=VolumeNotFound, then_audit="volume_not_found"
    ),
    bad_input=TestScenario(
        given=(a_volume(),),
        do=CloneVolumeAction(volume="set", name="set"),
        error=VolumeNameTaken,
        then_audit=None,
    ),
)
async def test_clone(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    DeleteVolumeAction,
    success=TestScenario(
        given=(a_volume(), shared(), a_session(Status.TERMINATED), mounted()),
        do=DeleteVolumeAction(volume="set"),
        then_rows=(
            "+tasks delete_volume",
            f"-volume_shares {UUID(int=VOLUME.int + 2)}",
            "volumes set: status ready -> removing",
            f"volumes set: task_id null -> {new_id(0)}",
        ),
    ),
    stranger=TestScenario(
        given=(a_volume(), shared(read_only=False)),
        by=MALLORY,
        do=DeleteVolumeAction(volume="set"),
        error=VolumeNotFound,
        then_audit="volume_not_found",
    ),
    wrong_status=TestScenario(
        given=(a_volume(status="making"),),
        do=DeleteVolumeAction(volume="set"),
        error=VolumeNotReady,
        then_audit=None,
    ),
    not_found=TestScenario(do=DeleteVolumeAction(volume="set"), error=VolumeNotFound, then_audit="volume_not_found"),
    bad_input=TestScenario(
        given=(a_volume(), a_session(), mounted()),
        do=DeleteVolumeAction(volume="set"),
        error=VolumeMounted,
        then_audit=None,
    ),
    more={
        "not_while_a_session_that_waits_will_mount_it": TestScenario(
            given=(a_volume(), a_session(Status.PENDING), mounted()),
            do=DeleteVolumeAction(volume="set"),
            error=VolumeMounted,
            then_audit=None,
        )
    },
)
async def test_delete(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
