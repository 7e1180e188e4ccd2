"""A manager's processes: what each role is made of, how it starts and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, TypeVar
from uuid import uuid4

import uvloop

from agent import pki
from agent.hub import AgentHub
from agent.wire import AgentHello, DeviceCheck, DeviceList, Fact, RunDone, Sample, ServiceFact
from domain import crash
from domain.crash import reach
from domain.errors import DatabaseUnavailable, WrongStatus
from domain.ids import AgentId
from manager.bootstrap import bootstrap, join_token
from manager.clock import DatabaseClock
from manager.config import ManagerConfig
from manager.control import Control, ControlSettings
from manager.gateway.authority import Authority
from manager.herald import Herald
from manager.ingest import Ingest
from manager.metrics import Metrics
from manager.refusals import Refusals
from manager.supervisor import supervise
from manager.vault import AuditSeal, Vault
from manager.webhooks import WebhookSettings
from manager.world import World
from repositories import agents as agent_rows
from repositories import trust
from repositories.activity import touch
from repositories.database import Database
from repositories.revision import is_newest
from repositories.upkeep import current_time

T = TypeVar("T")

log = logging.getLogger("moorage.manager")
ROLES: Final = ("api", "control", "proxy", "ssh", "grpc")
_POOL: Final = {"api": 16, "control": 12, "proxy": 4, "ssh": 4, "grpc": 4}
#: A new process waits so long for the agents that are alive to dial it, before it takes requests.
_FIRST_AGENTS_SECONDS: Final = 3.0
#: Of the processes together, after the API was drained.
_GRACE_SECONDS: Final = 20.0
#: Between two looks at which sessions have connections into them.
_USED_SECONDS: Final = 10.0
#: Between two looks at whether the certificates of connected agents still count; a revocation is heard of at once.
_TRUST_SECONDS: Final = 10.0
#: After which it is read again which addresses are closed to sessions.
_ADDRESSES_SECONDS: Final = 30.0


class CannotServe(Exception):
    """The manager cannot start; the message says why, and what to do."""


def run(config: ManagerConfig, role: str | None) -> None:
    """Run one role in this process, or supervise one process of each."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    if not config.database_url:
        raise CannotServe("No database is given: set database_url in manager.toml, or DATABASE_URL.")
    if "grpc" in config.front_names():
        _check_grpc(config)
    if not config.proxy_port:  # both the API, which tells of it, and the proxy must know it
        config = replace(config, proxy_port=_free_port(config.host))
    _migrate(config)
    asyncio.run(bootstrap(config, image=None, now=datetime.now(UTC)))
    if role is not None:
        _serve(config, role)
        return
    _preload()
    asked = {"ssh": bool(config.ssh_port), "grpc": "grpc" in config.front_names()}
    roles = [name for name in ROLES if asked.get(name, True)]
    supervise(
        {name: partial(_serve, config, name) for name in roles}, grace_seconds=_GRACE_SECONDS + config.drain_seconds
    )


def _check_grpc(config: ManagerConfig) -> None:
    if not config.grpc_port:
        raise CannotServe("The gRPC front has no port: set grpc_port in manager.toml, or give --grpc-port.")
    if find_spec("grpc") is None:
        raise CannotServe("The gRPC front needs grpcio: pip install 'moorage-server[grpc]'.")


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


def _migrate(config: ManagerConfig) -> None:
    """In a process of its own, whose memory goes with it; several managers at once wait for each other."""
    if asyncio.run(is_newest(config.database_url)):
        return
    done = subprocess.run(
        [sys.executable, "-m", "repositories.migrate"],
        env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
        input=config.database_url,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotServe(f"The database could not be brought to this version: {last}")


def _preload() -> None:
    """Import before the fork what every role needs, so that the processes share its memory."""
    import manager.rest.app  # noqa: F401


def _serve(config: ManagerConfig, role: str) -> None:
    serve: Mapping[str, Callable[[ManagerConfig, AsyncExitStack], Coroutine[Any, Any, None]]] = {
        "api": _api,
        "control": _control,
        "proxy": _proxy,
        "ssh": _ssh,
        "grpc": _grpc,
    }
    crash.begin(role)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_until_stopped(config, serve[role]))


async def _until_stopped(
    config: ManagerConfig, serve: Callable[[ManagerConfig, AsyncExitStack], Coroutine[Any, Any, None]]
) -> None:
    """Start, wait for SIGTERM, and close in the opposite order."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        await serve(config, stack)
        settle_heap()
        await stop.wait()


def settle_heap() -> None:
    """What is there by now stays: the collector need not look at it again, nor look so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# -- what the roles share ----------------------------------------------------------------------------------------------
