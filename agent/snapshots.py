"""Sessions as images: commit one, give its files to the next, push and remove what was made."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from agent import pack
from agent.containers import USER, Containers, EngineError, ImageConfig
from agent.images import AGENT_LABEL, HOME_LABEL, SCRAP, TASK_LABEL, ImageFacts, Images, scrap_name
from agent.jobs import Jobs, Progress, Stopped
from agent.kernel import Kernel
from domain.crash import reach
from domain.errors import (
    AgentUnavailable,
    CommitFailed,
    HostStorageFull,
    ImageNotFound,
    MoorageError,
    PushFailed,
    RegistryDenied,
    RegistryUnreachable,
    SessionEnded,
    StillInUse,
)
from domain.images import registry_of
from domain.session import KernelState

log = logging.getLogger("moorage.agent.snapshots")
T = TypeVar("T")
#: Every helper container has this label, whatever it was for.
HELPER_LABEL: Final = "moorage.helper"
_THAW_AGAIN_SECONDS: Final = (0.1, 0.3, 1.0, 2.0)
_STOP_SECONDS: Final = 30.0
_NO_SPACE: Final = re.compile(r"no space left|disk quota exceeded|\bENOSPC\b", re.IGNORECASE)
_DENIED: Final = re.compile(
    r"unauthorized|authentication required|denied|no basic auth|incorrect username|forbidden|\b401\b|\b403\b",
    re.IGNORECASE,
)
_UNREACHABLE: Final = re.compile(
    r"connection refused|no such host|i/o timeout|timeout|no route|network is unreachable|\bEOF\b|dial tcp|tls|"
    r"server gave HTTP response|deadline exceeded|reset by peer|certificate",
    re.IGNORECASE,
)


class Snapshots:
    """Of one host. Its jobs are named by the manager's tasks; asking twice does nothing twice."""

    def __init__(self, engine: Containers, data_dir: Path, uid: str, now: Callable[[], float] = time.time) -> None:
        self.images = Images(engine)
        self.jobs = Jobs()
        self._engine = engine
        self._spool = data_dir / "commits"
        self._uid = uid
        self._now = now

    async def sweep(self) -> None:
        """What a commit that was cut short has left: files, helper containers, images without a name."""
        await asyncio.to_thread(shutil.rmtree, self._spool, ignore_errors=True)
        for container in await self._engine.ours(helper="1"):
            await self._engine.remove(container.id)
        for image in await self.images.all():
            for tag in image.tags if image.labels.get("moorage.agent") == self._uid else ():
                if tag.startswith(f"{SCRAP}:"):
                    log.warning("removing %s, of a commit that was cut short", tag)
                    with contextlib.suppress(EngineError):
                        await self.images.remove(tag)

    # -- commit ----------------------------------------------------------------------------------------------------
    async def commit(
        self, kernel: Kernel, attempt: int, job: str, name: str, labels: Mapping[str, str], listener: Progress
    ) -> dict[str, Any]:
        """See `agent.client.AgentClient.commit`."""

        async def work(progress: Progress) -> dict[str, Any]:
            if (there := await self._there(name, job)) is not None:
                return _told(there, 0.0)
            if kernel.state.attempt != attempt:
                raise SessionEnded("The session was restarted meanwhile; nothing was kept.")
            return await self._commit(kernel, job, name, labels, progress)

        try:
            return dict(await self.jobs.run(job, work, listener))
        except Stopped:
            raise SessionEnded("The session ended while it was being committed; nothing was kept.") from None

    async def _commit(
        self, kernel: Kernel, job: str, name: str, labels: Mapping[str, str], progress: Progress
    ) -> dict[str, Any]:
        folder = self._spool / job
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            with _as_ours():
                return await self._committed(kernel, job, name, labels, folder / "layer.tar", progress)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _there(self, name: str, job: str) -> ImageFacts | None:
        """The image of this job. One of the same name of another is left over, and goes."""
        there = await self.images.look(name)
        if there is None or there.labels.get(TASK_LABEL) == job:
            return there
        log.warning("removing %s, which nobody knows any more", name)
        await self.images.remove(name)
        return None

    async def _committed(
        self, kernel: Kernel, job: str, name: str, labels: Mapping[str, str], layer: Path, progress: Progress
    ) -> dict[str, Any]:
        container = kernel.state.container_id
        if kernel.state.observed != KernelState.RUNNING or container is None:
            raise SessionEnded("The session has ended, so there is nothing to commit.")
        image, may_differ = await self.images.of_container(container)
        base = await self.images.look(image)
        if base is None:
            raise CommitFailed("The image that the session was made of is not on its host any more; nothing was kept.")
        layers = _without_home(base)
        begun = time.monotonic()
        try:
            async with self._frozen(kernel, container):
                begun = time.monotonic()
                packed = await self._pack(kernel.folders.scratch, layer, progress)
                reach("agent.files.layer.packed")
                if may_differ:
                    layers = list((await _to_its_end(self.images.commit(container, job))).layers)
            frozen = time.monotonic() - begun
            stopped = asyncio.Event()
            making = asyncio.ensure_future(
                self.images.make(
                    name,
                    base,
                    layers,
                    layer,
                    packed["digest"],
                    {**labels, TASK_LABEL: job, HOME_LABEL: packed["digest"], AGENT_LABEL: self._uid},
                    at=datetime.fromtimestamp(self._now(), UTC),
                    stop=stopped.is_set,
                    progress=progress,
                )
            )
            made = await self._taken_back(making, stopped, name)
        finally:
            if may_differ:
                with contextlib.suppress(EngineError):
                    await asyncio.shield(self.images.remove(scrap_name(job)))
        return _told(made, frozen)

    async def _taken_back(self, making: asyncio.Future[ImageFacts], stopped: asyncio.Event, name: str) -> ImageFacts:
        """The engine carries out what it was asked; who is cancelled waits for that, and takes it back."""
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.wait({making})
            with contextlib.suppress(EngineError):
                await self.images.remove(name)
            raise

    @asynccontextmanager
    async def _frozen(self, kernel: Kernel, container: str) -> AsyncIterator[None]:
        """Nothing in the container moves inside the block. It is thawed in any case, however long the engine is away."""
        await kernel.hold_still()
        try:
            await _to_its_end(self._engine.freeze(container))
            yield
        finally:
            await asyncio.shield(asyncio.ensure_future(self._thaw(kernel, container)))

    async def _thaw(self, kernel: Kernel, container: str) -> None:
        tries = 0
        try:
            while True:
                try:
                    state = await self._engine.inspect(container)
                    if state is None or state.status != "paused":
                        return
                    await self._engine.thaw(container)
                except EngineError as error:
                    log.warning("%s cannot be thawed yet: %s", kernel, error)
                    await asyncio.sleep(_THAW_AGAIN_SECONDS[min(tries, len(_THAW_AGAIN_SECONDS) - 1)])
                    tries += 1
        finally:
            kernel.go_on()

    async def _pack(self, scratch: Path, layer: Path, progress: Progress) -> dict[str, Any]:
        with layer.open("wb") as out:
            child = await asyncio.create_subprocess_exec(
                *_program("pack", scratch), stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=asyncio.subprocess.PIPE
            )
            return await _heard(child, lambda size: progress(size, 0, "packing the session's files"))

    # -- the other way ---------------------------------------------------------------------------------------------
    async def fill(self, kernel: Kernel, image: ImageConfig) -> None:
        """Give a new session the files that its image has at /home/work. Once: what is there is never overwritten."""
        marker = kernel.folders.private / "filled"
        if HOME_LABEL not in image.labels or await asyncio.to_thread(marker.exists):
            return
        name = f"{kernel.name}-files"
        labels = {"moorage.agent": self._uid, "moorage.kernel": kernel.id, HELPER_LABEL: "1"}
        await self._engine.remove(name)
        child = await asyncio.create_subprocess_exec(
            *_program("unpack", kernel.folders.scratch, kernel.owner[0]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        hearing = asyncio.ensure_future(_heard(child, lambda _: None))
        loop = asyncio.get_running_loop()
        assert child.stdin is not None
        stdin = child.stdin

        async def feed(chunk: bytes) -> None:
            stdin.write(chunk)
            await stdin.drain()

        try:
            with contextlib.suppress(ConnectionError):
                await self.images.fill(
                    image.id,
                    name,
                    labels,
                    f"/{pack.HOME}",
                    lambda chunk: asyncio.run_coroutine_threadsafe(feed(chunk), loop).result(),
                )
            stdin.close()
            await hearing
        except OSError as error:
            raise EngineError(f"the files of the image could not be unpacked: {error.strerror}") from None
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
        await asyncio.to_thread(marker.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        reach("agent.files.home.filled")
        await asyncio.to_thread(marker.touch)

    # -- registries and the rest -----------------------------------------------------------------------------------
    async def thaw_forgotten(self, held: Callable[[str], bool]) -> None:
        """Who was frozen by a request that took effect late, or by an engine that was killed over it."""
        for container in await self._engine.ours():
            if container.status == "paused" and not held(container.labels.get("moorage.kernel", "")):
                log.warning("%s is frozen, and nobody commits it; thawing it", container.name)
                with contextlib.suppress(EngineError):
                    await self._engine.thaw(container.id)

    async def push(self, job: str, name: str, auth: Mapping[str, str] | None, listener: Progress) -> dict[str, Any]:
        async def work(progress: Progress) -> dict[str, Any]:
            stopped = asyncio.Event()
            pushing = asyncio.ensure_future(self.images.push(name, auth, stop=stopped.is_set, progress=progress))
            try:
                return {"digest": await asyncio.shield(pushing)}
            except asyncio.CancelledError:
                stopped.set()
                await asyncio.wait({pushing}, timeout=_STOP_SECONDS)
                raise
            except EngineError as error:
                raise push_error(name, error) from None

        return dict(await self.jobs.run(f"push {job}", work, listener))

    async def cancel(self, job: str) -> bool:
        return any([await self.jobs.cancel(job), await self.jobs.cancel(f"push {job}")])

    async def list(self) -> list[dict[str, Any]]:
        return [asdict(image) for image in await self.images.all()]

    async def remove(self, name: str, task: str | None) -> bool:
        """`task`: only if it was made by that one. False when there is no such image."""
        if task is not None:
            there = await self.images.look(name)
            if there is None or there.labels.get(TASK_LABEL) != task:
                return False
        try:
            return await self.images.remove(name)
        except EngineError as error:
            if error.unknown:
                raise AgentUnavailable(str(error)) from None
            raise StillInUse(f"The host cannot remove {name}: {error}") from None

    async def close(self) -> None:
        await self.jobs.close()


def _program(what: str, folder: Path, user: int = USER) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", str(Path(pack.__file__)), what, str(folder), str(user))


async def _to_its_end(call: Awaitable[T]) -> T:
    """The engine carries out what it was asked, so who is cancelled meanwhile waits for it."""
    asked = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        await asyncio.wait({asked})
        raise


async def _heard(child: asyncio.subprocess.Process, progress: Callable[[int], None]) -> dict[str, Any]:
    """What the packing program says last. Ends it when nobody waits any more."""
    assert child.stderr is not None
    said: dict[str, Any] = {}
    try:
        async for line in child.stderr:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
            if "bytes" in said:
                progress(int(said["bytes"]))
        await child.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if not said.get("done"):
        if said.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(said["errno"], "no space left on device")
        raise EngineError(f"the files could not be moved: {said.get('error') or f'exit code {child.returncode}'}")
    return said


def _without_home(base: ImageFacts) -> list[str]:
    """A snapshot of a snapshot's session takes the place of the earlier one's files, instead of lying on top of them."""
    layers = list(base.layers)
    if layers and base.labels.get(HOME_LABEL) == layers[-1]:
        layers.pop()
    return layers


def _told(image: ImageFacts, frozen_seconds: float) -> dict[str, Any]:
    return {
        "image_id": image.id,
        "architecture": image.architecture,
        "labels": dict(image.labels),
        "size_bytes": image.size_bytes,
        "frozen_seconds": round(frozen_seconds, 3),
    }


@contextlib.contextmanager
def _as_ours() -> Any:
    """What the engine and the disk refuse a commit with, as errors that everybody knows."""
    try:
        yield
    except EngineError as error:
        raise commit_error(error) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostStorageFull from None
        raise CommitFailed(f"The session could not be committed, and nothing was kept: {error.strerror}.") from None


def commit_error(error: EngineError) -> MoorageError:
    text = str(error)
    if _NO_SPACE.search(text):
        return HostStorageFull()
    if error.missing == "container":
        return SessionEnded("The session ended while it was being committed; nothing was kept.")
    if error.unknown:
        return AgentUnavailable(text)
    return CommitFailed(f"The session could not be committed, and nothing was kept: {text[:300]}.")


def pull_error(name: str, error: EngineError) -> MoorageError:
    text, host = str(error), registry_of(name)
    if _NO_SPACE.search(text):
        return HostStorageFull(f"The host has no disk space left for the image {name}; remove images there first.")
    if _DENIED.search(text):
        return RegistryDenied(
            f"The registry {host} does not give out {name}: {text[:200]}; if it is there, set credentials with "
            f"'moorage registry login {host}'."
        )
    if _UNREACHABLE.search(text):
        return RegistryUnreachable(f"The registry {host} cannot be reached from the host: {text[:200]}.")
    if error.unknown:
        return AgentUnavailable(text)
    return ImageNotFound(f"The host cannot fetch {name}: {text}")


def push_error(name: str, error: EngineError) -> MoorageError:
    """Engines tell it in words only."""
    text, host = str(error), name.partition("/")[0]
    if _NO_SPACE.search(text):
        return PushFailed(f"The registry {host} has no space left for the image; nothing was kept of it.")
    if error.missing == "image":
        return ImageNotFound(f"The image {name} is not on the host any more.")
    if _DENIED.search(text):
        return RegistryDenied(
            f"The registry {host} refuses the image: {text[:200]}; set credentials with 'moorage registry login {host}'."
        )
    if error.unknown:
        return AgentUnavailable(text)
    if _UNREACHABLE.search(text):
        return RegistryUnreachable(f"The registry {host} cannot be reached from the session's host: {text[:200]}.")
    return PushFailed(f"The registry {host} did not take the image: {text[:300]}.")
