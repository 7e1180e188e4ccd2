"""What happens when files go into sessions, out of them, and about in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from actions import (
    DownloadFileAction,
    DownloadFilesAction,
    FileUploadSpec,
    ListFilesAction,
    ManageFilesAction,
    UploadFilesAction,
)
from actions.files import Stream
from agent.client import FileStat
from domain.errors import (
    FileExists,
    FileNotFound,
    FilePermissionDenied,
    InvalidPath,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    TransferFailed,
)
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent, FakeDownload
from tests.scenario import ALICE, ID, MALLORY, ROOT, WATCHER, TestScenario, a_session, scenarios, stage


def holding(**files: bytes) -> Callable[[FakeAgent], None]:
    """Files of the session's folder: `holding(a=b"1")` is /home/work/a."""
    return lambda fake: fake.files.update({f"/home/work/{name}": content for name, content in files.items()})


def upload(*files: FileUploadSpec, session_name: str = "train") -> UploadFilesAction:
    return UploadFilesAction(session_name=session_name, files=list(files))


hello = FileUploadSpec(filename="a.txt", content=b"hello")


async def _in_pieces() -> AsyncIterator[bytes]:
    yield b"one, "
    yield b"two"


def breaks_at_the_second(fake: FakeAgent) -> None:
    first = fake.upload

    async def upload(where: Any, path: str, body: AsyncIterator[bytes], **more: Any) -> FileStat:
        if fake.files:
            fake.calls.append(("upload", path))
            raise TransferFailed
        return await first(where, path, body, **more)

    fake.upload = upload  # type: ignore[method-assign]


