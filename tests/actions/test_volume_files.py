"""What happens to files of volumes without a session, and to archives that are unpacked."""

from __future__ import annotations

from collections.abc import Callable

from actions import (
    DownloadVolumeFileAction,
    DownloadVolumeFilesAction,
    FileUploadSpec,
    ListVolumeFilesAction,
    ManageVolumeFilesAction,
    UnpackArchiveAction,
    UnpackVolumeArchiveAction,
    UploadVolumeFilesAction,
)
from domain.errors import (
    ArchiveRefused,
    FileNotFound,
    InvalidPath,
    InvalidRequest,
    NoVolumeStore,
    PermissionDenied,
    SessionEnded,
    SessionNotFound,
    VolumeNotFound,
    VolumeNotReady,
    VolumeReadOnly,
)
from domain.session import Status
from repositories.database import Database
from tests.actions.test_volumes import VOLUME, a_store, a_volume, shared
from tests.agent.fake import FakeAgent
from tests.scenario import MALLORY, ROOT, WATCHER, TestScenario, a_session, scenarios

READY = (a_store, a_volume())
MAKING = (a_store, a_volume(status="making"))
READ_ONLY = (a_store, a_volume(), shared())
hello = FileUploadSpec(filename="a.txt", content=b"hello")


def holding(**files: bytes) -> Callable[[FakeAgent], None]:
    return lambda fake: fake.files.update({f"/home/work/{name}": content for name, content in files.items()})


def upload(*files: FileUploadSpec) -> UploadVolumeFilesAction:
    return UploadVolumeFilesAction(volume="set", files=list(files))


