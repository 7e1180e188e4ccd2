"""Files of the front: kept in a volume of their owner, brought to sessions that are called with them, addressed by sealed links."""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from aiohttp import web
from aiohttp.web_request import BaseRequest

from actions import (
    CreateVolumeAction,
    DownloadFileAction,
    DownloadVolumeFileAction,
    ListVolumeFilesAction,
    ManageVolumeFilesAction,
    UploadFilesAction,
    UploadVolumeFilesAction,
)
from actions.files import WORK_DIR, FileUploadSpec, Stream
from domain.errors import (
    FileExists,
    FileNotFound,
    InvalidRequest,
    MoorageError,
    PermissionDenied,
    RequestTooLarge,
    VolumeNameTaken,
    VolumeNotFound,
)
from domain.ids import uuid7
from manager.compat.inference.ask import PREFIX, Ask
from manager.compat.inference.links import UPLOAD_SECONDS, Link, Links
from manager.rest.answers import iso
from manager.rest.streams import permitted

log = logging.getLogger("moorage.inference")
#: The volume in which everybody's files are, each in a folder with an id that says when it was made.
VOLUME: Final = "inference-files"
QUOTA: Final = "10g"
#: Where apps see them.
ROOT: Final = f"{WORK_DIR}/{VOLUME}"
MAX_FILE_BYTES: Final = 512 * 1024 * 1024
_MOST_AT_ONCE: Final = 100
KEPT_SECONDS: Final = 7 * 86400.0
_SWEEP_EVERY_SECONDS: Final = 3600.0
_MOST_SWEEPERS: Final = 10_000
_NAME: Final = re.compile(r"[^\w.\-]+")
_ADDRESS: Final = re.compile(rf"https?://[^/]+{re.escape(PREFIX)}/files/([A-Za-z0-9_-]+)/[^/]*")
_HEX: Final = r"[0-9a-f]"
_KEPT: Final = re.compile(rf"{re.escape(ROOT)}/({_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}/[^/]+)")
_FIELDS: Final = frozenset({"uri", "path", "content_type", "size", "filename"})


@dataclass(slots=True)
class Taken:
    """An input as the app is to get it, and the files in it, as paths in the volume."""

    value: Any
    paths: list[str] = field(default_factory=list)


# -- up and down, by address ---------------------------------------------------------------------------------------------
async def create(ask: Ask) -> web.StreamResponse:
    """Addresses to bring files to. What the client sends there it sends without its key."""
    body = await ask.body()
    asked = body.get("files")
    if not isinstance(asked, list) or not 1 <= len(asked) <= _MOST_AT_ONCE:
        raise InvalidRequest(f"'files' is a list of 1 to {_MOST_AT_ONCE} files.", field="files")
    specs = [_spec(one) for one in asked]
    made = []
    for name, size, content_type in specs:
        file_id = uuid7()
        await make_folder(ask, str(file_id))
        path = f"{file_id}/{name}"
        until = time.time() + UPLOAD_SECONDS
        token = ask.links.seal(Link(purpose="upload", access_key=ask.by.access_key, path=path, size=size, until=until))
        told = described(ask, path)
        told |= {"size": size, "content_type": content_type, "upload_url": f"{ask.base}/files/upload/{token}"}
        made.append(told)
    return ask.data(made)


def _spec(one: object) -> tuple[str, int, str]:
    if not isinstance(one, dict):
        raise InvalidRequest("Each of 'files' is an object with filename, content_type and size.", field="files")
    size = one.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidRequest("'size' is the number of bytes that will follow.", field="files.size")
    if size > MAX_FILE_BYTES:
        raise RequestTooLarge(f"A file has at most {MAX_FILE_BYTES >> 20} MiB; mount a volume for larger ones.")
    name, content_type = one.get("filename") or "file", one.get("content_type") or "application/octet-stream"
    if not isinstance(name, str) or not isinstance(content_type, str):
        raise InvalidRequest("'filename' and 'content_type' are text.", field="files.filename")
    return file_name(name), size, content_type[:200]


def file_name(text: str) -> str:
    """The last part of a path, of characters that no shell and no address minds; never empty, never of dots alone."""
    name = _NAME.sub("_", text.replace("\\", "/").rsplit("/", 1)[-1])[-120:].lstrip(".")
    return name or "file"