async def _open(config: ManagerConfig, role: str, stack: AsyncExitStack) -> tuple[Database, Herald]:
    """Connections to PostgreSQL, which may still be on its way up."""
    database = await _patiently(lambda: Database.connect(config.database_url, max_size=_POOL[role]))
    stack.push_async_callback(database.close)
    herald = Herald(config.listen_url or config.database_url)
    await _patiently(herald.start)
    stack.push_async_callback(herald.close)
    return database, herald


async def _patiently(attempt: Callable[[], Coroutine[Any, Any, T]], seconds: float = 60.0) -> T:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            return await attempt()
        except (DatabaseUnavailable, OSError) as error:
            if loop.time() > until:
                raise
            log.warning("the database does not answer yet: %s", error)
            await asyncio.sleep(0.2)


def _hub(config: ManagerConfig, role: str, callbacks: _Callbacks, port: int, data_port: int = 0) -> AgentHub:
    """The place where agents connect to this process, not opened yet."""
    pki_dir = config.data_dir / "pki"
    return AgentHub(
        uuid4(),
        role,
        tls=pki.server_context(pki_dir),
        ca_dir=pki_dir,
        host=config.agent_host,
        port=port,
        data_port=data_port,
        advertised_host=config.advertised_agent_host or None,
        callbacks=callbacks,
    )


async def _open_to_agents(hub: AgentHub, role: str, database: Database, herald: Herald, stack: AsyncExitStack) -> None:
    """Listen, and say so in the managers table, from which agents learn of it."""
    await hub.start()
    stack.push_async_callback(hub.close)
    await _register(database, hub, role)
    reach(role, "registered")
    async with database.transaction() as connection:
        now = await current_time(connection)
        succeeded = await agent_rows.succeed(connection, hub.manager_id, hub.url, now=now)
    if succeeded:
        for topic in ("dispatch", "tasks", "webhooks"):
            herald.announce(topic)
    herald.announce("managers")
    check = asyncio.Event()
    stack.callback(herald.subscribe("trust", lambda _: check.set()))
    checking = asyncio.create_task(_check_trust(hub, check), name="check trust")
    stack.push_async_callback(_ended, checking)
    announcing = asyncio.create_task(_say_where(database, hub, role), name="say where")
    stack.push_async_callback(_ended, announcing)
    if role != "control":  # whose connections are its own, not a user's
        touching = asyncio.create_task(_say_what_is_used(database, hub), name="say what is used")
        stack.push_async_callback(_ended, touching)


async def _say_what_is_used(database: Database, hub: AgentHub) -> None:
    """A terminal, a notebook or an ssh connection that is open keeps a session from being idle."""
    while True:
        await asyncio.sleep(_USED_SECONDS)
        if used := hub.kernels_in_use():
            try:
                async with database.reader() as connection:
                    await touch(connection, used, now=await current_time(connection))
            except DatabaseUnavailable:
                log.debug("what is used cannot be written at the moment")


async def _check_trust(hub: AgentHub, check: asyncio.Event) -> None:
    """At once when a certificate was taken away; and now and then, should that not have been heard here."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRUST_SECONDS):
                await check.wait()
        check.clear()
        try:
            await hub.check_trust()
        except DatabaseUnavailable:
            log.debug("whose certificates count cannot be read at the moment")


async def _say_where(database: Database, hub: AgentHub, role: str) -> None:
    """Keep this process's row fresh, so that agents dial it and nobody dials what is gone."""
    try:
        while True:
            await asyncio.sleep(5.0)
            try:
                await _register(database, hub, role)
            except DatabaseUnavailable:
                log.debug("the managers table cannot be written at the moment")
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2.0), database.reader() as connection:
                await agent_rows.unregister_manager(connection, hub.manager_id)


