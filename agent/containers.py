"""Docker, spoken in this file only: every HostConfig key is built here from an allow-list, never passed through.

Each call runs in a thread and has a deadline. A deadline that passes means *unknown*, never *failed*: names are
deterministic, so the same call can be made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, IPAMConfig, IPAMPool, LogConfig, Mount, Ulimit
from docker.utils import kwargs_from_env, parse_repository_tag

from agent import gpu_request
from agent.profiles import confinement
from domain.crash import reach
from domain.isolation import Profile

log = logging.getLogger("moorage.agent.containers")
T = TypeVar("T")

LABEL_PREFIX: Final = "moorage."
LABEL: Final = "moorage.agent"
_PROFILE_LABEL: Final = "moorage.profile"
USER: Final = 1000  #: uid and gid of everything in a session
_CPU_PERIOD_US: Final = 100_000
_MIB: Final = 1024 * 1024
_PATIENCE_SECONDS: Final = 3600
#: Where the network's addresses come from: the first /22 that nothing on this host uses.
_POOL: Final = IPv4Network("10.213.0.0/16")
#: Tried one after the other when engines refuse what looked free.
_MOST_SUBNETS: Final = 8


class EngineError(Exception):
    """The engine refused, or did not answer in time.

    `missing` names what is not there: image, container, network, gpus (a way to hand them out). `unknown`: nobody can say
    whether it was done; ask again.
    """

    def __init__(self, message: str, *, missing: str | None = None, unknown: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        self.unknown = unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What may be chosen of a container; everything else is the same for all."""

    name: str
    image: str
    entrypoint: Sequence[str]
    hostname: str
    labels: Mapping[str, str]
    cpu_milli: int
    memory_mib: int
    shm_mib: int
    pids: int
    mounts: Sequence[tuple[Path, str, bool]]  #: source, target, read-only
    user: tuple[int, int] = (USER, USER)  #: uid, gid
    gpus: Mapping[str, Sequence[str]] = field(default_factory=dict)  #: by UUID, other names they may have
    network: str | None = None  #: None: no network at all
    address: str | None = None  #: on that network; None: the engine chooses
    profile: str = Profile.HARDENED
    offline: bool = False  #: nobody looks up names for it, which would be a way out
    layer_mib: int | None = None  #: that may be written into the image's own folders, where the driver can see to it


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """The bridge of one cluster session on this host: its containers talk to each other, and to nobody else's."""

    name: str
    bridge: str
    subnet: str
    gateway: str
    mtu: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    id: str
    name: str
    status: str  #: created, running, paused, restarting, removing, exited, dead
    labels: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None
    exit_code: int | None = None
    out_of_memory: bool = False  #: as the engine says it, which is sometimes wrong
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    id: str
    architecture: str
    environ: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)