async def store(links: Links, ask_of: Any, request: BaseRequest, token: str) -> web.StreamResponse:
    """What comes to such an address. `ask_of` makes the request that of the file's owner."""
    link = links.open(token, "upload")
    ask: Ask = await ask_of(link.access_key)
    length = request.content_length
    if length is not None and length != link.size:
        raise InvalidRequest(f"{link.size} bytes were announced, and {length} come.", field="Content-Length")
    spec = FileUploadSpec(
        filename=link.path,
        content=_counted(ask, link.size) if request.body_exists else b"",
        size=link.size,
        overwrite=False,  # an address is good for one file
    )
    await ask.run(UploadVolumeFilesAction(volume=VOLUME, files=[spec]))
    return web.Response(status=200)


async def _counted(ask: Ask, size: int) -> AsyncIterator[bytes]:
    await ask.invite_body()
    left = size
    async for chunk in ask.chunks():
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise InvalidRequest(f"{size} bytes were announced, and {'more' if left < 0 else 'fewer'} came.", field="size")


async def fetch(links: Links, ask_of: Any, token: str) -> web.StreamResponse:
    link = links.open(token, "download")
    ask: Ask = await ask_of(link.access_key)
    stream: Stream = await ask.run(DownloadVolumeFileAction(volume=VOLUME, path=link.path))
    try:
        assert stream.stat is not None
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(posixpath.basename(link.path), safe='')}",
            "Cache-Control": "private, no-store",
        }
        response = await ask.begin(200, headers, length=stream.stat.size)
        async for chunk in stream.chunks():
            await ask.write(response, chunk)
        await response.write_eof()
        return response
    finally:
        await stream.aclose()


# -- what is told of them --------------------------------------------------------------------------------------------------
def described(ask: Ask, path: str) -> dict[str, Any]:
    file_id, _, name = path.partition("/")
    return {
        "id": file_id,
        "created_at": iso(_made_at(file_id)),
        "uri": address(ask, path),
        "path": path,
        "filename": name,
        "user_id": str(ask.by.user_id),
        "visibility": "private",
    }


def address(ask: Ask, path: str) -> str:
    """Where the file can be read, by anybody who has been given it."""
    until = (_made_at(path.partition("/")[0]) or time.time()) + KEPT_SECONDS
    token = ask.links.seal(Link(purpose="download", access_key=ask.by.access_key, path=path, until=until))
    return f"{ask.base}/files/{token}/{quote(posixpath.basename(path), safe='')}"


def _made_at(file_id: str) -> float | None:
    try:
        found = UUID(file_id)
    except ValueError:
        return None
    return (found.int >> 80) / 1000.0 if found.version == 7 else None


# -- into sessions, and out of them ----------------------------------------------------------------------------------------
async def taken(ask: Ask, value: Any) -> Taken:
    """Addresses in an input become the paths at which the app finds the files."""
    result = Taken(None)

    async def walk(one: Any) -> Any:
        if isinstance(one, str):
            match = _ADDRESS.fullmatch(one) if len(one) < 8192 else None
            return one if match is None else await _path_of(ask, match[1], result.paths)
        if isinstance(one, list):
            return [await walk(item) for item in one]
        if isinstance(one, dict):
            return {name: await walk(item) for name, item in one.items()}
        return one

    result.value = await walk(value)
    return result


async def _path_of(ask: Ask, token: str, paths: list[str]) -> str:
    link = ask.links.open(token, "download")
    owner = await ask.door.world.identities.of_access_key(link.access_key)
    if owner is None or owner.user_id != ask.by.user_id:
        raise PermissionDenied("The file is another user's; upload it yourself.")
    if link.path not in paths:
        paths.append(link.path)
    return f"{ROOT}/{link.path}"


async def bring(ask: Ask, session_id: UUID, paths: Iterable[str]) -> None:
    """Put files where the app looks for them, in a session that runs and has not mounted them."""
    for path in paths:
        stream: Stream = await ask.run(DownloadVolumeFileAction(volume=VOLUME, path=path))
        try:
            assert stream.stat is not None
            spec = FileUploadSpec(filename=f"{VOLUME}/{path}", content=stream.chunks(), size=stream.stat.size)
            async with permitted(ask):
                await ask.run(UploadFilesAction(session_name=str(session_id), files=[spec]))
        finally:
            await stream.aclose()


def told(ask: Ask, value: Any) -> Any:
    """The other way: paths of kept files become addresses."""
    if isinstance(value, str):
        match = _KEPT.fullmatch(value) if len(value) < 4096 else None
        return value if match is None else address(ask, match[1])
    if isinstance(value, list):
        return [told(ask, item) for item in value]
    if isinstance(value, dict):
        if is_file(value) and (match := _KEPT.fullmatch(value["path"])) is not None:
            return address(ask, match[1])
        return {name: told(ask, item) for name, item in value.items()}
    return value