async def _register(database: Database, hub: AgentHub, role: str) -> None:
    async with database.reader() as connection:
        await agent_rows.register_manager(connection, hub.manager_id, role=role, agent_url=hub.url)


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _go_on(work: Coroutine[Any, Any, None], name: str, stack: AsyncExitStack) -> None:
    """In the background, for as long as the process. A process whose work has failed ends: the supervisor starts it anew."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("%s has failed; this process ends", name, exc_info=task.exception())
            signal.raise_signal(signal.SIGTERM)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    stack.push_async_callback(_ended, task)


class _Callbacks:
    """What the hub asks and tells; the control role's ingest, when there is one, takes what agents say."""

    def __init__(self, database: Database, herald: Herald) -> None:
        self._database = database
        self._refusals = Refusals(database, herald, clock=lambda: datetime.now(UTC))
        self.ingest: Ingest | None = None
        self._addresses: list[str] = []  #: closed to sessions
        self._addresses_at = float("-inf")

    async def is_known(self, agent_id: AgentId, fingerprint: str) -> bool:
        async with self._database.reader() as connection:
            return await trust.is_known(connection, agent_id, fingerprint, now=datetime.now(UTC))

    async def trusted(self, shown: Sequence[tuple[AgentId, str]]) -> Collection[tuple[AgentId, str]]:
        async with self._database.reader() as connection:
            return await trust.trusted(connection, shown, now=datetime.now(UTC))

    async def renewing(self, agent_id: AgentId, fingerprint: str) -> None:
        async with self._database.transaction() as connection:
            await trust.renewing(connection, agent_id, fingerprint)

    async def refused(self, agent_id: AgentId, action: str, target: str) -> None:
        await self._refusals.record(agent_id, action, target)

    async def enrol(self, secret: str, agent_id: AgentId, fingerprint: str) -> None:
        async with self._database.transaction() as connection:
            now = await current_time(connection)
            await agent_rows.enrol(connection, secret, agent_id, fingerprint, now=now)

    async def managers(self) -> list[dict[str, Any]]:
        async with self._database.reader() as connection:
            rows = await agent_rows.list_managers(connection)
            if (now := time.monotonic()) >= self._addresses_at + _ADDRESSES_SECONDS:
                self._addresses, self._addresses_at = await agent_rows.addresses(connection), now
        said = [row.to_json() for row in rows]
        if said:
            said[0]["closed"] = self._addresses
        return said

    async def on_hello(self, said: AgentHello) -> int | None:
        return await self.ingest.on_hello(said) if self.ingest is not None else None

    async def on_heartbeat(self, agent_id: AgentId) -> None:
        if self.ingest is not None:
            await self.ingest.on_heartbeat(agent_id)

    async def on_facts(self, agent_id: AgentId, facts: Sequence[Fact]) -> None:
        if self.ingest is None:
            raise WrongStatus("Facts are told to a control process.")
        await self.ingest.on_facts(agent_id, facts)

    async def on_progress(self, agent_id: AgentId, said: dict[str, Any]) -> None:
        if self.ingest is not None:
            await self.ingest.on_progress(agent_id, said)

    async def on_services(self, agent_id: AgentId, facts: Sequence[ServiceFact]) -> None:
        if self.ingest is None:
            raise WrongStatus("Services are told of to a control process.")
        await self.ingest.on_services(agent_id, facts)

    async def on_devices(self, agent_id: AgentId, said: DeviceList) -> None:
        if self.ingest is None:
            raise WrongStatus("Devices are told of to a control process.")
        await self.ingest.on_devices(agent_id, said)

    async def on_device_checks(self, agent_id: AgentId, checks: Sequence[DeviceCheck]) -> None:
        if self.ingest is None:
            raise WrongStatus("Checks of devices are told to a control process.")
        await self.ingest.on_device_checks(agent_id, checks)

    async def credentials(self, agent_id: AgentId, kernel_id: str, image: str) -> dict[str, str] | None:
        if self.ingest is None:
            raise WrongStatus("Credentials are asked of a control process.")
        return await self.ingest.credentials(agent_id, kernel_id, image)

    async def on_samples(self, agent_id: AgentId, samples: Sequence[Sample]) -> None:
        if self.ingest is None:
            raise WrongStatus("Samples are told to a control process.")
        await self.ingest.on_samples(agent_id, samples)

    async def on_runs_done(self, agent_id: AgentId, runs: Sequence[RunDone]) -> None:
        if self.ingest is None:
            raise WrongStatus("Finished runs are told to a control process.")
        await self.ingest.on_runs_done(agent_id, runs)


