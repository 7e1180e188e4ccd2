"""The agent's process: everything of one host, put together and kept running."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from agent import loops, pki
from agent.cluster import Networks
from agent.config import AgentConfig, ConfigError
from agent.containers import Containers, EngineError
from agent.firewall import Firewall
from agent.gpus import Gpus
from agent.host import Host
from agent.kernel import Defaults
from agent.kernels import Kernels
from agent.lease import Lease
from agent.link import Links
from agent.renewal import Renewal
from agent.runtime import ensure_runtime
from agent.store import Store
from agent.volumes import Volumes
from agent.vxlan import own_address
from domain import crash

log = logging.getLogger("moorage.agent")
_ENGINE_RETRY_SECONDS: Final = 2.0


async def run_agent(config: AgentConfig) -> None:
    """Serve until SIGTERM or SIGINT. Sessions go on without us, and are found again at the next start."""
    crash.begin("agent")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with _alone(config.data_dir):
        async with serving(config):
            log.info("agent %s serves", config.agent_id)
            gc.collect()
            gc.freeze()  # what is there by now stays: the collector need not look at it again, nor look so often
            gc.set_threshold(20_000, 20, 20)
            await stopping.wait()
    log.info("agent %s ends; its sessions go on", config.agent_id)


@contextlib.asynccontextmanager
async def serving(config: AgentConfig) -> AsyncIterator[Kernels]:
    """Everything is found again, and managers are dialled, as long as the block lasts."""
    store = await Store.open(config.data_dir / "agent.db")
    engine = Containers(
        config.engine or None,
        store.uid,
        config.network or "moorage",
        gpu_runtime=config.gpu_runtime,
        runtime=config.runtime,
        dns=config.dns,
    )
    networks: Networks | None = None
    try:
        tls = pki.client_context(config.data_dir / "pki")
        info = await _open(engine)
        if (trouble := engine.runtime_trouble()) is not None:
            raise ConfigError(trouble)
        if config.scratch == "loop" and (trouble := loops.trouble()) is not None:
            raise ConfigError(f"scratch = 'loop' in agent.toml cannot be had here: {trouble}.")
        runtime = await asyncio.to_thread(ensure_runtime, config.data_dir)
        defaults = Defaults(
            pids=config.pids,
            disk_quota_mib=config.disk_quota_mib,
            disk_reserve_mib=config.disk_reserve_mib,
            own_disks=config.scratch == "loop",
            network=config.network or None,
            mounts=config.mounts,
        )
        volumes = await asyncio.to_thread(Volumes, Path(config.volumes)) if config.volumes else None
        info["fences"] = True  # it ends kernels whose lease is over
        info["volumes"] = volumes.store if volumes is not None else None
        gpus = Gpus(config.gpu_settings(), boot_no=store.boot_no)
        await gpus.open()
        if gpus.facts() and (missing := engine.gpu_trouble()) is not None:
            info["warnings"].append(missing)
        address = config.address or own_address(config.known_managers())
        firewall = Firewall(store.uid, config.data_dir.absolute(), closed=config.closed)
        networks = Networks(engine, address=address, port=config.vxlan_port, firewall=firewall)
        await networks.open()
        if (said := firewall.trouble) is not None:
            log.warning("%s", said)
            info["warnings"].append(said)
        kernels = Kernels(
            store,
            engine,
            config.data_dir,
            runtime,
            defaults=defaults,
            sample_seconds=config.sample_seconds,
            networks=networks,
            lease=Lease(config.data_dir / "lease"),
            volumes=volumes,
            gpus=gpus,
        )
        host = Host(config.agent_id, kernels, tls, resources=config.resources(), info=info, version=_version())
        links = Links(config.known_managers(), tls, host, host.handlers)
        links.disks = partial(disks_of, config.data_dir, str(info.get("root_dir") or ""))
        links.on_urls = lambda urls: config.remember_managers(list(urls))
        links.on_addresses = networks.close_to
        kernels.progress = links.progress
        kernels.credentials = links.credentials
        links.on_answer = kernels.renewed
        try:
            await kernels.recover()
            await gpus.look()  # now it is known which processes are sessions'
            log.info("boot %d of %s: %d kernels known", store.boot_no, config.agent_id, len(kernels.inventory()))
            if config.direct:
                await _serve_directly(host, config, address, kernels.now)
            renewal = Renewal(config.data_dir / "pki", config.agent_id, tls, links)
            async with _in_background(kernels.watch(), links.run(), renewal.run()):
                yield kernels
        finally:
            if host.direct is not None:
                await host.direct.close()
            await host.close()
            await kernels.close()
            if volumes is not None:
                await volumes.close()
    finally:
        with contextlib.suppress(EngineError):
            await (networks.close() if networks is not None else engine.remove_network())
        engine.close()
        await store.close()


async def _serve_directly(host: Host, config: AgentConfig, address: str | None, now: Callable[[], float]) -> None:
    """A host that cannot do this still serves its sessions, and says so to who asks."""
    from agent.direct import DirectFiles

    direct = DirectFiles(host, config.direct, address, config.data_dir / "pki", now)
    try:
        await direct.start()
    except OSError as error:
        log.error("no direct transfers: cannot listen at %s: %s", config.direct, error)
        host.no_direct = "The session's host could not open its listener for direct transfers; its log says why."
        return
    log.info("direct transfers at %s", direct.url)
    host.direct = direct


async def _open(engine: Containers) -> dict[str, Any]:
    """The engine may come up after us."""
    while True:
        try:
            info = await engine.open()
        except EngineError as error:
            log.error("%s; trying again", error)
            await asyncio.sleep(_ENGINE_RETRY_SECONDS)
            continue
        for warning in info["warnings"]:
            log.warning("%s", warning)
        return info


@contextlib.asynccontextmanager
async def _in_background(*work: Any) -> AsyncIterator[None]:
    """The work goes on beside the block; work that ends by an error ends the block with it."""
    owner = asyncio.current_task()
    assert owner is not None
    failures: list[BaseException] = []

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(error)
            owner.cancel()

    tasks = [asyncio.ensure_future(one) for one in work]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            raise failures[0] from None
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _alone(data_dir: Path) -> Any:
    """One daemon for a data dir."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another agent runs on {data_dir}") from None
        yield


def disks_of(data_dir: Path, engine_dir: str) -> dict[str, tuple[int, int]]:
    """Where files of sessions are, and where the engine keeps images and containers, as far as that is on this host."""
    found = {}
    for name, path in (("sessions", str(data_dir)), ("engine", engine_dir)):
        with contextlib.suppress(OSError):
            if path:
                usage = shutil.disk_usage(path)
                found[name] = (usage.free, usage.total)
    return found


def _version() -> str:
    try:
        return version("moorage-server")
    except PackageNotFoundError:
        return "0"