def named(value: Any) -> list[str]:
    """The kept files that an input or an output names, as paths in the volume."""
    if isinstance(value, str):
        match = _KEPT.fullmatch(value) if len(value) < 4096 else None
        return [] if match is None else [match[1]]
    inside = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return list(dict.fromkeys(path for item in inside for path in named(item)))


def is_file(value: dict[str, Any]) -> bool:
    """What the `File` of an app's output looks like: a path in the container, and what is known of it."""
    return isinstance(value.get("path"), str) and value["path"].startswith("/") and value.keys() <= _FIELDS


async def collected(ask: Ask, session_id: UUID, call_id: UUID, output: Any) -> Any:
    """An output whose files have been taken out of the session; what cannot be had any more stays a path."""
    found: list[dict[str, Any]] = []
    _find(output, found)
    for number, one in enumerate(found):
        path = f"{call_id}/{number}-{file_name(one['path'])}"
        if await _is_kept(ask, path) or await _keep(ask, session_id, one["path"], path):
            one["path"] = f"{ROOT}/{path}"
    return output


def _find(value: Any, found: list[dict[str, Any]]) -> None:
    if isinstance(value, dict) and is_file(value):
        if _KEPT.fullmatch(value["path"]) is None and len(found) < _MOST_AT_ONCE:
            found.append(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _find(item, found)


async def _is_kept(ask: Ask, path: str) -> bool:
    try:
        await ask.run(ManageVolumeFilesAction(volume=VOLUME, op="stat", path=path))
    except (VolumeNotFound, FileNotFound):
        return False
    return True


async def _keep(ask: Ask, session_id: UUID, inside: str, path: str) -> bool:
    try:
        stream: Stream = await ask.run(DownloadFileAction(session_name=str(session_id), path=inside))
    except MoorageError as error:
        log.info("the output %s of session %s cannot be had: %s", inside[:200], session_id, error)
        return False
    try:
        assert stream.stat is not None
        await make_folder(ask, path.partition("/")[0])
        spec = FileUploadSpec(filename=path, content=stream.chunks(), size=stream.stat.size, overwrite=False)
        await ask.run(UploadVolumeFilesAction(volume=VOLUME, files=[spec]))
    except FileExists:
        return True  # another reader of the same task was faster
    finally:
        await stream.aclose()
    return True


# -- keeping house -----------------------------------------------------------------------------------------------------------
async def make_folder(ask: Ask, name: str) -> None:
    """In the volume, which is made with the first of them."""
    asked = ManageVolumeFilesAction(volume=VOLUME, op="mkdir", path=name, parents=True)
    try:
        await ask.run(asked)
    except VolumeNotFound:
        with suppress(VolumeNameTaken):  # by another request of the same user
            await ask.run(CreateVolumeAction(name=VOLUME, quota_bytes=QUOTA))
        await ask.run(asked)


async def remove(ask: Ask, path: str) -> bool:
    try:
        await ask.run(ManageVolumeFilesAction(volume=VOLUME, op="remove", path=path.partition("/")[0], recursive=True))
    except (VolumeNotFound, FileNotFound):
        return False
    return True


class Sweeper:
    """Removes what was kept long enough, when its owner brings something new."""

    def __init__(self) -> None:
        self._swept: dict[UUID, float] = {}

    def due(self, ask: Ask) -> bool:
        now = time.monotonic()
        if now - self._swept.get(ask.by.user_id, -_SWEEP_EVERY_SECONDS) < _SWEEP_EVERY_SECONDS:
            return False
        if len(self._swept) >= _MOST_SWEEPERS:
            self._swept.clear()
        self._swept[ask.by.user_id] = now
        return True

    async def sweep(self, ask: Ask) -> int:
        """How many were removed."""
        removed, before, cursor = 0, time.time() - KEPT_SECONDS, None
        try:
            while True:
                page = await ask.run(ListVolumeFilesAction(volume=VOLUME, cursor=cursor))
                for stat in page.items:
                    if (made := _made_at(stat.name)) is not None and made < before:
                        removed += await remove(ask, stat.name)
                cursor = page.next_cursor
                if cursor is None:
                    return removed
        except MoorageError as error:
            log.info("files of %s could not be swept: %s", ask.by.access_key, error)
            return removed