# -- the roles -------------------------------------------------------------------------------------------------------
async def _api(config: ManagerConfig, stack: AsyncExitStack) -> None:
    from manager.compat import mounted
    from manager.rest.app import RestDoor

    metrics = Metrics()
    world = await open_world(config, stack, metrics=metrics, port=config.agent_api_port)
    if config.ssh_port:
        world.service.ssh = Authority.of(config)
    door = RestDoor(world, metrics, join_token=partial(join_token, config))
    door.figures.data_dir = config.data_dir
    if isinstance(world.agents, AgentHub):
        door.figures.disks = world.agents.disks
    door.mount(mounted(door, config))
    tls = _tls(config)
    await door.listen(config.host, config.port, tls=tls)
    stack.push_async_callback(door.close, drain_seconds=float(config.drain_seconds))
    log.info("the API listens at %s", config.endpoint)


def _tls(config: ManagerConfig) -> ssl.SSLContext | None:
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


async def open_world(
    config: ManagerConfig, stack: AsyncExitStack, *, metrics: Metrics | None = None, port: int = 0, role: str = "api"
) -> World:
    """Everything that runs actions in this process, with connections to the agents of its own."""
    database, herald = await _open(config, role, stack)
    data_port = config.agent_data_port if port and role == "api" else 0
    hub = _hub(config, role, _Callbacks(database, herald), port, data_port)
    clock = DatabaseClock(database)
    await clock.step()
    ticking = asyncio.create_task(clock.run(), name="clock")
    stack.push_async_callback(_ended, ticking)
    world = World.build(
        database,
        herald,
        hub,
        observe=(metrics or Metrics()).observe,
        clock=clock,
        proxy_url=config.proxy_endpoint,
        vault=Vault.of(config.data_dir / "pki"),
    )
    world.service.seal = AuditSeal.of(config.data_dir / "pki")
    await _open_to_agents(hub, role, database, herald, stack)
    async with database.reader() as connection:
        known = await agent_rows.list_agents(connection)
    alive = [AgentId(agent["id"]) for agent in known if agent["seen_at"] is not None and not agent["lost"]]
    await hub.wait_until_connected(alive, _FIRST_AGENTS_SECONDS)
    return world


async def _ssh(config: ManagerConfig, stack: AsyncExitStack) -> None:
    """Encryption takes time, so it has a process of its own."""
    from manager.gateway.door import Gateway

    if not config.ssh_port:
        raise CannotServe("The SSH gateway has no port: set ssh_port in manager.toml, or give --ssh-port.")
    world = await open_world(config, stack, port=config.agent_ssh_port, role="ssh")
    gateway = Gateway(world, Authority.of(config))
    port = await gateway.listen(config.ssh_host or config.host, config.ssh_port)
    stack.push_async_callback(gateway.close)
    log.info("the SSH gateway listens on port %d", port)


async def _grpc(config: ManagerConfig, stack: AsyncExitStack) -> None:
    """Messages are large, so they have a process of their own."""
    from manager.compat.grpc import serve

    world = await open_world(config, stack, port=config.agent_grpc_port, role="grpc")
    await serve(world, config, stack)


async def _control(config: ManagerConfig, stack: AsyncExitStack) -> None:
    database, herald = await _open(config, "control", stack)
    callbacks, tell = _Callbacks(database, herald), asyncio.Event()
    hub = _hub(config, "control", callbacks, config.agent_control_port)
    # A new manager process is dialled at once, not at the next heartbeat.
    herald.subscribe("managers", lambda _: tell.set())
    _go_on(_tell_managers(hub, tell), "tell managers", stack)
    settings = ControlSettings(
        cluster_pool=config.cluster_network(), webhooks=WebhookSettings(egress=config.callback_egress())
    )
    vault, seal = Vault.of(config.data_dir / "pki"), AuditSeal.of(config.data_dir / "pki")
    control = Control(database, herald, hub, manager_id=hub.manager_id, settings=settings, vault=vault, seal=seal)
    callbacks.ingest = control.ingest
    _go_on(control.run(), "control", stack)
    await _open_to_agents(hub, "control", database, herald, stack)


async def _tell_managers(hub: AgentHub, tell: asyncio.Event) -> None:
    while True:
        await tell.wait()
        tell.clear()
        try:
            await hub.tell_managers()
        except DatabaseUnavailable:
            log.debug("the list of managers cannot be read at the moment; heartbeats carry it later")


async def _proxy(config: ManagerConfig, stack: AsyncExitStack) -> None:
    from manager.proxy import serve

    database, herald = await _open(config, "proxy", stack)
    hub = _hub(config, "proxy", _Callbacks(database, herald), config.agent_proxy_port)
    await _open_to_agents(hub, "proxy", database, herald, stack)
    await serve(database, herald, hub, config, _tls(config), stack)
