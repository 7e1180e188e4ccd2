"""A container engine in memory, and the runners in its containers: they outlive the agents that made them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.containers import ContainerSpec, ContainerState, EngineError, ImageConfig
from agent.rings import RunnerError
from agent.runner_link import Tail
from tests.sim.virtual import PROCESS, VirtualLoop

IMAGE = "moorage/python:3.11"


class Luck(Protocol):
    """What is drawn by lot, and who is told of what happens."""

    loop: VirtualLoop

    def chance(self, what: str) -> bool: ...
    def between(self, least: float, most: float) -> float: ...
    def note(self, line: str) -> None: ...
    def container_changed(self, host: str) -> None: ...
    def ended(self, task: asyncio.Task[Any]) -> None: ...


@dataclass
class Container:
    id: str
    name: str
    spec: ContainerSpec
    uid: str
    status: str = "created"
    exit_code: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    links: list[Runner] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def kernel_id(self) -> str:
        return self.spec.labels["moorage.kernel"]

    @property
    def attempt(self) -> int:
        return int(self.spec.labels["moorage.attempt"])

    @property
    def session_id(self) -> str:
        return self.spec.labels["moorage.session"]

    @property
    def slots(self) -> dict[str, int]:
        pairs = (pair.partition("=") for pair in self.spec.labels["moorage.slots"].split(",") if pair)
        return {name: int(amount) for name, _, amount in pairs}

    def state(self) -> ContainerState:
        labels = {**self.spec.labels, "moorage.agent": self.uid}
        return ContainerState(id=self.id, name=self.name, status=self.status, labels=labels, exit_code=self.exit_code)


@dataclass
class Run:
    """Of a startup command."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Of one host. Effects happen whether or not whoever asked still lives."""

    def __init__(self, host: str, luck: Luck, *, has_image: bool) -> None:
        self.host = host
        self.luck = luck
        self.containers: dict[str, Container] = {}
        self.has_image = has_image
        self.rings: dict[tuple[str, str], dict[str, Any]] = {}  #: (folder, run) -> how it ended
        self.started: dict[tuple[str, int], int] = {}  #: how often a startup command began, by kernel and attempt
        self._made = 0
        self._watchers: list[Callable[[str, str], None]] = []

    def by_folder(self, folder: Path) -> Container | None:
        """The container that runs with this link folder mounted."""
        for one in self.containers.values():
            if one.status == "running" and any(source == folder for source, _, _ in one.spec.mounts):
                return one
        return None

    def end(self, container: Container, exit_code: int, *, remove: bool = False) -> None:
        """Something, or somebody, ends it from outside."""
        if container.status == "running":
            container.status, container.exit_code = "exited", exit_code
            for link in container.links:
                link.lose()
            for watcher in self._watchers:
                self.luck.loop.call_later(0.01, watcher, container.id, "die", context=Context())
        if remove:
            self.containers.pop(container.id, None)
        self.luck.note(f"{self.host}: {container.name} ends with {exit_code}")
        self.luck.container_changed(self.host)

    def create(self, uid: str, spec: ContainerSpec) -> str:
        for one in self.containers.values():
            if one.name == spec.name:
                return one.id
        if not self.has_image:
            raise EngineError("no such image", missing="image")
        self._made += 1
        made = Container(f"{self.host}-c{self._made}", spec.name, spec, uid)
        self.containers[made.id] = made
        self.luck.note(f"{self.host}: created {made.name}")
        self.luck.container_changed(self.host)
        return made.id

    def start(self, container_id: str) -> None:
        found = self.containers.get(container_id)
        if found is None:
            raise EngineError("no such container", missing="container")
        if found.status == "running":
            return
        found.status = "running"
        self.luck.note(f"{self.host}: started {found.name}")
        self.luck.container_changed(self.host)
        if self.luck.chance("container dies at start"):
            self.luck.loop.call_later(self.luck.between(0.0, 0.3), self.end, found, 1)
        self.luck.loop.call_later(self.luck.between(0.02, 0.5), found.ready.set)

    def remove(self, container: str) -> None:
        found = self._find(container)
        if found is not None:
            self.end(found, 137, remove=True)

    def _find(self, container: str) -> Container | None:
        if found := self.containers.get(container):
            return found
        return next((one for one in self.containers.values() if one.name == container), None)

    def inspect(self, container: str) -> ContainerState | None:
        found = self._find(container)
        return found.state() if found is not None else None

    def pulled(self) -> None:
        self.has_image = True