@scenarios(
    UploadVolumeFilesAction,
    success=TestScenario(given=READY, do=upload(hello), answer=lambda a: a.items[0].size == 5, then_agent=("upload",)),
    stranger=TestScenario(
        given=READY, by=MALLORY, do=upload(hello), error=VolumeNotFound, then_audit="volume_not_found"
    ),
    wrong_status=TestScenario(given=MAKING, do=upload(hello), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(given=(a_volume(),), do=upload(hello), error=NoVolumeStore, then_audit=None),
    bad_input=TestScenario(
        given=READY, do=upload(FileUploadSpec(filename="../x", content=b"")), error=InvalidPath, then_audit=None
    ),
    more={
        "who_may_only_read": TestScenario(
            given=READ_ONLY, by=MALLORY, do=upload(hello), error=VolumeReadOnly, then_audit="volume_read_only"
        ),
        "who_may_write": TestScenario(
            given=(*READY, shared(None, read_only=False)), by=MALLORY, do=upload(hello), then_agent=("upload",)
        ),
        "no_file": TestScenario(given=READY, do=upload(), error=InvalidRequest, then_audit=None),
    },
)
async def test_upload(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def unpack(content: bytes = b"x y", path: str = "in") -> UnpackVolumeArchiveAction:
    return UnpackVolumeArchiveAction(volume="set", content=content, path=path)


@scenarios(
    UnpackVolumeArchiveAction,
    success=TestScenario(given=READY, do=unpack(), answer=lambda a: a.files == 2, then_agent=("unpack",)),
    stranger=TestScenario(given=READY, by=MALLORY, do=unpack(), error=VolumeNotFound, then_audit="volume_not_found"),
    wrong_status=TestScenario(given=MAKING, do=unpack(), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(do=unpack(), error=VolumeNotFound, then_audit="volume_not_found"),
    bad_input=TestScenario(
        given=READY, do=unpack(b"../x"), error=ArchiveRefused, then_agent=("unpack",), then_audit=None
    ),
    more={
        "who_may_only_read": TestScenario(
            given=READ_ONLY, by=MALLORY, do=unpack(), error=VolumeReadOnly, then_audit="volume_read_only"
        )
    },
)
async def test_unpack_into_a_volume(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def unpack_here(content: bytes = b"x y", path: str = "in") -> UnpackArchiveAction:
    return UnpackArchiveAction(session_name="train", content=content, path=path)


@scenarios(
    UnpackArchiveAction,
    success=TestScenario(
        given=(a_session(),),
        do=unpack_here(),
        answer=lambda a: a.files == 2,
        then_rows=("sessions train: bytes_in 0 -> 14",),
        then_agent=("unpack",),
    ),
    stranger=TestScenario(
        given=(a_session(),), by=MALLORY, do=unpack_here(), error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATING),), do=unpack_here(), error=SessionEnded, then_audit=None
    ),
    not_found=TestScenario(do=unpack_here(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),), do=unpack_here(b"../x"), error=ArchiveRefused, then_agent=("unpack",), then_audit=None
    ),
    more={
        "out_of_the_folder": TestScenario(
            given=(a_session(),), do=unpack_here(path="a/../../etc"), error=InvalidPath, then_audit=None
        )
    },
)
async def test_unpack_into_a_session(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def download(path: str = "a") -> DownloadVolumeFileAction:
    return DownloadVolumeFileAction(volume="set", path=path, offset=1, length=2)


@scenarios(
    DownloadVolumeFileAction,
    success=TestScenario(
        given=READ_ONLY, by=MALLORY, agent=holding(a=b"hello"), do=download(), then_agent=("download",), then_audit=None
    ),
    stranger=TestScenario(given=READY, by=MALLORY, do=download(), error=VolumeNotFound, then_audit="volume_not_found"),
    wrong_status=TestScenario(given=MAKING, do=download(), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(given=READY, do=download(), error=FileNotFound, then_agent=("download",), then_audit=None),
    bad_input=TestScenario(given=READY, do=download("../a"), error=InvalidPath, then_audit=None),
    more={
        "an_administrator_who_looks_into_anothers_is_on_record": TestScenario(
            given=READY,
            by=ROOT,
            agent=holding(a=b"hello"),
            do=DownloadVolumeFileAction(volume=str(VOLUME), path="a"),
            then_agent=("download",),
        ),
    },
)
async def test_download(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def archive(path: str = "a") -> DownloadVolumeFilesAction:
    return DownloadVolumeFilesAction(volume="set", paths=[path])


@scenarios(
    DownloadVolumeFilesAction,
    success=TestScenario(
        given=READY, agent=holding(a=b"hello"), do=archive(), then_agent=("archive",), then_audit=None
    ),
    stranger=TestScenario(given=READY, by=MALLORY, do=archive(), error=VolumeNotFound, then_audit="volume_not_found"),
    wrong_status=TestScenario(given=MAKING, do=archive(), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(given=READY, do=archive(), error=FileNotFound, then_agent=("archive",), then_audit=None),
    bad_input=TestScenario(given=READY, do=archive("../a"), error=InvalidPath, then_audit=None),
)
async def test_archive(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def listing(path: str = ".") -> ListVolumeFilesAction:
    return ListVolumeFilesAction(volume="set", path=path)


@scenarios(
    ListVolumeFilesAction,
    success=TestScenario(
        given=READY,
        agent=holding(a=b"", b=b""),
        do=listing(),
        answer=lambda a: [stat.name for stat in a.items] == ["a", "b"],
        then_agent=("list_files",),
        then_audit=None,
    ),
    stranger=TestScenario(given=READY, by=MALLORY, do=listing(), error=VolumeNotFound, then_audit="volume_not_found"),
    wrong_status=TestScenario(given=MAKING, do=listing(), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(
        given=READY, do=listing("x"), error=FileNotFound, then_agent=("list_files",), then_audit=None
    ),
    bad_input=TestScenario(given=READY, do=listing("a/../.."), error=InvalidPath, then_audit=None),
)
async def test_list(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def manage(op: str = "mkdir", path: str = "new", to: str | None = None) -> ManageVolumeFilesAction:
    return ManageVolumeFilesAction(volume="set", op=op, path=path, to=to)  # type: ignore[arg-type]


@scenarios(
    ManageVolumeFilesAction,
    success=TestScenario(
        given=READY, do=manage(), answer=lambda a: a.file.type == "directory", then_agent=("manage_file",)
    ),
    stranger=TestScenario(given=READY, by=MALLORY, do=manage(), error=VolumeNotFound, then_audit="volume_not_found"),
    wrong_status=TestScenario(given=MAKING, do=manage(), error=VolumeNotReady, then_audit=None),
    not_found=TestScenario(
        given=READY, do=manage("stat", "x"), error=FileNotFound, then_agent=("manage_file",), then_audit=None
    ),
    bad_input=TestScenario(given=READY, do=manage("move", "x"), error=InvalidRequest, then_audit=None),
    more={
        "a_monitor_changes_nothing": TestScenario(
            given=READY,
            by=WATCHER,
            do=ManageVolumeFilesAction(volume=str(VOLUME), op="mkdir", path="new"),
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "who_may_only_read_changes_nothing": TestScenario(
            given=READ_ONLY, by=MALLORY, do=manage(), error=VolumeReadOnly, then_audit="volume_read_only"
        ),
        "who_may_only_read_looks": TestScenario(
            given=READ_ONLY,
            by=MALLORY,
            agent=holding(a=b"1"),
            do=manage("stat", "a"),
            then_agent=("manage_file",),
        ),
    },
)
async def test_manage(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