class Containers:
    """One engine, and what of it belongs to the agent with this uid."""

    def __init__(
        self,
        host: str | None,
        uid: str,
        network: str = "moorage",
        *,
        timeout_seconds: int = 60,
        runtime: str = "",
        dns: Sequence[str] = (),
        gpu_runtime: str = gpu_request.AUTO,
    ) -> None:
        self._host = host
        self._gpu_runtime = gpu_runtime
        self._runtime = runtime
        self._dns = tuple(dns)
        self._unbounded = False  #: its storage driver has no limits; learned by asking
        self._info: Mapping[str, Any] = {}  #: what the engine says of itself
        self._uid = uid
        self.network = network
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="agent-engine")
        self._client: Any = None
        self._patient: Any = None  #: for what the engine may be silent about for long
        self._network_lock = asyncio.Lock()

    # -- the engine ------------------------------------------------------------------------------------------------
    async def open(self) -> dict[str, Any]:
        """Connect, make the network. What administrators should know of the engine, warnings included."""

        def connect() -> dict[str, Any]:
            self._client = self._connected(self._timeout_seconds)
            self._patient = self._connected(_PATIENCE_SECONDS)
            info: dict[str, Any] = self._client.info()
            return info

        info = self._info = await self._call(connect)
        warnings = []
        if not info.get("LiveRestoreEnabled"):
            warnings.append("live-restore is off: an engine that is killed or upgraded ends every session of this host")
        await self.ensure_network()
        return {
            "engine_version": info.get("ServerVersion"),
            "live_restore": bool(info.get("LiveRestoreEnabled")),
            "kernel": info.get("KernelVersion"),
            "storage_driver": info.get("Driver"),
            "root_dir": info.get("DockerRootDir"),
            "cgroup_version": info.get("CgroupVersion"),
            "warnings": warnings,
        }

    async def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the engine says of itself and of its parts; connects, and makes nothing."""

        def ask() -> tuple[dict[str, Any], dict[str, Any]]:
            self._client = self._connected(self._timeout_seconds)
            return self._client.info(), self._client.version()

        return await self._call(ask)

    def runtime_trouble(self) -> str | None:
        """Why no container could be run as the configuration says; None when it can. After `open`."""
        known = sorted(self._info.get("Runtimes") or {})
        if not self._runtime or self._runtime in known:
            return None
        known = [name for name in known if not name.startswith("io.containerd")]
        return (
            f"The engine knows no runtime '{self._runtime}', only {', '.join(known)}: install it, name it in the engine's "
            "daemon.json and restart the engine, or take 'runtime' out of agent.toml."
        )

    @property
    def first_ids(self) -> tuple[int, int]:
        """Which uid and gid of this host root is inside: 0, or with userns-remap the first of the subordinate ones."""
        return remapped(self._info) or (0, 0)

    def _connected(self, timeout_seconds: int) -> Any:
        options: dict[str, Any] = {"base_url": self._host} if self._host else dict(kwargs_from_env())
        return docker.APIClient(version="auto", timeout=timeout_seconds, **options)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in (self._client, self._patient):
            if client is not None:
                client.close()

    async def ensure_network(self) -> None:
        """One bridge for all single sessions, which do not see each other. It can vanish under us."""
        async with self._network_lock:
            await self._call(self._make_network)

    def _make_network(self, refused: tuple[IPv4Network, ...] = ()) -> None:
        networks = self._client.networks()
        if any(network["Name"] == self.network for network in networks):
            return
        used = [
            IPv4Network(pool["Subnet"], strict=False)
            for network in networks
            for pool in (network["IPAM"] or {}).get("Config") or []
            if ":" not in pool.get("Subnet", ":")
        ]
        used += [*_routes(), *refused]
        subnet = next((s for s in _POOL.subnets(new_prefix=22) if not any(s.overlaps(other) for other in used)), None)
        if subnet is None:
            raise EngineError(f"No subnet of {_POOL} is free on this host for the network of sessions.")
        log.warning("making the network %s on %s", self.network, subnet)
        try:
            self._client.create_network(
                self.network,
                driver="bridge",
                ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))]),
                options={
                    "com.docker.network.bridge.name": self.bridge,
                    "com.docker.network.bridge.enable_icc": "false",
                },
                labels={LABEL: self._uid},
                check_duplicate=True,
            )
        except APIError as error:
            if len(refused) < _MOST_SUBNETS and "overlaps" in str(error.explanation):
                # somebody has taken it since it was looked at, or is about to, and is not listed yet
                self._make_network((*refused, subnet))
            elif error.status_code != 409:  # another agent of this host made it at the same time
                raise

    @property
    def bridge(self) -> str:
        """Of the network of single sessions, as this host knows it."""
        return self.network[:15]

    async def remove_network(self) -> None:
        await self._call(lambda: self._client.remove_network(self.network))

    async def make_network(self, spec: NetworkSpec) -> None:
        """The network of a cluster session; one of this name that is not like that is made anew."""

        def make() -> None:
            for there in self._client.networks(names=[spec.name]):
                if there["Name"] != spec.name:
                    continue
                pools = (there["IPAM"] or {}).get("Config") or [{}]
                if (pools[0].get("Subnet"), pools[0].get("Gateway")) == (spec.subnet, spec.gateway):
                    return
                self._client.remove_network(there["Id"])
            self._client.create_network(
                spec.name,
                driver="bridge",
                ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=spec.subnet, gateway=spec.gateway)]),
                options={
                    "com.docker.network.bridge.name": spec.bridge,
                    "com.docker.network.bridge.enable_icc": "true",
                    "com.docker.network.driver.mtu": str(spec.mtu),
                },
                labels={**spec.labels, LABEL: self._uid},
                check_duplicate=True,
            )

        await self._call(make, "create_network")

    async def unmake_network(self, name: str) -> None:
        """It is no error when it is gone."""
        try:
            await self._call(lambda: self._client.remove_network(name), "remove_network")
        except EngineError as error:
            if error.missing != "network":
                raise

    async def made_networks(self) -> dict[str, Mapping[str, str]]:
        """Names and labels of the networks of cluster sessions that are ours."""
        filters = {"label": [f"{LABEL}={self._uid}", f"{LABEL_PREFIX}session"]}
        found = await self._call(lambda: self._client.networks(filters=filters))
        return {one["Name"]: one.get("Labels") or {} for one in found}

    async def foreign_subnets(self) -> list[str]:
        """What this host uses otherwise: routes, and networks of the engine that are no cluster session's of ours."""

        def look() -> set[IPv4Network]:
            ours: set[IPv4Network] = set()
            others = set(_routes())
            for network in self._client.networks():
                labels = network.get("Labels") or {}
                mine = labels.get(LABEL) == self._uid and f"{LABEL_PREFIX}session" in labels
                for pool in (network["IPAM"] or {}).get("Config") or []:
                    if ":" not in pool.get("Subnet", ":"):
                        (ours if mine else others).add(IPv4Network(pool["Subnet"], strict=False))
            return others - ours

        return sorted(map(str, await self._call(look)))

    # -- containers ------------------------------------------------------------------------------------------------
    async def create(self, spec: ContainerSpec) -> str:
        """Create the container, or find the one of this name that an earlier call made. Its id."""
        try:
            return await self._call(lambda: self._create(spec), "create")
        except EngineError:
            if (there := await self.inspect(spec.name)) and there.labels.get(LABEL) == self._uid:
                return there.id
            raise

    def _create(self, spec: ContainerSpec) -> str:
        bounded = spec.layer_mib is not None and not confinement(spec.profile).read_only and not self._unbounded
        if bounded:
            try:
                return self._created(spec, {"size": f"{spec.layer_mib}m"})
            except APIError as error:
                if "storage" not in str(error.explanation or error).lower():
                    raise
                log.info("the engine cannot bound what is written into images: %s", error.explanation)
                self._unbounded = True
        return self._created(spec, None)

    def _created(self, spec: ContainerSpec, storage: dict[str, str] | None) -> str:
        memory = spec.memory_mib * _MIB
        gpus = self._gpus(spec)
        host_config = self._client.create_host_config(
            **confinement(spec.profile).host_config(),
            tmpfs={"/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={max(memory // 2, _MIB)}"},  # noqa: S108
            mem_limit=memory,
            memswap_limit=memory,
            cpu_period=_CPU_PERIOD_US,
            cpu_quota=cpu_quota_us(spec.cpu_milli),
            cpu_shares=cpu_shares(spec.cpu_milli),
            pids_limit=spec.pids,
            shm_size=spec.shm_mib * _MIB,
            log_config=LogConfig(
                type=LogConfig.types.JSON,
                config={"max-size": "1m", "max-file": "2", "mode": "non-blocking", "max-buffer-size": "1m"},
            ),
            restart_policy={"Name": "no"},
            runtime=self._runtime or None,
            storage_opt=storage,
            # the engine would ask this host's name servers, and where those are the host itself, past every rule
            dns=["127.0.0.1"] if spec.offline else list(self._dns) or None,
            network_mode=spec.network or "none",
            ulimits=[Ulimit(name="core", soft=0, hard=0)],
            mounts=[
                Mount(target, str(source), type="bind", read_only=read_only, propagation="rprivate")
                for source, target, read_only in spec.mounts
            ],
            device_requests=[_device_request(gpus)] if gpus is not None else None,
        )
        created = self._client.create_container(
            spec.image,
            entrypoint=list(spec.entrypoint),
            command=[],
            user="{}:{}".format(*spec.user),
            hostname=spec.hostname,
            working_dir="/home/work",
            environment=gpu_request.container_environ(gpus.driver if gpus is not None else None, list(spec.gpus)),
            labels={**spec.labels, LABEL: self._uid, _PROFILE_LABEL: spec.profile},
            name=spec.name,
            host_config=host_config,
            networking_config=self._endpoint(spec),
            healthcheck={"test": ["NONE"]},
            stdin_open=False,
            tty=False,
        )
        container_id: str = created["Id"]
        return container_id

    def _gpus(self, spec: ContainerSpec) -> gpu_request.Request | None:
        if not spec.gpus:
            return None
        try:
            return gpu_request.request(self._info, self._gpu_runtime, spec.gpus)
        except gpu_request.NoWay as why:
            raise EngineError(str(why), missing="gpus") from None

    def gpu_trouble(self) -> str | None:
        """Why no container could be given a GPU, as far as that can be known before one is asked for."""
        return gpu_request.trouble(self._info, self._gpu_runtime)

    def _endpoint(self, spec: ContainerSpec) -> Any:
        if spec.network is None or spec.address is None:
            return None
        endpoint = self._client.create_endpoint_config(ipv4_address=spec.address)
        return self._client.create_networking_config({spec.network: endpoint})

    async def limit(self, container: str, *, cpu_milli: int, memory_mib: int) -> None:
        """Other limits for a container that runs."""
        memory = memory_mib * _MIB
        await self._call(
            lambda: self._client.update_container(
                container,
                cpu_period=_CPU_PERIOD_US,
                cpu_quota=cpu_quota_us(cpu_milli),
                cpu_shares=cpu_shares(cpu_milli),
                mem_limit=memory,
                memswap_limit=memory,
            ),
            "update",
        )

    async def start(self, container_id: str) -> None:
        """Start it. Does nothing when it runs; the network is made again when it has vanished."""
        try:
            await self._call(lambda: self._client.start(container_id), "start")
        except EngineError as error:
            if error.missing != "network":
                raise
            await self.ensure_network()
            await self._call(lambda: self._client.start(container_id))

    async def inspect(self, container: str) -> ContainerState | None:
        """By id or name; None when the engine says that there is no such container."""
        found = await self._inspected(container)
        if found is None:
            return None
        state = found["State"]
        return ContainerState(
            id=found["Id"],
            name=found["Name"].lstrip("/"),
            status=state["Status"],
            labels=found["Config"].get("Labels") or {},
            pid=state.get("Pid") or None,
            exit_code=state.get("ExitCode"),
            out_of_memory=bool(state.get("OOMKilled")),
            error=state.get("Error") or "",
        )

    async def _inspected(self, container: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._call(lambda: self._client.inspect_container(container))
        except EngineError as error:
            if error.missing == "container":
                return None
            raise
        return found

    async def ours(self, **labels: str) -> list[ContainerState]:
        """Everything that carries our uid, and these labels. This, not events, is the truth."""
        wanted = [f"{LABEL}={self._uid}", *(f"{LABEL_PREFIX}{name}={value}" for name, value in labels.items())]
        found = await self._call(lambda: self._client.containers(all=True, filters={"label": wanted}))
        return [
            ContainerState(
                id=one["Id"], name=one["Names"][0].lstrip("/"), status=one["State"], labels=one.get("Labels") or {}
            )
            for one in found
            if one.get("Names")
        ]

    async def limits(self, container: str) -> dict[str, Any] | None:
        """What the engine really enforces; None when the container has gone."""
        found = await self._inspected(container)
        if found is None:
            return None
        config = found["HostConfig"]
        return {
            "cpu_milli": (config.get("CpuQuota") or 0) * 1000 // _CPU_PERIOD_US,
            "memory_mib": (config.get("Memory") or 0) // _MIB,
            "pids": config.get("PidsLimit") or 0,
            "confined": confinement((found["Config"].get("Labels") or {}).get(_PROFILE_LABEL, "")).holds(config),
        }

    async def layer(self, container: str) -> tuple[Path, ...]:
        """Where this host keeps what is written into the image's own folders, and the files that the engine mounts."""
        found = await self._inspected(container)
        if found is None:
            return ()
        upper = ((found.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        kept = [found.get(name) for name in ("HostsPath", "ResolvConfPath", "HostnamePath")]
        return tuple(Path(path) for path in (upper, *kept) if path)

    async def freeze(self, container: str) -> None:
        """It is no error when it is frozen, whatever the engine answers."""
        await self._until_so(lambda: self._client.pause(container), "pause", container, frozen=True)

    async def thaw(self, container: str) -> None:
        """It is no error when it is not frozen."""
        await self._until_so(lambda: self._client.unpause(container), "unpause", container, frozen=False)

    async def _until_so(self, function: Callable[[], object], step: str, container: str, *, frozen: bool) -> None:
        try:
            await self._call(function, step)
        except EngineError:
            state = await self.inspect(container)
            if (state is not None and state.status == "paused") is not frozen:
                raise

    async def signal(self, container: str, signal: str) -> None:
        await self._call(lambda: self._client.kill(container, signal))

    async def remove(self, container: str) -> None:
        """Kill and remove; it is no error when it is gone or going."""
        try:
            await self._call(lambda: self._client.remove_container(container, force=True, v=True), "remove")
        except EngineError as error:
            if error.missing != "container" and "already in progress" not in str(error):
                raise

    # -- images ----------------------------------------------------------------------------------------------------
    async def images(self) -> list[str]:
        found = await self._call(self._client.images)
        return sorted({tag for one in found for tag in one.get("RepoTags") or [] if tag != "<none>:<none>"})

    async def image(self, name: str) -> ImageConfig | None:
        try:
            found = await self._call(lambda: self._client.inspect_image(name))
        except EngineError as error:
            if error.missing == "image":
                return None
            raise
        environ = dict(line.partition("=")[::2] for line in (found.get("Config") or {}).get("Env") or [])
        labels = (found.get("Config") or {}).get("Labels") or {}
        return ImageConfig(id=found["Id"], architecture=found.get("Architecture", ""), environ=environ, labels=labels)

    async def pull(
        self, name: str, progress: Callable[[int, int, str], None], auth: Mapping[str, str] | None = None
    ) -> None:
        """Fetch an image. `progress(current, total, message)` is called in the loop's thread, bytes over all layers."""
        loop = asyncio.get_running_loop()
        repository, tag = parse_repository_tag(name)

        def follow() -> None:
            layers: dict[str, tuple[int, int]] = {}
            for line in self._client.pull(repository, tag=tag or "latest", stream=True, decode=True, auth_config=auth):
                if "error" in line:
                    text = str(line["error"])
                    raise EngineError(text, missing="image")
                detail = line.get("progressDetail") or {}
                if "id" in line and detail.get("total"):
                    layers[line["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
                current, total = (sum(part) for part in zip(*layers.values(), strict=True)) if layers else (0, 0)
                loop.call_soon_threadsafe(progress, current, total, str(line.get("status", ""))[:200])

        try:
            await self._call(follow)
        except EngineError as error:  # a registry that does not answer is refused with all kinds of words
            raise EngineError(str(error), missing=None if error.unknown else "image", unknown=error.unknown) from None

    # -- events ----------------------------------------------------------------------------------------------------
    async def watch(self, on_event: Callable[[str, str], None]) -> None:
        """Call `on_event(container id, action)` for what happens to our containers; ends when the engine goes away.

        Events are hints: some are lost, and none survives the engine.
        """
        loop = asyncio.get_running_loop()
        filters = {"type": "container", "label": f"{LABEL}={self._uid}", "event": ["die", "oom", "destroy", "pause"]}
        stream = await self._call(lambda: self._client.events(decode=True, filters=filters))

        def follow() -> None:
            for event in stream:
                loop.call_soon_threadsafe(on_event, str(event.get("id", "")), str(event.get("Action", "")))

        try:
            await self._call(follow)
        finally:
            # closing waits for nothing: the socket is shut, and the thread's read ends
            stream.close()

    async def ask(self, question: Callable[[Any], T], what: str = "", *, slow: bool = False) -> T:
        """For `agent.images`: ask the engine's client, in a thread, with its refusals as EngineError."""
        return await self._call(lambda: question(self._patient if slow else self._client), what)

    async def _call(self, function: Callable[[], T], what: str = "") -> T:
        """`what` names the crash points of a call that changes something."""
        try:
            if what:
                reach("agent.docker", what, "before")
            done = await asyncio.get_running_loop().run_in_executor(self._threads, function)
            if what:
                reach("agent.docker", what, "after")
            return done
        except ImageNotFound as error:
            raise EngineError(error.explanation or str(error), missing="image") from None
        except NotFound as error:
            text = str(error.explanation or error)
            kind = "image" if "image" in text.lower() else "network" if "network" in text.lower() else "container"
            raise EngineError(text, missing=kind) from None
        except APIError as error:
            text = str(error.explanation or error)
            if gpu_request.is_refusal(text):
                raise EngineError(f"{gpu_request.MISSING} ({text})", missing="gpus") from None
            raise EngineError(text, missing="network" if "network" in text and "not found" in text else None) from None
        except (DockerException, OSError) as error:
            raise EngineError(f"The container engine does not answer: {error}", unknown=True) from None


def _device_request(gpus: gpu_request.Request) -> DeviceRequest:
    if gpus.driver == gpu_request.CDI:
        return DeviceRequest(driver=gpu_request.CDI, device_ids=list(gpus.names))
    capabilities = [["gpu", *gpu_request.CAPABILITIES]]
    return DeviceRequest(driver=gpu_request.NVIDIA, device_ids=list(gpus.names), capabilities=capabilities)


def remapped(info: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first subordinate uid and gid of an engine with userns-remap: it keeps its data below them."""
    if not any("name=userns" in option for option in info.get("SecurityOptions") or []):
        return None
    uid, _, gid = Path(str(info.get("DockerRootDir") or "")).name.partition(".")
    return (int(uid), int(gid)) if uid.isdigit() and gid.isdigit() else None


def cpu_quota_us(cpu_milli: int) -> int:
    return max(cpu_milli * _CPU_PERIOD_US // 1000, 1000)


def cpu_shares(cpu_milli: int) -> int:
    """Where more CPUs were given away than there are, everybody gets as much less of them."""
    return max(cpu_milli * 1024 // 1000, 2)


def _routes() -> list[IPv4Network]:
    """What this host routes somewhere already."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        words = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(words[i]), "little") for i in (1, 7))
        if mask:
            found.append(IPv4Network((address, mask.bit_count())))
    return found