class EngineClient:
    """Stands in for `agent.containers.Containers` in one start of an agent."""

    network = "moorage"
    first_ids = (0, 0)

    def __init__(self, engine: Engine, uid: str) -> None:
        self._engine = engine
        self._uid = uid

    async def _ask(self, what: str, effect: Callable[[], Any], seconds: tuple[float, float] = (0.001, 0.2)) -> Any:
        """The effect happens in the engine's own time; its answer may be lost on the way back."""
        luck, loop = self._engine.luck, self._engine.luck.loop
        answer: asyncio.Future[Any] = loop.create_future()
        there, back = luck.between(*seconds), luck.between(0.0, 0.02)
        if luck.chance("engine refuses"):
            await asyncio.sleep(there)
            raise EngineError(f"{what}: server error")
        if luck.chance("engine does not hear"):
            await asyncio.sleep(luck.between(0.1, 10.0))
            raise EngineError(f"{what}: no answer", unknown=True)
        lost = luck.chance("engine's answer is lost")

        def work() -> None:
            try:
                result: Any = effect()
            except EngineError as error:
                loop.call_later(back, _tell, answer, None, error, context=here)
            else:
                silence = EngineError(f"{what}: no answer", unknown=True) if lost else None
                loop.call_later(back, _tell, answer, result, silence, context=here)

        here = copy_context()
        loop.call_later(there, work, context=Context())
        return await answer

    async def create(self, spec: ContainerSpec) -> Any:
        return await self._ask("create", lambda: self._engine.create(self._uid, spec))

    async def start(self, container_id: str) -> None:
        await self._ask("start", lambda: self._engine.start(container_id))

    async def remove(self, container: str) -> None:
        await self._ask("remove", lambda: self._engine.remove(container))

    async def inspect(self, container: str) -> Any:
        return await self._ask("inspect", lambda: self._engine.inspect(container), (0.001, 0.01))

    async def ours(self, **labels: str) -> Any:
        def find() -> list[ContainerState]:
            wanted = {f"moorage.{name}": value for name, value in labels.items()} | {"moorage.agent": self._uid}
            states = [one.state() for one in self._engine.containers.values()]
            return [state for state in states if wanted.items() <= state.labels.items()]

        return await self._ask("list", find, (0.001, 0.01))

    async def image(self, name: str) -> Any:
        config = ImageConfig(id=name, architecture="x86_64", environ={})
        return await self._ask("image", lambda: config if self._engine.has_image else None, (0.001, 0.01))

    async def images(self) -> list[str]:
        return [IMAGE] if self._engine.has_image else []

    async def pull(self, _image: str, progress: Any, _auth: Any = None) -> None:
        for step in range(3):
            await asyncio.sleep(self._engine.luck.between(0.1, 8.0))
            progress(step + 1, 3, "layers")
        await self._ask("pull", self._engine.pulled)

    async def thaw(self, _container: str) -> None: ...
    async def limit(self, *_arguments: Any, **_options: Any) -> None: ...
    async def made_networks(self) -> dict[str, Any]:
        return {}

    async def watch(self, on_event: Callable[[str, str], None]) -> None:
        process, loop = PROCESS.get(), self._engine.luck.loop
        assert process is not None

        def hear(container_id: str, action: str) -> None:
            if not self._engine.luck.chance("hint is lost"):
                loop.call_soon(on_event, container_id, action, context=process.context)

        self._engine._watchers.append(hear)
        process.on_death.append(lambda: self._engine._watchers.remove(hear))
        await loop.create_future()


def _tell(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if not answer.done():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)


class Ready:
    """Stands in for `agent.runner_link.ReadySignal`."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder

    async def wait(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while (container := self._engine.by_folder(self._folder)) is None:
                    await asyncio.sleep(0.02)
                await container.ready.wait()
        except TimeoutError:
            raise RunnerError("runner_lost", "The runner did not start.") from None

    def close(self) -> None: ...


class Runner:
    """Stands in for `agent.runner_link.RunnerLink`: the agent's connection to what runs in a container."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self._engine, self._container = engine, container
        self.lost = asyncio.Event()
        self.worker: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {
            run: {"status": "running"} for run, one in container.runs.items() if not one.ended.is_set()
        }
        container.links.append(self)

    @classmethod
    async def to(cls, engine: Engine, folder: Path) -> Runner:
        await asyncio.sleep(engine.luck.between(0.001, 0.03))
        container = engine.by_folder(folder)
        if container is None or not container.ready.is_set():
            raise RunnerError("runner_lost", "Nobody listens.")
        return cls(engine, container)

    def lose(self) -> None:
        self.lost.set()
        for run in self._container.runs.values():
            run.ended.set()

    def _check(self) -> None:
        if self.lost.is_set():
            raise RunnerError("runner_lost", "The runner is gone.")

    async def execute(self, run: str, **_options: Any) -> Tail:
        self._check()
        if run not in self._container.runs:
            made = self._container.runs[run] = Run()
            key = (self._container.kernel_id, self._container.attempt)
            self._engine.started[key] = self._engine.started.get(key, 0) + 1
            self._engine.luck.note(f"{self._engine.host}: work of {self._container.name} begins")
            seconds = self._engine.luck.between(0.1, 25.0)
            self._engine.luck.loop.call_later(seconds, self._done, run, made, context=Context())
        return Tail(run=run, seq=1, done=False, status="running")

    def _done(self, run: str, made: Run) -> None:
        if self._container.status == "running":
            folder = next(str(source) for source, target, _ in self._container.spec.mounts if "link" in target)
            code = 1 if self._engine.luck.chance("work fails") else 0
            self._engine.rings[folder, run] = {"exit_code": code, "reason": "finished", "finished_at": 1.0}
            made.ended.set()

    async def wait_tail(self, run: str, _after: int, _seconds: float) -> Tail:
        await self._container.runs[run].ended.wait()
        self._check()
        return Tail(run=run, seq=2, done=True, status="done")

    async def shutdown(self, _grace_seconds: float) -> None:
        self._check()
        await asyncio.sleep(self._engine.luck.between(0.0, 0.2))

    async def set_environ(self, _values: Any) -> None: ...
    async def ping(self) -> None: ...
    async def note(self, _text: str) -> None: ...

    async def close(self) -> None:
        self.lost.set()


class Rings:
    """Stands in for `agent.runs.Rings`: what is on the host's disk of a kernel's runs."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, str(folder)

    def done(self, run: str) -> dict[str, Any] | None:
        return self._engine.rings.get((self._folder, run))

    def end(self, run: str) -> tuple[dict[str, Any], int] | None:
        done = self.done(run)
        return (done, 2) if done is not None else None

    def saw(self, _tail: Tail) -> None: ...
    def close(self) -> None: ...
    def text(self, _run: str, _last_bytes: int) -> str:
        return ""
