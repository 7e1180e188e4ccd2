"""The engine's images: what is there, how one is made of another and a layer, how they come and go.

An image is made by `docker load` of an archive that holds a configuration and the one new layer: layers that the engine
has already need not be in it, and no label or command of a container gets into the configuration.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from agent.containers import LABEL_PREFIX, Containers, EngineError

#: Labels of images that we make. They are never those of containers, by which the agent knows its own.
TASK_LABEL: Final = "moorage.image.task"  #: by which it was made
HOME_LABEL: Final = "moorage.image.home"  #: the digest of the layer that holds /home/work
AGENT_LABEL: Final = "moorage.image.agent"  #: on whose host
#: What containers carry, and no image made of one may.
_OF_CONTAINERS: Final = frozenset(
    f"{LABEL_PREFIX}{name}" for name in ("agent", "kernel", "attempt", "session", "slots")
)
#: For the moment between a commit by the engine and the image that is made of it.
SCRAP: Final = "moorage/scrap"
_CHUNK_BYTES: Final = 1 << 20
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """One image, as the engine tells it."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    architecture: str
    labels: Mapping[str, str]
    size_bytes: int
    layers: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    os: str = "linux"


class Images:
    """Of one engine. `stop` (an event) ends what is going on between two pieces."""

    def __init__(self, engine: Containers) -> None:
        self._engine = engine

    async def look(self, name: str) -> ImageFacts | None:
        try:
            found = await self._engine.ask(lambda client: client.inspect_image(name))
        except EngineError as error:
            if error.missing == "image":
                return None
            raise
        config = found.get("Config") or {}
        return ImageFacts(
            id=found["Id"],
            tags=tuple(found.get("RepoTags") or ()),
            digests=tuple(found.get("RepoDigests") or ()),
            architecture=_architecture(found.get("Architecture", "")),
            labels=config.get("Labels") or {},
            size_bytes=int(found.get("Size") or 0),
            layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
            config={**config, "Architecture": found.get("Architecture", ""), "Variant": found.get("Variant", "")},
            os=found.get("Os", "linux"),
        )

    async def all(self, **labels: str) -> list[ImageFacts]:
        """Those with these labels; without, all that have a name."""
        wanted = [f"{name}={value}" if value else name for name, value in labels.items()]
        found = await self._engine.ask(lambda client: client.images(filters={"label": wanted} if wanted else None))
        return [
            ImageFacts(
                id=one["Id"],
                tags=tuple(tag for tag in one.get("RepoTags") or () if tag != "<none>:<none>"),
                digests=tuple(one.get("RepoDigests") or ()),
                architecture="",
                labels=one.get("Labels") or {},
                size_bytes=int(one.get("Size") or 0),
            )
            for one in found
        ]

    async def of_container(self, container: str) -> tuple[str, bool]:
        """The id of the image it was made of, and whether its own file system can have changed."""
        found = await self._engine.ask(lambda client: client.inspect_container(container))
        return found["Image"], not (found.get("HostConfig") or {}).get("ReadonlyRootfs")

    async def commit(self, container: str, job: str) -> ImageFacts:
        """What has changed in the container's own file system, as a layer. Mounts are not in it. Freeze it before."""
        repository, tag = scrap_name(job).split(":")
        await self._engine.ask(
            lambda client: client.commit(container, repository=repository, tag=tag, pause=False), "commit", slow=True
        )
        made = await self.look(scrap_name(job))
        if made is None:
            raise EngineError("what was committed is not there", unknown=True)
        return made

    async def make(
        self,
        name: str,
        base: ImageFacts,
        layers: Sequence[str],
        layer: Path,
        digest: str,
        labels: Mapping[str, str],
        *,
        at: datetime,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> ImageFacts:
        """An image of these layers, and the one in the file on top, that is in all else like `base`."""
        loop = asyncio.get_running_loop()

        def told(current: int, total: int, message: str) -> None:
            loop.call_soon_threadsafe(progress, current, total, message)

        config = configuration(base, [*layers, digest], labels, at=at)
        archive = image_archive(name, config, len(layers) + 1, layer, stop=stop, progress=told)

        def load(client: Any) -> None:
            for line in client.load_image(archive, quiet=False):
                if "error" in line:
                    raise EngineError(str(line["error"]))

        await self._engine.ask(load, "load", slow=True)
        made = await self.look(name)
        if made is None:
            raise EngineError("the engine took the image, and does not have it")
        return made

    async def tag(self, image: str, name: str) -> None:
        repository, tag = _parts(name)
        await self._engine.ask(lambda client: client.tag(image, repository, tag=tag, force=True))

    async def push(
        self, name: str, auth: Mapping[str, str] | None, *, stop: Callable[[], bool], progress: Progress
    ) -> str:
        """To its registry; the digest there."""
        loop = asyncio.get_running_loop()
        repository, tag = _parts(name)

        def follow(client: Any) -> str:
            layers: dict[str, tuple[int, int]] = {}
            digest = ""
            stream = client.push(repository, tag=tag, auth_config=auth or {}, stream=True, decode=True)
            try:
                for line in stream:
                    if "error" in line:
                        raise EngineError(str(line["error"]))
                    if stop():
                        raise EngineError("stopped")
                    digest = (line.get("aux") or {}).get("Digest") or digest
                    detail = line.get("progressDetail") or {}
                    if "id" in line and detail.get("current") is not None:
                        current = int(detail["current"])
                        layers[line["id"]] = (current, max(current, int(detail.get("total") or 0)))
                    current, total = (sum(part) for part in zip(*layers.values(), strict=True)) if layers else (0, 0)
                    loop.call_soon_threadsafe(progress, current, total, str(line.get("status", "pushing"))[:200])
            finally:
                stream.close()
            return digest

        return await self._engine.ask(follow, slow=True)

    async def remove(self, name: str) -> bool:
        """False when it is not there. Layers that no other image has go with it."""
        try:
            await self._engine.ask(lambda client: client.remove_image(name, force=False, noprune=False), "remove_image")
        except EngineError as error:
            if error.missing == "image":
                return False
            raise
        return True

    async def fill(
        self, image: str, container: str, labels: Mapping[str, str], path: str, sink: Callable[[bytes], None]
    ) -> None:
        """Give what lies at `path` in an image to `sink`, piece by piece, as a tar archive."""

        def give(client: Any) -> None:
            made = client.create_container(
                image, entrypoint=["/"], command=[], name=container, labels=dict(labels), network_disabled=True
            )
            try:
                stream, _ = client.get_archive(made["Id"], path, chunk_size=_CHUNK_BYTES)
                for chunk in stream:
                    sink(chunk)
            finally:
                client.remove_container(made["Id"], force=True, v=True)

        await self._engine.ask(give, "fill", slow=True)


def scrap_name(job: str) -> str:
    return f"{SCRAP}:{job}"


def configuration(base: ImageFacts, layers: Iterable[str], labels: Mapping[str, str], *, at: datetime) -> bytes:
    """The base's, but for layers and labels: what is ours of containers goes, what is ours of images comes."""
    config = dict(base.config or {})
    architecture, variant = config.pop("Architecture", "amd64"), config.pop("Variant", "")
    kept = {name: value for name, value in base.labels.items() if name not in _OF_CONTAINERS}
    config |= {"Labels": {**kept, **labels}, "Hostname": "", "Image": ""}
    created = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    layers = list(layers)
    whole = {
        "architecture": architecture,
        **({"variant": variant} if variant else {}),
        "os": base.os,
        "created": created,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [{"created": created, "created_by": "moorage"} for _ in layers],
    }
    return json.dumps(whole).encode()


def image_archive(
    name: str, config: bytes, layers: int, layer: Path, *, stop: Callable[[], bool], progress: Progress
) -> Iterator[bytes]:
    """What `docker load` takes. Only the topmost layer is in it, the others are there."""
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"{number}/layer.tar" for number in range(layers)]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": names}]
    for path, content in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
        yield _member(path, len(content)) + _padded(content)
    size = layer.stat().st_size
    yield _member(names[-1], size)
    sent = 0
    with layer.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if stop():
                raise EngineError("stopped")
            yield chunk
            sent += len(chunk)
            progress(sent, size, "handing the layer to the engine")
    yield bytes(-size % tarfile.BLOCKSIZE) + bytes(2 * tarfile.BLOCKSIZE)


def _member(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _padded(content: bytes) -> bytes:
    made = io.BytesIO(content)
    made.seek(0, io.SEEK_END)
    made.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return made.getvalue()


def _parts(name: str) -> tuple[str, str]:
    """Repository and tag; a colon before a slash is a port's."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


def _architecture(name: str) -> str:
    """As `uname -m` calls it, and everybody here."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