@scenarios(
    UploadFilesAction,
    success=TestScenario(
        given=(a_session(),),
        do=upload(hello, replace(hello, filename="b.txt", content=b"", path="/tmp")),
        answer=lambda a: [(stat.type, stat.size) for stat in a.items] == [("file", 5), ("file", 0)],
        then_rows=("sessions train: bytes_in 0 -> 5",),
        then_agent=("upload", "upload"),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=upload(hello), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.PREPARING),), do=upload(hello), error=SessionNotReady, then_audit=None
    ),
    not_found=TestScenario(do=upload(hello), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=upload(), error=InvalidRequest, then_audit=None),
    more={
        "as_it_comes": TestScenario(
            given=(a_session(),),
            do=upload(replace(hello, content=_in_pieces())),
            answer=lambda a: a.items[0].size == 8,
            then_rows=("sessions train: bytes_in 0 -> 8",),
            then_agent=("upload",),
        ),
        "an_existing_file_is_kept_when_asked": TestScenario(
            given=(a_session(),),
            agent=holding(**{"a.txt": b"old"}),
            do=upload(replace(hello, overwrite=False)),
            error=FileExists,
            then_agent=("upload",),
            then_audit=None,
        ),
        "a_path_that_climbs_out_is_refused_before_any_is_written": TestScenario(
            given=(a_session(),),
            do=upload(hello, replace(hello, filename="../../etc/passwd")),
            error=InvalidPath,
            then_audit=None,
        ),
        "a_path_with_nul": TestScenario(
            given=(a_session(),), do=upload(replace(hello, filename="a\0b")), error=InvalidPath, then_audit=None
        ),
        "a_path_that_is_no_text": TestScenario(
            given=(a_session(),), do=upload(replace(hello, filename="\udcff")), error=InvalidRequest, then_audit=None
        ),
        "what_arrived_before_it_broke_is_counted": TestScenario(
            given=(a_session(),),
            agent=breaks_at_the_second,
            do=upload(hello, replace(hello, filename="b.txt")),
            error=TransferFailed,
            then_rows=("sessions train: bytes_in 0 -> 5",),
            then_agent=("upload", "upload"),
            then_audit=None,
        ),
        "a_folder_that_is_not_the_users": TestScenario(
            given=(a_session(),),
            agent=lambda fake: setattr(fake, "fails_with", FilePermissionDenied()),
            do=upload(replace(hello, path="/home/work/.root")),
            error=FilePermissionDenied,
            then_agent=("upload",),
            then_audit=None,
        ),
        "no_room_is_left": TestScenario(
            given=(a_session(),),
            agent=lambda fake: setattr(fake, "fails_with", QuotaExceeded()),
            do=upload(hello),
            error=QuotaExceeded,
            then_agent=("upload",),
            then_audit=None,
        ),
        "a_monitor_writes_nothing": TestScenario(
            given=(a_session(),),
            do=upload(hello, session_name=str(ID)),
            by=WATCHER,
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
    },
)
async def test_upload(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


download = DownloadFileAction(session_name="train", path="a")


@scenarios(
    DownloadFileAction,
    success=TestScenario(
        given=(a_session(),),
        agent=holding(a=b"hello"),
        do=download,
        answer=lambda a: a.stat.size == 5,
        then_agent=("download",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=download, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.TERMINATING),), do=download, error=SessionEnded, then_audit=None),
    not_found=TestScenario(
        given=(a_session(),), do=download, error=FileNotFound, then_agent=("download",), then_audit=None
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=DownloadFileAction(session_name="train", path="a", offset=-1),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "a_path_that_climbs_out": TestScenario(
            given=(a_session(),),
            do=DownloadFileAction(session_name="train", path="x/../../../etc/shadow"),
            error=InvalidPath,
            then_audit=None,
        ),
        "two_dots_in_a_name_are_no_way_up": TestScenario(
            given=(a_session(),),
            agent=holding(**{"a..b": b"x"}),
            do=DownloadFileAction(session_name="train", path="a..b"),
            then_agent=("download",),
            then_audit=None,
        ),
        "by_an_administrator_it_is_on_record": TestScenario(
            given=(a_session(),),
            agent=holding(a=b"x"),
            do=DownloadFileAction(session_name=str(ID), path="a"),
            by=ROOT,
            then_agent=("download",),
        ),
    },
)
async def test_download(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def closed(stream: Stream) -> bool:
    assert isinstance(stream.download, FakeDownload)
    return stream.download.closed


async def bytes_out(database: Database) -> int:
    async with database.reader() as connection:
        return int(await connection.fetchval("SELECT bytes_out FROM sessions"))


async def test_a_download_is_closed_and_counted_at_its_end(database: Database) -> None:
    fake = FakeAgent()
    holding(a=b"0123456789" * 1000)(fake)
    processor = await stage(database, a_session(), fake=fake)
    stream = await processor.run(replace(download, offset=5, length=2000), by=ALICE)
    assert await bytes_out(database) == 0
    assert await stream.read() == (b"0123456789" * 1000)[5:2005]
    assert closed(stream)
    assert await bytes_out(database) == 2000


async def test_a_download_that_is_given_up_is_closed_and_counts_what_went_out(database: Database) -> None:
    fake = FakeAgent()
    holding(a=b"x" * 5000)(fake)
    processor = await stage(database, a_session(), fake=fake)
    stream = await processor.run(download, by=ALICE)
    chunks: Any = stream.chunks()
    sent = len(await anext(chunks))
    await chunks.aclose()
    assert closed(stream)
    assert 0 < sent == await bytes_out(database) < 5000


archive = DownloadFilesAction(session_name="train", paths=["a", "b"])


@scenarios(
    DownloadFilesAction,
    success=TestScenario(
        given=(a_session(),),
        agent=holding(a=b"1", b=b"2"),
        do=archive,
        answer=lambda a: a.stat is None,
        then_agent=("archive",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=archive, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PENDING),), do=archive, error=SessionNotReady, then_audit=None),
    not_found=TestScenario(
        given=(a_session(),),
        agent=holding(a=b"1"),
        do=archive,
        error=FileNotFound,
        then_agent=("archive",),
        then_audit=None,
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=DownloadFilesAction(session_name="train", paths=[]),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "one_path_of_several_climbs_out": TestScenario(
            given=(a_session(),),
            do=DownloadFilesAction(session_name="train", paths=["a", "../b"]),
            error=InvalidPath,
            then_audit=None,
        ),
    },
)
async def test_archive(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


listing = ListFilesAction(session_name="train")


@scenarios(
    ListFilesAction,
    success=TestScenario(
        given=(a_session(),),
        agent=holding(b=b"22", a=b"1"),
        do=listing,
        answer=lambda a: [(s.name, s.size) for s in a.items] == [("a", 1), ("b", 2)] and a.next_cursor is None,
        then_agent=("list_files",),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=listing, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.RESTARTING),), do=listing, error=SessionNotReady, then_audit=None
    ),
    not_found=TestScenario(
        given=(a_session(),),
        do=ListFilesAction(session_name="train", path="nowhere"),
        error=FileNotFound,
        then_agent=("list_files",),
        then_audit=None,
    ),
    bad_input=TestScenario(
        given=(a_session(),), do=ListFilesAction(session_name="train", limit=0), error=InvalidRequest, then_audit=None
    ),
    more={
        "an_empty_folder": TestScenario(
            given=(a_session(),),
            do=listing,
            answer=lambda a: a.items == [],
            then_agent=("list_files",),
            then_audit=None,
        ),
        "a_folder_above": TestScenario(
            given=(a_session(),),
            do=ListFilesAction(session_name="train", path=".."),
            error=InvalidPath,
            then_audit=None,
        ),
    },
)
async def test_list_files(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_pages_of_files_leave_nothing_out(database: Database) -> None:
    fake = FakeAgent()
    holding(a=b"", b=b"", c=b"")(fake)
    processor = await stage(database, a_session(), fake=fake)
    first = await processor.run(replace(listing, limit=2), by=ALICE)
    second = await processor.run(replace(listing, limit=2, cursor=first.next_cursor), by=ALICE)
    assert [stat.name for stat in (*first.items, *second.items)] == ["a", "b", "c"]
    assert second.next_cursor is None


def manage(op: Any, path: str = "a", **fields: Any) -> ManageFilesAction:
    return ManageFilesAction(**{"session_name": "train", "op": op, "path": path, **fields})


def done(op: str, check: Callable[[FileStat | None], bool], **fields: Any) -> TestScenario:
    return TestScenario(
        given=(a_session(),),
        agent=holding(a=b"hello"),
        do=manage(op, **fields),
        answer=lambda a: check(a.file),
        then_agent=("manage_file",),
    )


def refused(**fields: Any) -> TestScenario:
    return TestScenario(given=(a_session(),), do=manage(**fields), error=InvalidRequest, then_audit=None)


@scenarios(
    ManageFilesAction,
    success=done("move", lambda file: file is not None and file.name.endswith("b") and file.size == 5, to="b"),
    stranger=TestScenario(
        given=(a_session(),), do=manage("stat"), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.PULLING),), do=manage("stat"), error=SessionNotReady, then_audit=None
    ),
    not_found=TestScenario(
        given=(a_session(),),
        do=manage("remove"),
        error=FileNotFound,
        then_agent=("manage_file",),
        then_audit=None,
    ),
    bad_input=refused(op="shred"),
    more={
        "a_folder_is_made": done("mkdir", lambda file: file is not None and file.type == "directory", path="new"),
        "a_copy": done("copy", lambda file: file is not None and file.size == 5, to="b"),
        "what_is_removed_is_no_more": done("remove", lambda file: file is None),
        "a_look": done("stat", lambda file: file is not None and file.size == 5),
        "a_mode_is_octal": done("chmod", lambda file: file is not None and file.mode == 0o600, mode="0600"),
        "a_move_needs_a_target": refused(op="move"),
        "only_move_and_copy_have_a_target": refused(op="remove", to="b"),
        "a_change_of_mode_needs_one": refused(op="chmod"),
        "a_mode_is_not_decimal": refused(op="chmod", mode="999"),
        "no_set_user_id": refused(op="chmod", mode="4755"),
        "a_target_that_climbs_out": TestScenario(
            given=(a_session(),), do=manage("move", to="../../b"), error=InvalidPath, then_audit=None
        ),
        "an_empty_path": refused(op="stat", path=""),
    },
)
async def test_manage_files(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
