"""Apps: code that answers calls, deployed once, and kept in every version."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from moorage import _wire
from moorage._models import AppInfo, CallInfo
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded
from moorage.aio.calls import Call

AppList = list[AppInfo]
LocalPath = str | os.PathLike[str]
#: Of the archive that is sent.
MAX_ARCHIVE_BYTES = 64 * 1024 * 1024
_LEFT_OUT = frozenset(
    {".git", ".hg", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "node_modules"}
)
_CHUNK_BYTES = 256 * 1024


class Apps:
    """`client.apps`; an app is named by its name or id, with or without `@VERSION`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def deploy(
        self,
        source: LocalPath | None = None,
        *,
        name: str,
        entry: str,
        image: str = "python",
        adapter: str | None = None,
        path: str | None = None,
        options: Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        functions: Iterable[str] | None = None,
        cpu: float | str | None = None,
        mem: int | str | None = None,
        gpu: int | None = None,
        gpu_mem: int | str | None = None,
        environ: Mapping[str, str] | None = None,
        idle_timeout: float | None = None,
        setup_timeout: float | None = None,
        call_timeout: float | None = None,
        description: str | None = None,
        scope: str | None = None,
        project: str | None = None,
    ) -> AppInfo:
        """Keep an app; a name that is there gets its next version.

        `source` is a folder, or a tar or zip file of it; or the code is at `path` in the image. `entry` is `module:Class`.
        With `project` it is for its members, with scope "domain" for everybody in it.
        """
        slots = _wire.slots(cpu=cpu, mem=mem, gpu=gpu, **{"gpu-mem": gpu_mem})
        fields = _wire.body(
            name=name,
            image=image,
            entry=entry,
            adapter=adapter,
            path=path,
            options=None if options is None else dict(options),
            concurrency=concurrency,
            functions=None if functions is None else list(functions),
            resource_slots=slots or None,
            environ=None if environ is None else dict(environ),
            idle_timeout=idle_timeout,
            setup_timeout=setup_timeout,
            call_timeout=call_timeout,
            description=description,
            scope=scope or ("project" if project is not None else None),
            project=project,
        )
        address = _wire.path("apps")
        if source is None:
            return AppInfo.from_json(decoded(await self._transport.request("POST", address, json=fields)))
        with tempfile.TemporaryFile() as file:
            size = await _io.in_thread(_pack, Path(source), file)
            head, tail, boundary = _form(fields)
            headers = {
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            }
            content = _content(head, file, tail)
            answer = await self._transport.request(
                "POST", address, content=content, headers=headers, hold=60 + size / 1e6
            )
        return AppInfo.from_json(decoded(answer))

    async def list(self) -> AppList:
        """One's own, those of one's projects and of the domain."""
        return [AppInfo.from_json(item) async for item in self._transport.pages(_wire.path("apps"))]

    async def get(self, app: str) -> AppInfo:
        """One app, with its versions."""
        return AppInfo.from_json(await self._transport.get(_wire.path("apps", app)))

    async def remove(self, app: str) -> None:
        """Forget it, or with `@VERSION` that version. Raises `StillInUse` while a live session is made of it."""
        await self._transport.request("DELETE", _wire.path("apps", app))

    async def start(
        self,
        app: str,
        function: str = "run",
        input: Any = None,
        *,
        timeout: float | None = None,
        project: str | None = None,
        max_wait: float | None = None,
    ) -> Call:
        """Call it without a session: one is made for the call, and ends with it."""
        fields = _wire.body(function=function, input=input, timeout=timeout, project=project, max_wait=max_wait)
        answer = await self._transport.request("POST", _wire.path("apps", app, "calls"), json=fields)
        return Call(self._transport, CallInfo.from_json(decoded(answer)))

    async def call(
        self, app: str, function: str = "run", input: Any = None, *, timeout: float | None = None, **settings: Any
    ) -> Any:
        """The same, and wait for its output. Raises `CallFailed`."""
        return await (await self.start(app, function, input, timeout=timeout, **settings)).output()


def _pack(source: Path, file: IO[bytes]) -> int:
    """The size of what is to be sent: the file as it is, or a tar.gz of the folder, links left out."""
    if source.is_file():
        with source.open("rb") as found:
            while chunk := found.read(_CHUNK_BYTES):
                file.write(chunk)
    else:
        if not source.is_dir():
            raise FileNotFoundError(f"there is no folder or archive '{source}'")
        with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, ".", filter=_packed)
    size = file.tell()
    if size > MAX_ARCHIVE_BYTES:
        raise ValueError(
            f"the app's archive has {size >> 20} MiB, and may have {MAX_ARCHIVE_BYTES >> 20}: put data into a volume"
        )
    return size


def _packed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = member.name.rpartition("/")[2]
    if name in _LEFT_OUT or not (member.isfile() or member.isdir()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _form(fields: Mapping[str, Any]) -> tuple[bytes, bytes, str]:
    """What comes before the archive and after it."""
    boundary = uuid.uuid4().hex
    disposition = "Content-Disposition: form-data; name"
    head = (
        f'--{boundary}\r\n{disposition}="app"\r\nContent-Type: application/json\r\n\r\n{json.dumps(dict(fields))}\r\n'
        f'--{boundary}\r\n{disposition}="archive"; filename="archive"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    return head.encode(), f"\r\n--{boundary}--\r\n".encode(), boundary


def _content(head: bytes, file: IO[bytes], tail: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """Called again when it has to be sent again."""

    async def content() -> AsyncIterator[bytes]:
        yield head
        file.seek(0)
        while chunk := await _io.in_thread(file.read, _CHUNK_BYTES):
            yield chunk
        yield tail

    return content
