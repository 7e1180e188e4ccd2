"""A session's files."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from copy import copy
from pathlib import Path
from typing import IO, Any, Literal, overload

import httpx

from moorage import _wire
from moorage._errors import StreamBroken, UnexpectedAnswer
from moorage._models import FileStat, Unpacked
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded
from moorage.errors import FileNotFound, TransferFailed

CHUNK_BYTES = 1 << 20
#: Called with the bytes so far, and all of them where that is known.
OnProgress = Callable[[int, int | None], object]
LocalPath = str | os.PathLike[str]
FileStats = list[FileStat]
MAX_RESUMES = 8
MAX_BEGINNINGS = 3


class Files:
    """`session.files`. Relative paths start at the session's home, /home/work."""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str], kernel: str | None = None) -> None:
        self._transport = transport
        self._base = base
        self._owner = owner
        self._kernel = _wire.body(kernel=kernel)
        self._params = {**owner, **_wire.query(kernel=kernel)}

    async def write(
        self, path: str, data: str | bytes | IO[bytes], *, mode: int | None = None, overwrite: bool = True
    ) -> FileStat:
        """Make a file of text, bytes or an open binary file; written whole or not at all."""
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, bytes | bytearray | memoryview):
            content = bytes(data)
            digest = hashlib.sha256(content).hexdigest()
            return await self._put(path, content, digest, len(content), mode, overwrite)
        spooled = data if data.seekable() else await _io.in_thread(_spooled, data)
        return await self._put_file(path, spooled, mode, overwrite, None)

    @overload
    async def read(self, path: str, *, format: Literal["text"] = "text") -> str: ...
    @overload
    async def read(self, path: str, *, format: Literal["bytes"]) -> bytes: ...
    async def read(self, path: str, *, format: Literal["text", "bytes"] = "text") -> str | bytes:
        """A whole file: as text (UTF-8), or as bytes."""
        content = await self.read_bytes(path)
        return content.decode() if format == "text" else content

    async def read_bytes(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file, or `length` bytes of it from `offset`."""
        parts = [chunk async for chunk in self.stream(path, offset=offset, length=length)]
        return b"".join(parts)

    async def stream(
        self, path: str, *, offset: int = 0, length: int | None = None, on_progress: OnProgress | None = None
    ) -> AsyncGenerator[bytes]:
        """A file in pieces. A broken connection is taken up where it broke, unless the file has changed meanwhile."""
        if length == 0:
            return
        address = _wire.file_path(self._base, path)
        at, end, etag, resumes, whole = offset, None if length is None else offset + length, None, 0, None
        while True:
            headers = {"Accept-Encoding": "identity"}
            if at or end is not None:
                headers["Range"] = f"bytes={at}-" + ("" if end is None else str(end - 1))
            try:
                async with self._transport.stream("GET", address, params=self._params, headers=headers) as response:
                    if etag is not None and response.headers.get("etag") != etag:
                        raise TransferFailed(f"{path} was changed while it was read; read it again.")
                    etag = response.headers.get("etag")
                    if at and response.status_code != 206:
                        raise UnexpectedAnswer("The server sent the whole file where a part was asked for.")
                    whole = _total(response) if whole is None else whole
                    async for chunk in response.aiter_bytes():
                        at += len(chunk)
                        resumes = 0
                        yield chunk
                        if on_progress is not None:
                            await _io.result_of(on_progress(at - offset, whole))
                return
            except StreamBroken as problem:
                resumes += 1
                if etag is None or resumes > MAX_RESUMES:
                    raise TransferFailed(f"Reading {path} broke off: {problem}") from problem
                if whole is not None and at - offset >= whole:
                    return
                await _io.sleep(_wire.pause_seconds(resumes))

    def iterate(self, path: str = ".", *, limit: int | None = None) -> AsyncGenerator[FileStat]:
        """What is in a folder, by name. Fetched as it is looked at."""
        address = f"{self._base}/files"
        return self._transport.items(FileStat.from_json, address, limit=limit, **{**self._params, "path": path})

    async def list(self, path: str = ".", *, limit: int | None = None) -> FileStats:
        """The same as a list, all pages of it."""
        return [stat async for stat in self.iterate(path, limit=limit)]

    async def upload(
        self,
        local: LocalPath,
        path: str | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
    ) -> FileStats:
        """Send a file, or a folder with everything in it, to `path` (by default its own name, in the home)."""
        source = Path(local)
        target = path if path is not None else (await _io.in_thread(source.resolve)).name
        if not await _io.in_thread(source.is_dir):
            if target.endswith("/"):
                target = posixpath.join(target, source.name)
            return [await self._upload_file(source, target, overwrite, on_progress)]
        folders, files = await _io.in_thread(_walk, source)
        total, done = sum(size for _, size in files), 0
        for folder in folders:
            await self.mkdir(posixpath.join(target, folder) if folder else target, parents=True)
        sent = []
        for relative, size in files:
            before = done
            report = None if on_progress is None else _shifted(on_progress, before, total)
            where = posixpath.join(target, relative)
            sent.append(await self._upload_file(source / relative, where, overwrite, report))
            done += size
        return sent

    async def download(
        self, path: str | Sequence[str], local: LocalPath | None = None, *, on_progress: OnProgress | None = None
    ) -> Path:
        """Fetch a file; or a folder, or several paths, which come as a tar archive.

        The archive is kept when `local` ends in `.tar`; otherwise it is unpacked into the folder `local`. What was
        there under that name is replaced only when everything has arrived.
        """
        if isinstance(path, str):
            stat = await self.stat(path)
            if stat.type != "directory":
                return await self._download_file(path, _file_target(path, local), on_progress)
            paths = [path]
        else:
            paths = list(path)
        target = Path(local) if local is not None else Path(posixpath.basename(paths[0].rstrip("/")) or "work")
        if target.suffix == ".tar":
            with _arriving(target) as file:
                await self._fetch_archive(paths, file, on_progress)
            return target
        with tempfile.TemporaryFile() as file:
            await self._fetch_archive(paths, file, on_progress)
            await _io.in_thread(_unpack, file, target, paths)
        return target

    async def unpack(
        self,
        archive: LocalPath | IO[bytes],
        path: str = ".",
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Unpacked:
        """Send a tar (also .gz, .bz2, .xz) or zip archive, to be unpacked there: whole or not at all."""
        if isinstance(archive, str | os.PathLike):
            with await _io.in_thread(Path(archive).open, "rb") as file:
                return await self._unpack(file, path, overwrite, on_progress)
        spooled = archive if archive.seekable() else await _io.in_thread(_spooled, archive)
        return await self._unpack(spooled, path, overwrite, on_progress)

    async def upload_folder(
        self, local: LocalPath, path: str, *, overwrite: bool = True, on_progress: OnProgress | None = None
    ) -> Unpacked:
        """Send what is in a folder to the folder `path`, as one archive: fast with many small files, whole or not at all."""
        with tempfile.TemporaryFile() as file:
            await _io.in_thread(_pack, Path(local), file)
            return await self._unpack(file, path, overwrite, on_progress)

    async def _unpack(self, file: IO[bytes], path: str, overwrite: bool, on_progress: OnProgress | None) -> Unpacked:
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start

        answer = await self._transport.request(
            "POST",
            f"{self._base}/files/unpack",
            params={**self._params, **_wire.query(path=path, overwrite=overwrite)},
            content=_content(file, start, size, on_progress),
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            hold=120 + size / 1e6,
        )
        return Unpacked.from_json(decoded(answer))

    async def archive(self, paths: Sequence[str]) -> AsyncGenerator[bytes]:
        """The files and folders as one tar archive, in pieces."""
        async with self._archive(paths) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def stat(self, path: str) -> FileStat:
        """Type, size, times and owner of one file or folder."""
        found = await self._manage(op="stat", path=path)
        if found is None:
            raise FileNotFound(f"There is no {path} in the session.")
        return found

    async def exists(self, path: str) -> bool:
        """Whether there is a file or folder of this name."""
        try:
            await self.stat(path)
        except FileNotFound:
            return False
        return True

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a folder; with `parents` also those above it, and one that is there already is no error."""
        await self._manage(op="mkdir", path=path, parents=parents)

    async def move(self, path: str, to: str) -> None:
        """Move or rename."""
        await self._manage(op="move", path=path, to=to)

    async def copy(self, path: str, to: str, *, recursive: bool = False) -> None:
        """Copy a file, or with `recursive` a folder."""
        await self._manage(op="copy", path=path, to=to, recursive=recursive)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or with `recursive` a folder and everything in it."""
        await self._manage(op="remove", path=path, recursive=recursive)

    async def chmod(self, path: str, mode: int) -> None:
        """Set permissions, such as 0o755."""
        await self._manage(op="chmod", path=path, mode=f"{mode:04o}")

    async def _manage(self, **fields: Any) -> FileStat | None:
        address = f"{self._base}/files/manage"
        fields |= self._kernel
        answer = decoded(await self._transport.request("POST", address, params=self._owner, json=fields))
        return None if answer.get("file") is None else FileStat.from_json(answer["file"])

    async def _upload_file(self, source: Path, path: str, overwrite: bool, on_progress: OnProgress | None) -> FileStat:
        with await _io.in_thread(source.open, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            return await self._put_file(path, file, mode, overwrite, on_progress)

    async def _put_file(
        self, path: str, file: IO[bytes], mode: int | None, overwrite: bool, on_progress: OnProgress | None
    ) -> FileStat:
        start = file.tell()
        digest, size = await _io.in_thread(_digest, file)

        content = _content(file, start, size, on_progress)
        return await self._put(path, content, digest, size, mode, overwrite)

    async def _put(
        self, path: str, content: Any, digest: str, size: int, mode: int | None, overwrite: bool
    ) -> FileStat:
        headers = {"X-Content-Sha256": digest, "Content-Length": str(size), "Content-Type": "application/octet-stream"}
        if not overwrite:
            headers["If-None-Match"] = "*"
        params = {**self._params, **_wire.query(mode=None if mode is None else f"{mode:04o}")}
        address = _wire.file_path(self._base, path)
        answer = await self._transport.request(
            "PUT", address, params=params, content=content, headers=headers, hold=60 + size / 1e6
        )
        return FileStat.from_json(decoded(answer))

    async def _download_file(self, path: str, target: Path, on_progress: OnProgress | None) -> Path:
        with _arriving(target) as file:
            async for chunk in self.stream(path, on_progress=on_progress):
                await _io.in_thread(file.write, chunk)
        return target

    async def _fetch_archive(self, paths: Sequence[str], file: IO[bytes], on_progress: OnProgress | None) -> None:
        await fetch_whole(lambda: self._archive(paths), file, on_progress)

    @asynccontextmanager
    async def _archive(self, paths: Sequence[str]) -> AsyncIterator[httpx.Response]:
        address, fields = f"{self._base}/files/archive", {"paths": list(paths), **self._kernel}
        async with self._transport.stream("POST", address, params=self._owner, json=fields) as response:
            yield response


async def fetch_whole(
    opened: Callable[[], AbstractAsyncContextManager[httpx.Response]], file: IO[bytes], on_progress: OnProgress | None
) -> None:
    """What is made while it is sent cannot be taken up in its middle: when it breaks off, it is begun anew."""
    attempt = 0
    while True:
        attempt, fetched = attempt + 1, 0
        file.seek(0)
        file.truncate()
        try:
            async with opened() as response:
                async for chunk in response.aiter_bytes():
                    await _io.in_thread(file.write, chunk)
                    fetched += len(chunk)
                    if on_progress is not None:
                        await _io.result_of(on_progress(fetched, None))
            return
        except StreamBroken as problem:
            if attempt == MAX_BEGINNINGS:
                raise TransferFailed("The archive broke off again and again; fetch less of it at a time.") from problem
            await _io.sleep(_wire.pause_seconds(attempt))


def _content(
    file: IO[bytes], start: int, size: int, on_progress: OnProgress | None
) -> Callable[[], AsyncIterator[bytes]]:
    """What is sent, from `start` on; called again when it has to be sent again."""

    async def content() -> AsyncIterator[bytes]:
        sent = 0
        file.seek(start)
        while chunk := await _io.in_thread(file.read, CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            if on_progress is not None:
                await _io.result_of(on_progress(sent, size))

    return content


def _digest(file: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _spooled(file: IO[bytes]) -> IO[bytes]:
    """What cannot be read twice (a pipe) is kept, because sending may have to be repeated."""
    kept = tempfile.TemporaryFile()
    while chunk := file.read(CHUNK_BYTES):
        kept.write(chunk)
    kept.seek(0)
    return kept


def _pack(source: Path, file: IO[bytes]) -> None:
    """Files and folders, links followed as in an upload of single files."""
    folders, files = _walk(source)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
        for folder in folders:
            if folder:
                archive.add(source / folder, folder, recursive=False)
        for name, _ in files:
            member = archive.gettarinfo(source / name, name)
            member.type, member.linkname = tarfile.REGTYPE, ""
            member.size = (source / name).stat().st_size  # of a second name for a file, tar would only keep the first
            member.mode &= 0o777
            with (source / name).open("rb") as content:
                archive.addfile(member, content)
    file.seek(0)


def _walk(source: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Folders (parents first, "" for the source itself), and files with their sizes; links are followed for files."""
    folders, files = [], []
    for here, inside, names in os.walk(source):
        inside.sort()
        relative = Path(here).relative_to(source)
        folders.append("" if relative == Path() else relative.as_posix())
        for name in sorted(names):
            file = Path(here, name)
            if file.is_file():
                files.append(((relative / name).as_posix(), file.stat().st_size))
    return folders, files


def _shifted(on_progress: OnProgress, before: int, total: int) -> OnProgress:
    return lambda done, _: on_progress(before + done, total)


def _file_target(path: str, local: LocalPath | None) -> Path:
    name = posixpath.basename(path)
    if local is None:
        return Path(name)
    target = Path(local)
    return target / name if target.is_dir() or str(local).endswith(os.sep) else target


@contextmanager
def _arriving(target: Path) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place when everything has arrived."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as problem:
        problem.filename = str(target)  # not of a file that nobody has named
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise


def _unpack(file: IO[bytes], target: Path, paths: Sequence[str]) -> None:
    """Into the folder `target`; the path of a single folder is left out, so that `target` becomes its copy."""
    file.seek(0)
    target.mkdir(parents=True, exist_ok=True)
    above: str | None = None if len(paths) == 1 else ""
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            name = posixpath.normpath(member.name).lstrip("/")
            if above is None:  # the first of a folder is the folder itself, unless it is the home
                above = f"{name}/" if member.isdir() and _last(name) == _last(paths[0]) else ""
            name = "." if f"{name}/" == above else name.removeprefix(above)
            if name != ".":
                renamed = copy(member)
                renamed.name = name
                _extract(archive, renamed, target)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """What a session packed is not trusted: nothing leaves the folder, and nothing but files, folders and links is made."""
    if hasattr(tarfile, "data_filter"):
        archive.extract(member, target, filter="data")
        return
    # Python 3.11 before 3.11.4, which is Debian 12's
    home = target.resolve()
    places = [home / member.name]
    if member.issym():
        places.append(places[0].parent / member.linkname)
    elif member.islnk():
        places.append(home / member.linkname)
    elif not (member.isfile() or member.isdir()):
        return
    if not all(Path(os.path.realpath(place)).is_relative_to(home) for place in places):
        raise TransferFailed(f"The archive names '{member.name}', which would be written outside {target}.")
    member.mode = 0o755 if member.isdir() else (member.mode | 0o600) & 0o755
    member.uid, member.gid = os.getuid(), os.getgid()
    archive.extract(member, target, numeric_owner=True)


def _last(path: str) -> str:
    return posixpath.basename(posixpath.normpath(path))


def _total(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length")
    return int(length) if length is not None else None
