"""Files over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.rest.conftest import Caller, Installation

FILES = "/v1/sessions/train/files"
TEXT = b"0123456789"


@pytest.fixture
async def text(alice: Caller) -> str:
    assert (await alice.ask("PUT", f"{FILES}/a.txt", data=TEXT)).status == 200
    return f"{FILES}/a.txt"


async def test_a_file_goes_up_and_down(alice: Caller, text: str) -> None:
    answer = await alice.get(text)
    assert (answer.status, answer.body) == (200, TEXT)
    assert answer.headers["Content-Length"] == "10"
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a.txt"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Last-Modified"].endswith("GMT")


async def test_what_an_upload_may_say(alice: Caller) -> None:
    stat = await alice.ask("PUT", f"{FILES}/b.sh?mode=0755", data=b"x", headers={"If-None-Match": "*"})
    assert stat.status == 201
    assert {k: stat.json[k] for k in ("size", "mode", "type")} == {"size": 1, "mode": "0755", "type": "file"}
    assert stat.json["mtime"].endswith("Z")
    again = await alice.ask("PUT", f"{FILES}/b.sh", data=b"x", headers={"If-None-Match": "*"})
    assert (again.status, again.code) == (409, "file_exists")
    right = {"X-Content-Sha256": hashlib.sha256(b"x").hexdigest().upper()}
    assert (await alice.ask("PUT", f"{FILES}/b.sh", data=b"x", headers=right)).status == 200
    assert (await alice.ask("PUT", f"{FILES}/b.sh", data=b"y", headers=right)).code == "transfer_failed"
    for headers in ({"X-Content-Sha256": "7"}, {"If-None-Match": '"x"'}, {"Content-Range": "bytes 0-1/2"}):
        assert (await alice.ask("PUT", f"{FILES}/b.sh", data=b"x", headers=headers)).code == "invalid_request"
    assert (await alice.ask("PUT", f"{FILES}/b.sh?mode=rwx", data=b"x")).code == "invalid_request"
    zipped = await alice.ask("PUT", f"{FILES}/b.sh", data=b"x", headers={"Content-Encoding": "gzip"})
    assert zipped.code == "unsupported_media_type"
    assert (await alice.ask("PUT", f"{FILES}/empty")).json["size"] == 0


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("archive", "/home/work/archive"),
        ("manage", "/home/work/manage"),
        ("dir/x%20y%2Fz", "/home/work/dir/x y/z"),
        ("%2Ftmp/x", "/tmp/x"),
        ("%F0%9F%90%8D", "/home/work/🐍"),
        ("-rf", "/home/work/-rf"),
        ("a%0Ab", "/home/work/a\nb"),
    ],
)
async def test_names_of_all_kinds(alice: Caller, installation: Installation, name: str, path: str) -> None:
    assert (await alice.ask("PUT", f"{FILES}/{name}", data=TEXT)).status == 200
    assert installation.host.files[path] == (TEXT, 0o644)
    assert (await alice.get(f"{FILES}/{name}")).body == TEXT


@pytest.mark.parametrize("name", ["..%2Fx", "a/../b", "%2e%2e/x", "a%00b", "a%FFb", "a%ED%A0%80"])
async def test_names_that_are_refused(alice: Caller, installation: Installation, name: str) -> None:
    for method in ("PUT", "GET"):
        answer = await alice.ask(method, f"{FILES}/{name}", data=TEXT if method == "PUT" else None)
        assert (answer.status, answer.code in ("invalid_path", "invalid_request")) == (400, True)
    assert installation.host.calls == []


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, TEXT, "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-2", 200, TEXT, None),
        ("bytes=1-2,4-5", 200, TEXT, None),
        ("lines=1-2", 200, TEXT, None),
        ("bytes=-", 200, TEXT, None),
    ],
)
async def test_ranges(
    alice: Caller, text: str, asked: str, status: int, body: bytes, content_range: str | None
) -> None:
    answer = await alice.get(text, headers={"Range": asked})
    assert (answer.status, answer.body, answer.headers.get("Content-Range")) == (status, body, content_range)


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
async def test_ranges_outside(alice: Caller, text: str, asked: str) -> None:
    answer = await alice.get(text, headers={"Range": asked})
    assert (answer.status, answer.code, answer.json["size"]) == (416, "range_not_satisfiable", 10)


async def test_conditional_downloads(alice: Caller, text: str) -> None:
    first = await alice.get(text)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    assert (await alice.get(text, headers={"If-None-Match": etag})).status == 304
    assert (await alice.get(text, headers={"If-None-Match": '"other"'})).status == 200
    assert (await alice.get(text, headers={"If-Modified-Since": modified})).status == 304
    assert (await alice.get(text, headers={"If-Modified-Since": "nonsense"})).status == 200
    some = {"Range": "bytes=0-1"}
    assert (await alice.get(text, headers={**some, "If-Range": etag})).status == 206
    assert (await alice.get(text, headers={**some, "If-Range": '"other"'})).body == TEXT
    assert (await alice.get(text, headers={**some, "If-Range": modified})).status == 206
    head = await alice.ask("HEAD", text)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10")


async def test_downloads_are_closed_and_counted(alice: Caller, installation: Installation, text: str) -> None:
    await alice.get(text)
    async with asyncio.timeout(5):  # it is counted after the last byte has gone out
        while (shown := (await alice.get("/v1/sessions/train")).json)["bytes_out"] != 10:
            await asyncio.sleep(0.01)
    assert shown["bytes_in"] == 10
    assert all(download.closed for download in installation.host.downloads)


async def test_what_is_no_file(alice: Caller) -> None:
    await alice.ask("PUT", f"{FILES}/dir/x", data=b"x")
    assert (await alice.get(f"{FILES}/nothing")).code == "file_not_found"
    folder = await alice.get(f"{FILES}/dir")
    assert (folder.status, folder.code) == (400, "not_a_regular_file")
    assert (await alice.ask("PUT", f"{FILES}/", data=b"x")).code == "route_not_found"


async def test_a_download_that_breaks_is_not_taken_for_whole(alice: Caller, installation: Installation) -> None:
    installation.host.files["/home/work/breaks"] = (TEXT, 0o644)
    with pytest.raises(aiohttp.ClientPayloadError):
        await alice.get(f"{FILES}/breaks")
    assert (await alice.get("/healthz")).status == 200


async def test_an_upload_that_breaks_leaves_nothing(alice: Caller, installation: Installation) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        raise RuntimeError("the client gives up")

    with pytest.raises((RuntimeError, aiohttp.ClientError)):
        await alice.ask("PUT", f"{FILES}/half", data=body())
    async with asyncio.timeout(5):
        while "upload" not in installation.host.calls:
            await asyncio.sleep(0)
    assert (await alice.get(f"{FILES}/half")).code == "file_not_found"


async def test_a_form_of_files(alice: Caller, installation: Installation) -> None:
    form = aiohttp.FormData()
    form.add_field("first", b"1", filename="one.txt")
    form.add_field("path", "sub")
    form.add_field("second", b"2", filename="two.txt")
    answer = await alice.ask("POST", FILES, data=form)
    assert [item["size"] for item in answer.json["items"]] == [1, 1]
    assert set(installation.host.files) == {"/home/work/one.txt", "/home/work/sub/two.txt"}


async def test_forms_that_are_refused(alice: Caller) -> None:
    empty = aiohttp.FormData({"path": "x"})
    empty._is_multipart = True
    assert (await alice.ask("POST", FILES, data=empty)).code == "invalid_request"
    assert (await alice.ask("POST", FILES, {"path": "x"})).code == "unsupported_media_type"
    odd = aiohttp.FormData()
    odd.add_field("colour", "red")
    odd._is_multipart = True
    assert (await alice.ask("POST", FILES, data=odd)).code == "invalid_request"
    control = b'--x\r\nContent-Disposition: form-data; name="\x15"\r\n\r\n{}\r\n--x--\r\n'
    for body in (b"", control, b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=f; filename=g\r\n\r\nhalf"):
        broken = await alice.ask("POST", FILES, data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert 400 <= broken.status < 503, broken.body
        assert broken.code in ("invalid_request", "transfer_failed")
    unbounded = await alice.ask("POST", FILES, data=b"x", headers={"Content-Type": "multipart/form-data"})
    assert unbounded.code == "invalid_request"


async def test_an_archive_is_a_tar_stream(alice: Caller, text: str) -> None:
    answer = await alice.post(f"{FILES}/archive", {"paths": ["a.txt"]})
    assert answer.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        assert tar.getnames() == ["a.txt"]
    assert (await alice.post(f"{FILES}/archive", {"paths": []})).code == "invalid_request"
    assert (await alice.post(f"{FILES}/archive", {"paths": ["nothing"]})).code == "file_not_found"


async def test_files_are_listed_and_managed(alice: Caller, text: str) -> None:
    await alice.ask("PUT", f"{FILES}/b.txt", data=b"x")
    page = (await alice.get(f"{FILES}?limit=1")).json
    assert [item["name"] for item in page["items"]] == ["a.txt"]
    rest = (await alice.get(f"{FILES}?limit=1&cursor={page['next_cursor']}")).json
    assert ([item["name"] for item in rest["items"]], rest["next_cursor"]) == (["b.txt"], None)
    stat = (await alice.post(f"{FILES}/manage", {"op": "stat", "path": "a.txt"})).json["file"]
    assert (stat["size"], stat["mode"], stat["owner"]) == (10, "0644", 1000)
    assert (await alice.post(f"{FILES}/manage", {"op": "remove", "path": "a.txt"})).json == {"file": None}
    assert (await alice.post(f"{FILES}/manage", {"op": "explode", "path": "a.txt"})).code == "invalid_request"
    assert (await alice.post(f"{FILES}/manage", {"op": "move", "path": "a.txt"})).json["field"] == "to"


async def test_large_files_pass_through_in_pieces(alice: Caller, installation: Installation) -> None:
    size = 64 * 1024 * 1024

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield bytes(1 << 20)

    assert (await alice.ask("PUT", f"{FILES}/big", data=zeros())).json["size"] == size
    received = 0
    async with alice.request("GET", f"{FILES}/big") as response:
        async for chunk in response.content.iter_any():
            received += len(chunk)
    assert received == size
    assert installation.host.big_bytes == size


async def test_an_upload_goes_on_while_the_manager_stops(alice: Caller, installation: Installation) -> None:
    begun, rest = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        begun.set()
        await rest.wait()
        yield b"second"

    uploading = asyncio.create_task(alice.ask("PUT", f"{FILES}/slow", data=body()))
    await begun.wait()
    while "upload" not in installation.host.calls:
        await asyncio.sleep(0)
    closing = asyncio.create_task(installation.door.close(10.0))
    await asyncio.sleep(0)
    rest.set()
    answer = await uploading
    assert (answer.status, answer.json["size"]) == (200, 12)
    assert answer.headers["Connection"] == "close"
    await closing
