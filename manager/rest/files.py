"""Files over HTTP: uploads and downloads of any size, piece by piece, as fast as the slower side."""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import quote

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from actions.files import WORK_DIR, FileUploadSpec, Stream
from agent.client import FileStat
from domain.errors import InvalidRequest, RangeNotSatisfiable, TransferFailed, UnsupportedMediaType
from manager.rest import answers
from manager.rest.exchange import BODY_SILENCE_SECONDS, OWNER, Exchange, refuse_encoding
from manager.rest.json import check_text
from manager.rest.rows import action, gather, matches
from manager.rest.streams import permitted

_MODE: Final = re.compile(r"0?[0-7]{3}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MAX_PARTS: Final = 1000
_PART_CHUNK_BYTES: Final = 2**18
#: What aiohttp says of forms that are none.
MALFORMED: Final = (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError)


# -- up ----------------------------------------------------------------------------------------------------------------
async def upload(exchange: Exchange) -> web.StreamResponse:
    exchange.only_query(*_whose(exchange), "mode")
    headers = exchange.request.headers
    refuse_encoding(exchange.request)
    if "Content-Range" in headers:
        raise InvalidRequest("A file is written whole or not at all: Content-Range is not taken.")
    digest = headers.get("X-Content-Sha256")
    if digest is not None and not _SHA256.fullmatch(digest):
        raise InvalidRequest("X-Content-Sha256 has 64 hexadecimal digits.", field="X-Content-Sha256")
    only_new = headers.get("If-None-Match")
    if only_new not in (None, "*"):
        raise InvalidRequest("If-None-Match of an upload is '*': the file must not be there yet.")
    spec = FileUploadSpec(
        filename=exchange.path["path"],
        content=_body(exchange),
        size=exchange.request.content_length if exchange.request.body_exists else 0,
        mode=_mode(exchange),
        overwrite=only_new is None,
        sha256=None if digest is None else digest.lower(),
    )
    asked = _uploading(exchange, spec)
    async with permitted(exchange):
        result = await exchange.run(asked)
    return exchange.answer(answers.file_stat(result.items[0]), 200 if only_new is None else 201)


def _uploading(exchange: Exchange, spec: FileUploadSpec) -> Any:
    kind: Any = exchange.route.action
    return kind(**_place(exchange), files=[spec])


def _whose(exchange: Exchange) -> tuple[str, ...]:
    """The parameters that say whose files are meant; a volume's name says it all."""
    return () if "volume" in exchange.path else (OWNER, "kernel")


def _place(exchange: Exchange) -> dict[str, Any]:
    """The fields of an action that say whose files are meant: a session's, or a volume's."""
    named = {name: value for name, value in exchange.path.items() if name != "path"}
    asked = {name: exchange.query_value(name) for name in _whose(exchange)}
    return named | {name: value for name, value in asked.items() if value is not None}


async def unpack(exchange: Exchange) -> web.StreamResponse:
    """The body is a tar or zip archive, compressed or not; what kind it is, its first bytes say."""
    exchange.only_query(*_whose(exchange), "path", "overwrite")
    refuse_encoding(exchange.request)
    overwrite = exchange.query_value("overwrite") or "true"
    if overwrite not in ("true", "false", "1", "0"):
        raise InvalidRequest("'overwrite' is true or false.", field="overwrite")
    kind: Any = exchange.route.action
    asked = kind(
        **_place(exchange),
        content=_body(exchange),
        path=exchange.query_value("path") or ".",
        size=exchange.request.content_length if exchange.request.body_exists else 0,
        overwrite=overwrite in ("true", "1"),
    )
    async with permitted(exchange):
        result = await exchange.run(asked)
    return exchange.answer(result)


async def _body(exchange: Exchange) -> AsyncIterator[bytes]:
    if exchange.request.body_exists:
        await exchange.invite_body()
        async for chunk in exchange.chunks():
            yield chunk


def _mode(exchange: Exchange) -> int | None:
    mode = exchange.query_value("mode")
    if mode is None:
        return None
    if not _MODE.fullmatch(mode):
        raise InvalidRequest("A mode has three octal digits, such as 0644.", field="mode")
    return int(mode, 8)


async def upload_form(exchange: Exchange) -> web.StreamResponse:
    """A form whose parts are files; its field `path` names the folder for those that come after it."""
    exchange.only_query(OWNER, "kernel")
    refuse_encoding(exchange.request)
    if not exchange.request.content_type.startswith("multipart/"):
        raise UnsupportedMediaType("Send the files as multipart/form-data.")
    await exchange.invite_body()
    folder, items = WORK_DIR, []
    try:
        reader = MultipartReader(exchange.request.headers, exchange.request.content)
        for _ in range(_MAX_PARTS):
            async with asyncio.timeout(BODY_SILENCE_SECONDS):
                part = await reader.next()
            if part is None:
                break
            if not isinstance(part, BodyPartReader) or part.headers.get(hdrs.CONTENT_ENCODING) is not None:
                raise InvalidRequest("The parts of the form must be plain files.")
            if part.filename is None:
                folder = await _field(part, folder)
                continue
            check_text(part.filename)
            spec = FileUploadSpec(
                filename=part.filename, path=posixpath.join(WORK_DIR, folder), content=part_chunks(part)
            )
            async with permitted(exchange):
                items += (await exchange.run(_uploading(exchange, spec))).items
        else:
            raise InvalidRequest(f"The form has more than {_MAX_PARTS} parts; send fewer files at once.")
    except (*MALFORMED, TimeoutError) as error:
        raise InvalidRequest("The form is malformed or broke off.") from error
    if not items:
        raise InvalidRequest("The form holds no file: give a part a filename.", field="files")
    return exchange.answer({"items": [answers.file_stat(stat) for stat in items]})


async def _field(part: BodyPartReader, folder: str) -> str:
    value = bytearray()
    while True:
        async with asyncio.timeout(BODY_SILENCE_SECONDS):
            chunk = await part.read_chunk(4096)
        if not chunk:
            break
        value += chunk
        if len(value) > 4096:
            raise InvalidRequest("A field of the form is longer than a path can be.")
    if part.name != "path":
        raise InvalidRequest(f"There is no field '{str(part.name)[:80]}' here, only 'path' and files.", field="path")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The path is not UTF-8.", field="path") from None
    check_text(text)
    return text or folder


async def part_chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    try:
        while True:
            async with asyncio.timeout(BODY_SILENCE_SECONDS):
                chunk = await part.read_chunk(_PART_CHUNK_BYTES)
            if not chunk:
                return
            yield bytes(chunk)
    except (*MALFORMED, ConnectionError, TimeoutError):
        raise TransferFailed("The form broke off in the middle of a file.") from None


# -- down ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Wanted:
    """A range as it was asked for: from `first`, to `last` or the end; without `first` the last so many bytes."""

    first: int | None
    last: int | None


def parse_range(header: str | None) -> Wanted | None:
    """None for no range, and for what HTTP lets a server overlook: other units, several ranges, nonsense."""
    match = None if header is None else _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is not None and last is not None and last < first:
        return None
    return Wanted(first, last)


async def download(exchange: Exchange) -> web.StreamResponse:
    exchange.only_query(*_whose(exchange))
    headers = exchange.request.headers
    head = exchange.request.method == "HEAD"
    wanted = None if head else parse_range(headers.get("Range"))
    if (
        head
        or "If-Range" in headers
        or "If-None-Match" in headers
        or "If-Modified-Since" in headers
        or _is_suffix(wanted)
    ):
        stat = await _stat(exchange)
        etag = etag_of(stat)
        if _unchanged(exchange, stat, etag):
            return web.Response(status=304, headers=_headers(exchange, stat))
        if head:
            return await exchange.begin(200, _headers(exchange, stat), length=stat.size)
        if wanted is not None and not _range_is_current(exchange, stat, etag):
            wanted = None
        if wanted is not None and wanted.first is None:
            if not wanted.last:
                raise _outside(stat.size)
            wanted = Wanted(max(0, stat.size - wanted.last), None)
    offset = wanted.first or 0 if wanted else 0
    length = None if wanted is None or wanted.last is None else wanted.last - offset + 1
    stream = await _open(exchange, offset, length)
    try:
        async with permitted(exchange):
            return await _send_file(exchange, stream, offset, length, partial=wanted is not None)
    finally:
        await stream.aclose()


def _is_suffix(wanted: Wanted | None) -> bool:
    return wanted is not None and wanted.first is None


async def _open(exchange: Exchange, offset: int, length: int | None) -> Stream:
    values = {**_place(exchange), "path": exchange.path["path"], "offset": offset, "length": length}
    return await exchange.run(action(exchange.route, {k: v for k, v in values.items() if v is not None}))


async def _stat(exchange: Exchange) -> FileStat:
    stream = await _open(exchange, 0, 0)
    await stream.aclose()
    assert stream.stat is not None
    return stream.stat


async def _send_file(
    exchange: Exchange, stream: Stream, offset: int, length: int | None, *, partial: bool
) -> web.StreamResponse:
    stat = stream.stat
    assert stat is not None
    if partial and offset >= stat.size:
        raise _outside(stat.size)
    count = stat.size - offset if length is None else min(length, stat.size - offset)
    headers = _headers(exchange, stat)
    if partial:
        headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{stat.size}"
    response = await exchange.begin(206 if partial else 200, headers, length=count)
    sent = 0
    async for chunk in stream.chunks():
        piece = chunk[: count - sent]  # a file may grow while it is read
        if piece:
            await exchange.write(response, piece)
        sent += len(piece)
    if sent < count:  # or shrink
        exchange.cut()
        raise ConnectionResetError("the file became shorter while it was read")
    await response.write_eof()
    return response


def etag_of(stat: FileStat) -> str:
    return f'"{stat.size:x}-{int(stat.mtime * 1_000_000):x}"'


def _headers(exchange: Exchange, stat: FileStat) -> dict[str, str]:
    name = quote(posixpath.basename(exchange.path["path"]), safe="")
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(stat.mtime, usegmt=True),
        "ETag": etag_of(stat),
        "Cache-Control": "private, no-cache",
    }


def _unchanged(exchange: Exchange, stat: FileStat, etag: str) -> bool:
    if (header := exchange.request.headers.get("If-None-Match")) is not None:
        return matches(header, etag)
    since = exchange.header_time("If-Modified-Since")
    return since is not None and int(stat.mtime) <= since


def _range_is_current(exchange: Exchange, stat: FileStat, etag: str) -> bool:
    header = exchange.request.headers.get("If-Range")
    if header is None:
        return True
    if header.strip().startswith('"'):
        return header.strip() == etag
    return exchange.header_time("If-Range") == int(stat.mtime)


def _outside(size: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(f"The file has {size} bytes; the range lies outside.", size=size)


async def archive(exchange: Exchange) -> web.StreamResponse:
    values: dict[str, Any]
    values, _, _ = await gather(exchange)
    stream: Stream = await exchange.run(action(exchange.route, values))
    try:
        headers = {"Content-Type": "application/x-tar", "Content-Disposition": "attachment; filename=files.tar"}
        response = await exchange.begin(200, headers)
        async with permitted(exchange):
            async for chunk in stream.chunks():
                await exchange.write(response, chunk)
            await response.write_eof()
        return response
    finally:
        await stream.aclose()
