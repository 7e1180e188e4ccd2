"""Files of sessions as the client sends and fetches them: forms with percent-encoded names, parts that are tars."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import stat as modes
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

from aiohttp import BodyPartReader, MultipartReader, hdrs, web

from actions import DownloadFileAction, DownloadFilesAction, ListFilesAction, UploadFilesAction
from actions.files import WORK_DIR, FileUploadSpec, Stream
from agent.client import FileStat
from domain.errors import FileError, InvalidRequest
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route
from manager.rest.exchange import BODY_SILENCE_SECONDS, decode_segment, refuse_encoding
from manager.rest.files import MALFORMED, part_chunks
from manager.rest.json import check_text, dumps
from manager.rest.streams import permitted

_MOST_FILES: Final = 1000
_MOST_LISTED: Final = 100_000
_SSH_KEY: Final = "id_container"
_KINDS: Final = {"file": modes.S_IFREG, "directory": modes.S_IFDIR, "link": modes.S_IFLNK}


# -- up ------------------------------------------------------------------------------------------------------------------
async def upload(ask: Ask) -> web.StreamResponse:
    refuse_encoding(ask.request)
    if not ask.request.content_type.startswith("multipart/"):
        raise InvalidRequest("Send the files as multipart/form-data.")
    await ask.invite_body()
    written = 0
    try:
        reader = MultipartReader(ask.request.headers, ask.request.content)
        while True:
            async with asyncio.timeout(BODY_SILENCE_SECONDS):
                part = await reader.next()
            if part is None:
                break
            if written >= _MOST_FILES:
                raise InvalidRequest(f"Too many files: at most {_MOST_FILES} in one request.")
            await _write(ask, part)
            written += 1
    except (*MALFORMED, TimeoutError) as error:
        raise InvalidRequest("The form is malformed or broke off.") from error
    if not written:
        raise InvalidRequest("The form holds no file.", field="src")
    return ask.nothing()


async def _write(ask: Ask, part: Any) -> None:
    if not isinstance(part, BodyPartReader) or part.headers.get(hdrs.CONTENT_ENCODING) is not None:
        raise InvalidRequest("The parts of the form must be plain files.")
    if part.filename is None:
        raise InvalidRequest("A part of the form has no filename.", field="src")
    name = decode_segment(quote(part.filename, safe="%/"))  # the client encodes the slashes of folders
    check_text(name)
    spec = FileUploadSpec(filename=_inside(name), content=part_chunks(part))
    async with permitted(ask):
        await ask.run(UploadFilesAction(**ask.session, files=[spec]))


def _inside(name: str) -> str:
    """A path below the working folder; one that begins elsewhere is taken as it is, and refused where it must not be."""
    return posixpath.join(WORK_DIR, name)


# -- down ----------------------------------------------------------------------------------------------------------------
async def download(ask: Ask) -> web.StreamResponse:
    """A part for each path, each an uncompressed tar that holds it by its name."""
    paths = await _paths(ask)
    boundary = secrets.token_hex(16)
    if paths == [_SSH_KEY]:
        return await _ssh_key(ask, boundary)
    if len(paths) > 1:  # all are looked for before anything is sent
        await (await _opened(ask, paths)).aclose()
    response: web.StreamResponse | None = None
    for path in paths:
        stream = await _opened(ask, [path])
        try:
            if response is None:  # from here on a failure can only break the answer off
                response = await ask.begin(200, {"Content-Type": f"multipart/mixed; boundary={boundary}"})
            async with permitted(ask):
                await ask.write(response, _part_head(boundary, path))
                async for chunk in stream.chunks():
                    await ask.write(response, chunk)
                await ask.write(response, b"\r\n")
        finally:
            await stream.aclose()
    assert response is not None
    await ask.write(response, f"--{boundary}--\r\n".encode())
    await response.write_eof()
    return response


async def _ssh_key(ask: Ask, boundary: str) -> web.StreamResponse:
    """What `ssh` and `scp` fetch first; it is in no session."""
    from manager.compat.backendai.sshd import key_archive

    body = _part_head(boundary, _SSH_KEY) + await key_archive(ask) + f"\r\n--{boundary}--\r\n".encode()
    return web.Response(body=body, headers={"Content-Type": f"multipart/mixed; boundary={boundary}"})


async def _paths(ask: Ask) -> list[str]:
    paths = (await ask.body()).get("files") or ask.query.get("files") or []
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise InvalidRequest("'files' is a list of paths.", field="files")
    if len(paths) > _MOST_FILES:
        raise InvalidRequest(f"Too many files: at most {_MOST_FILES} in one request.", field="files")
    return paths


async def _opened(ask: Ask, paths: list[str]) -> Stream:
    return await ask.run(DownloadFilesAction(**ask.session, paths=paths))


def _part_head(boundary: str, path: str) -> bytes:
    name = quote(f"{posixpath.basename(path.rstrip('/')) or 'files'}.tar", safe="")
    return (
        f"--{boundary}\r\nContent-Type: application/x-tar\r\nContent-Encoding: identity\r\n"
        f"Content-Disposition: attachment; filename*=UTF-8''{name}\r\n\r\n"
    ).encode()


async def download_single(ask: Ask) -> web.StreamResponse:
    path = ask.query_value("file") or (await ask.body()).get("file")
    if not isinstance(path, str) or not path:
        raise InvalidRequest("What to download is missing: ?file=PATH.", field="file")
    stream = await ask.run(DownloadFileAction(**ask.session, path=path))
    try:
        assert stream.stat is not None
        size = stream.stat.size
        response = await ask.begin(200, {"Content-Type": "application/octet-stream"}, length=size)
        sent = 0
        async with permitted(ask):
            async for chunk in stream.chunks():
                piece = chunk[: size - sent]  # a file may grow while it is read
                if piece:
                    await ask.write(response, piece)
                sent += len(piece)
        if sent < size:  # or shrink
            ask.cut()
            raise ConnectionResetError("the file became shorter while it was read")
        await response.write_eof()
        return response
    finally:
        await stream.aclose()


# -- listed --------------------------------------------------------------------------------------------------------------
async def list_files(ask: Ask) -> web.StreamResponse:
    """The list is JSON within JSON; what is wrong with the path is told in `errors`."""
    path = ask.query_value("path") or (await ask.body()).get("path") or "."
    if not isinstance(path, str):
        raise InvalidRequest("'path' is text.", field="path")
    try:
        found = [_listed(stat) async for stat in _all_files(ask, path)]
    except FileError as error:
        return ask.answer({"files": "[]", "errors": error.message, "abspath": _absolute(path)})
    return ask.answer({"files": dumps(found).decode(), "errors": "", "abspath": _absolute(path)})


async def _all_files(ask: Ask, path: str) -> AsyncIterator[FileStat]:
    cursor, seen = None, 0
    while seen < _MOST_LISTED:
        page = await ask.run(ListFilesAction(**ask.session, path=path, cursor=cursor))
        for stat in page.items:
            yield stat
        seen += len(page.items)
        if (cursor := page.next_cursor) is None:
            return


def _listed(stat: FileStat) -> dict[str, Any]:
    return {
        "mode": modes.filemode(_KINDS.get(stat.type, 0) | stat.mode & 0o7777),
        "size": stat.size,
        "ctime": stat.mtime,
        "mtime": stat.mtime,
        "atime": stat.mtime,
        "filename": stat.name,
    }


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join(WORK_DIR, path))


ROUTES: Final = (
    Route("POST", "/session/{session}/upload", upload),
    Route("GET", "/session/{session}/download", download, once=True),
    Route("GET", "/session/{session}/download_single", download_single),
    Route("GET", "/session/{session}/files", list_files, once=True),
)
