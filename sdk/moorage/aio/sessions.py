"""Sessions: asking for one, and everything that can be done with it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from moorage import _wire
from moorage._errors import MoorageError, WaitTimeout
from moorage._models import Completions, Delivery, Explanation, HistoryEntry, SessionInfo, TransitOutcome
from moorage.aio import _io
from moorage.aio._transport import Transport, decoded
from moorage.aio.batch import SessionBatch, dependencies, moment
from moorage.aio.batch import Sessions as DependsOn
from moorage.aio.calls import Calls, CallsApps
from moorage.aio.executions import Commands, Executions, RunsCode
from moorage.aio.files import Files
from moorage.aio.kernels import SessionKernels
from moorage.aio.reports import SessionReports, _time
from moorage.aio.services import Services
from moorage.aio.snapshots import SessionSnapshots
from moorage.aio.ssh import SessionSsh
from moorage.aio.state import State
from moorage.aio.terminals import Ptys
from moorage.errors import SessionEnded, SessionNotFound

FINAL = frozenset({"TERMINATED", "CANCELLED", "ERROR"})
READY = frozenset({"RUNNING", "RUNNING_DEGRADED"})
#: The server is asked to hold an answer for so long; longer waits are several requests.
HOLD_SECONDS = 20.0
#: A log cannot be taken up exactly where it broke, so its silence is borne.
LOG_SILENCE_SECONDS = 86400.0


class Session(RunsCode, CallsApps, SessionReports, SessionKernels, SessionBatch, SessionSnapshots, SessionSsh):
    """A session. As a context manager it is destroyed on exit.

    What it says of itself (`status`, `info`) is what the server said last; `refresh()` asks again.
    """

    def __init__(self, transport: Transport, info: SessionInfo, owner: Mapping[str, str] | None = None) -> None:
        self._transport = transport
        self._owner = dict(owner or {})
        self._base = _wire.path("sessions", info.id)
        self._etag: str | None = None
        #: everything the server said last
        self.info = info
        #: whether the call that gave it made it, and did not find it
        self.created = False
        self.executions = Executions(transport, self._base, self._owner)
        self.commands = Commands(self.executions)
        self.calls = Calls(transport, self._base, self._owner)
        self.files = Files(transport, self._base, self._owner)
        self.pty = Ptys(transport, self._base, self._owner)
        self.services = Services(transport, self._base, self._owner)
        self.state = State(transport, self._base, self._owner)

    def __repr__(self) -> str:
        return f"<Session {self.name!r} {self.status} {self.id}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def status(self) -> str:
        return self.info.status

    @property
    def context(self) -> Mapping[str, Any]:
        """Facts about the session: session_id, session_name, image, attempt, slots. Changing them changes nothing."""
        said = self.info
        facts = {"session_id": said.id, "session_name": said.name, "image": said.image, "attempt": said.attempt}
        return {**facts, "slots": dict(said.requested_slots or {})}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.destroy()
        except SessionNotFound:
            pass
        except MoorageError as problem:
            if error is None:
                raise
            error.add_note(f"The session {self.name} could not be destroyed: {problem}")

    async def refresh(self) -> Self:
        """Ask the server how it stands now."""
        headers = {"If-None-Match": self._etag} if self._etag else None
        answer = await self._transport.request("GET", self._base, params=self._owner, headers=headers)
        if answer.status_code != 304:
            self._take(answer)
        return self

    async def wait_until(self, *statuses: str, timeout: float | None = None) -> Self:
        """Wait for one of `statuses` (by default RUNNING).

        Raises `SessionEnded` when it ends in another status instead, and `WaitTimeout` when time is up.
        """
        wanted = frozenset(status.upper() for status in statuses) or READY
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while True:
            await self.refresh()
            if self.status in wanted:
                return self
            if self.status in FINAL:
                raise _ended(self.info)
            if deadline is not None and time.monotonic() + pause > deadline:
                hoped = " or ".join(sorted(frozenset(statuses) or {"RUNNING"}))
                raise WaitTimeout(f"The session {self.name} is {self.status}, not {hoped}, after {timeout:g} seconds.")
            await _io.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def wait_ready(self, wait: bool | float = True) -> Self:
        """Wait until it can be used (a batch session: until it runs, or is over already), or so many seconds."""
        if wait is False or self.status in READY:
            return self
        if self.status == "TERMINATED" and self.info.session_type == "batch":
            return self  # it was over before anybody looked
        if self.status in FINAL:
            raise _ended(self.info)
        wanted = READY | {"TERMINATED"} if self.info.session_type == "batch" else READY
        return await self.wait_until(*wanted, timeout=None if wait is True else float(wait))

    async def complete(
        self, code: str, *, row: int | None = None, col: int | None = None, post: str = "", kernel: str | None = None
    ) -> Completions:
        """What could stand at the cursor, by default at the end of `code`; `post` is what follows the cursor's line."""
        lines = code.split("\n")
        row = len(lines) - 1 if row is None else row
        line = lines[row] if 0 <= row < len(lines) else ""
        col = len(line) if col is None else col
        fields = _wire.body(code=code, row=row, col=col, line=line, post=post, kernel=kernel)
        return Completions.from_json(decoded(await self._post("complete", fields)))

    async def interrupt(self, run_id: str | None = None, *, kernel: str | None = None) -> bool:
        """As Ctrl-C would, to what runs now or to one execution; whether there was something to interrupt."""
        asked = _wire.body(run_id=run_id, kernel=kernel)
        return bool(decoded(await self._post("interrupt", asked)).get("interrupted"))

    async def rename(self, new_name: str) -> Self:
        """Give it another name."""
        answer = await self._post("rename", {"new_name": new_name})
        return self._take(answer) if _is_session(answer) else await self.refresh()

    async def modify(
        self,
        *,
        name: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        tag: str | None = None,
        cluster_size: int | None = None,
        labels: Mapping[str, str | None] | None = None,
        idle_timeout: float | None = None,
        callback_url: str | None = None,
        cpu: float | str | None = None,
        mem: int | str | None = None,
        gpu: int | None = None,
        gpu_mem: int | str | None = None,
        resources: Mapping[str, float | str] | None = None,
        if_unchanged: bool = False,
    ) -> Self:
        """Change some of its settings; with `if_unchanged` only when nobody changed it since it was read here.

        `cluster_size` is that of a running cluster: workers come or go, those that have ended are replaced. A label of
        None goes, others stay; an `idle_timeout` of 0 and an empty `callback_url` stand for none. `cpu` and `mem` of a
        running session change at once, as far as its host has room; `gpu` and `gpu_mem` only while it waits.
        """
        slots = _wire.slots(cpu=cpu, mem=mem, gpu=gpu, **{"gpu-mem": gpu_mem}, **(resources or {}))
        headers = {"If-Match": self._etag or f'"{self.info.version}"'} if if_unchanged else None
        fields = _wire.body(
            name=name,
            priority=priority,
            timeout=timeout,
            tag=tag,
            cluster_size=cluster_size,
            labels=None if labels is None else dict(labels),
            idle_timeout=idle_timeout,
            callback_url=callback_url,
            resource_slots=slots or None,
        )
        answer = await self._transport.request("PATCH", self._base, params=self._owner, json=fields, headers=headers)
        return self._take(answer)

    async def restart(self, *, wait: bool | float = True) -> Self:
        """New containers, same name and files; of an ended session, a new attempt. Waits for RUNNING."""
        hold = _hold(wait)
        params = {**self._owner, **_wire.query(wait=hold)}
        address = f"{self._base}/restart"
        self._take(await self._transport.request("POST", address, params=params, json={}, hold=hold or 0))
        return await self.wait_ready(wait)

    async def destroy(self, *, forced: bool = False, recursive: bool = False, wait: bool | float = True) -> Self:
        """End it and free what it holds; of an ended session, nothing happens. `forced` does not wait for its host.

        Waits until it is over, unless `wait` is false or so many seconds.
        """
        deadline = _deadline(wait)
        hold = _hold(wait)
        params = {**self._owner, **_wire.query(forced=forced or None, recursive=recursive or None, wait=hold)}
        self._take(await self._transport.request("DELETE", self._base, params=params, hold=hold or 0))
        if wait is not False and self.status not in FINAL:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            await self.wait_until(*FINAL, timeout=left)
        return self

    async def history(self) -> list[HistoryEntry]:
        """Every change of its status, oldest first."""
        answer = await self._transport.get(f"{self._base}/status-history", **self._owner)
        return [HistoryEntry.from_json(entry) for entry in answer["history"]]

    async def explain(
        self, *, search: bool = True, host_limit: int | None = None, host_offset: int | None = None
    ) -> Explanation:
        """Why it waits, and what it would start with; or why it runs where it does, or has ended.

        Without `search`, only why it waits. `per_host` begins at `host_offset` and holds `host_limit` hosts (by default
        100), of `hosts_total`.
        """
        params = {**self._owner, **_wire.query(search=search, host_limit=host_limit, host_offset=host_offset)}
        return Explanation.from_json(await self._transport.get(f"{self._base}/explain", **params))

    async def logs(
        self, *, kernel: str | None = None, tail: int | None = None, since: datetime | str | None = None
    ) -> str:
        """What its container wrote, the last `tail` lines of it, or since a time; also after its end."""
        params = {**self._owner, **_wire.query(kernel=kernel, tail=tail, since=_time(since))}
        return (await self._transport.request("GET", f"{self._base}/logs", params=params)).text

    async def follow_logs(
        self, *, kernel: str | None = None, tail: int | None = None, since: datetime | str | None = None
    ) -> AsyncGenerator[str]:
        """What its container wrote and goes on writing, until it ends."""
        params = {**self._owner, **_wire.query(kernel=kernel, tail=tail, since=_time(since), follow=True)}
        address = f"{self._base}/logs"
        async with self._transport.stream("GET", address, params=params, read_seconds=LOG_SILENCE_SECONDS) as response:
            async for text in response.aiter_text():
                yield text

    async def deliveries(self, *, limit: int | None = None) -> list[Delivery]:
        """What its callback_url was sent, the newest first, and what the receiver said."""
        pages = self._transport.pages(f"{self._base}/deliveries", **self._owner, limit=limit)
        return [Delivery.from_json(item) async for item in pages]

    async def keep_alive(self) -> Self:
        """Let its idle time begin anew, as a call or a run would."""
        return self._take(await self._post("keepalive", {}))

    async def check_status(self) -> TransitOutcome:
        """Compare its status with what its hosts say, and correct it."""
        fields = {"session_ids": [self.id]}
        address = _wire.path("sessions", "transit")
        answer = decoded(await self._transport.request("POST", address, params=self._owner, json=fields))
        await self.refresh()
        return TransitOutcome.from_json(answer["outcomes"][0])

    async def _post(self, verb: str, fields: Mapping[str, Any]) -> httpx.Response:
        return await self._transport.request("POST", f"{self._base}/{verb}", params=self._owner, json=fields)

    async def _abandon(self) -> None:
        """Nobody holds it: whoever asked has got an exception instead."""
        if self.status in FINAL:
            return
        with suppress(MoorageError):  # then its `max_wait` or lifetime ends it
            await self.destroy(wait=False)

    def _take(self, answer: httpx.Response) -> Self:
        self.info = SessionInfo.from_json(decoded(answer))
        self._etag = answer.headers.get("etag")
        return self


class Sessions:
    """`client.sessions`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @_io.opening
    async def create(
        self,
        name: str | None = None,
        *,
        image: str | None = None,
        app: str | None = None,
        cpu: float | str | None = None,
        mem: int | str | None = None,
        gpu: float | str | None = None,
        gpu_mem: int | str | None = None,
        gpu_model: str | None = None,
        resources: Mapping[str, float | str] | None = None,
        timeout: float | None = None,
        session_type: str | None = None,
        cluster_mode: str | None = None,
        cluster_size: int | None = None,
        architecture: str | None = None,
        bootstrap_script: str | None = None,
        bootstrap_required: bool | None = None,
        startup_command: str | None = None,
        tag: str | None = None,
        environ: Mapping[str, str] | None = None,
        shm_size: int | str | None = None,
        priority: int | None = None,
        max_wait: float | None = None,
        project: str | None = None,
        reuse: bool = False,
        starts_at: datetime | str | None = None,
        depends_on: DependsOn = (),
        depends_on_any: DependsOn = (),
        batch_timeout: float | None = None,
        max_retries: int | None = None,
        retry_delay: float | None = None,
        outputs: Iterable[str] | None = None,
        mounts: Iterable[Mapping[str, Any] | str] | None = None,
        serves: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        preopen_ports: Iterable[int] | None = None,
        callback_url: str | None = None,
        idle_timeout: float | None = None,
        resource_group: str | None = None,
        agent: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        apart_from: Mapping[str, str] | None = None,
        on_agent_lost: str | None = None,
        agent_lease: float | None = None,
        wait: bool | float = True,
        owner: str | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
        _cluster: Mapping[str, Any] | None = None,
        _template: Mapping[str, Any] | None = None,
    ) -> Session:
        """Ask for a session, and wait until it is RUNNING.

        With `app` ("NAME" or "NAME@2") it answers calls, and ends after `idle_timeout` seconds without one; what else is left
        out is as the app says. Other sessions get the image "python", one CPU and 1 GiB.
        `resource_group`, `host_labels` (that its host has), `apart_from` (labels of sessions of yours that are not to be on
        its host) and `agent` (for administrators) say where it may run. `on_agent_lost="replace"` lets it begin anew elsewhere
        once its host has been silent for `agent_lease` seconds (60), after which that host ends it by itself.
        `gpu` is a number of whole devices, with their model "h100:2", or "h100" for one; `gpu_mem` ("20g") asks for a share
        of one device instead. `mem` in MiB, or text such as "4g"; `timeout` is its lifetime in seconds from RUNNING; `max_wait` how long it
        may queue. `mounts`: volumes, each a name or {volume, path, subpath, read_only}. `wait=False` returns at once, a
        number waits so many seconds. Raises `SessionEnded` when it ended before it ran, with the reason, and
        `WaitTimeout`; a session that was made and then not waited for is destroyed, so that an exception leaves none
        behind. With `dry_run` nothing is made: the answer is an `Explanation` (see the method of this name).
        """
        number, model = _wire.gpus(gpu)
        if app is None and _template is None:
            image, cpu, mem = image or "python", 1 if cpu is None else cpu, "1g" if mem is None else mem
        fields = _wire.body(
            name=name,
            image=image,
            app=app,
            resource_slots=_wire.slots(cpu=cpu, mem=mem, gpu=number, **{"gpu-mem": gpu_mem}, **(resources or {})),
            gpu_model=gpu_model or model,
            session_type=session_type,
            cluster_mode=cluster_mode,
            cluster_size=cluster_size,
            architecture=architecture,
            bootstrap_script=bootstrap_script,
            bootstrap_required=bootstrap_required,
            startup_command=startup_command,
            tag=tag,
            environ=None if environ is None else dict(environ),
            shm_size=shm_size,
            priority=priority,
            max_wait=max_wait,
            project=project,
            timeout=timeout,
            reuse_if_exists=reuse or None,
            starts_at=moment(starts_at),
            depends_on=dependencies(depends_on, depends_on_any),
            batch_timeout=batch_timeout,
            max_retries=max_retries,
            retry_delay=retry_delay,
            outputs=None if outputs is None else list(outputs),
            mounts=None if mounts is None else [{"volume": m} if isinstance(m, str) else dict(m) for m in mounts],
            serves=None if serves is None else dict(serves),
            labels=None if labels is None else dict(labels),
            preopen_ports=None if preopen_ports is None else list(preopen_ports),
            callback_url=callback_url,
            idle_timeout=idle_timeout,
            resource_group=resource_group,
            agent=agent,
            host_labels=None if host_labels is None else dict(host_labels),
            apart_from=None if apart_from is None else dict(apart_from),
            on_agent_lost=on_agent_lost,
            agent_lease=agent_lease,
        )
        if _template is not None:
            over = {name: value for name, value in fields.items() if value != {}} | dict(_template["overrides"])
            address = _wire.path("sessions", "from-template")
            return await self._asked_for(
                address, {**_template, "overrides": over}, wait, owner, idempotency_key, dry_run
            )
        address = _wire.path("sessions") if _cluster is None else _wire.path("sessions", "cluster")
        return await self._asked_for(address, {**fields, **(_cluster or {})}, wait, owner, idempotency_key, dry_run)

    @_io.opening
    async def create_from_template(
        self,
        template: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Session:
        """Ask for a session as a template describes it, and wait until it is RUNNING.

        `parameters` are the template's own. `settings` are those of `create` and go over what the template says;
        `overrides` are further fields of a creation as the REST API names them, such as a cluster's `workers`.
        """
        asked = _wire.body(
            template=template,
            parameters=dict(parameters or {}),
            template_version=version,
            overrides=dict(overrides or {}),
        )
        nothing: dict[str, Any] = {"image": None, "cpu": None, "mem": None}
        return await self.create(_template=asked, **(nothing | settings))

    async def _asked_for(
        self, address: str, fields: Mapping[str, Any], wait: bool | float, owner: str | None, key: str | None, dry: bool
    ) -> Session:
        owned = _owner(owner)
        if dry:
            asked = {**owned, "dry_run": "true"}
            answer = await self._transport.request("POST", address, params=asked, json=fields)
            found: Any = Explanation.from_json(decoded(answer))
            return found  # type: ignore[no-any-return]  # what `dry_run` stands for
        deadline = _deadline(wait)
        while True:
            hold = _hold(wait)
            answer = await self._transport.request(
                "POST",
                address,
                params={**owned, **_wire.query(wait=hold)},
                json=fields,
                key=key or str(uuid.uuid4()),
                hold=hold or 0,
            )
            session = self._session(answer, owned)
            session.created = answer.status_code == 201
            try:
                return await session.wait_ready(wait)
            except SessionEnded:
                if session.created:
                    raise
                key = None  # it was about to end: its name is free now
                wait = wait if deadline is None else max(0.0, deadline - time.monotonic())
            except BaseException:
                if session.created:
                    await session._abandon()
                raise

    @_io.opening
    async def create_cluster(
        self,
        name: str | None = None,
        *,
        workers: int = 1,
        multi_node: bool = False,
        main: Mapping[str, Any] | None = None,
        worker: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Session:
        """Ask for a session of a main kernel and workers on a network of their own: all of them run, or none.

        `settings` are those of `create`, for every kernel; `main` and `worker` may set `image`, `cpu`, `mem`, `gpu`,
        `gpu_mem`, `resources` and `environ` of their role otherwise; all devices are of one model. Without `multi_node` all
        kernels are on one host.
        """
        shared = {"cpu": 1, "mem": "1g", **settings}
        settings = {**settings, "gpu_model": _one_model(settings, main, worker)}
        roles = {"main": _role(main, shared), "worker": _role(worker, shared)}
        return await self.create(
            name,
            cluster_mode="multi-node" if multi_node else "single-node",
            _cluster={"workers": workers, **{role: fields for role, fields in roles.items() if fields}},
            **settings,
        )

    async def dry_run(
        self, name: str | None = None, *, template: str | None = None, workers: int | None = None, **settings: Any
    ) -> Explanation:
        """What asking for a session would come to, with all of its checks: when it would start, and with what now.

        `settings` are those of `create`; of `create_from_template` with a `template`, of `create_cluster` with `workers`.
        """
        found: Any
        if template is not None:
            found = await self.create_from_template(template, name=name, dry_run=True, **settings)
        elif workers is not None:
            found = await self.create_cluster(name, workers=workers, dry_run=True, **settings)
        else:
            found = await self.create(name, dry_run=True, **settings)
        assert isinstance(found, Explanation)
        return found

    @_io.opening
    async def ensure(self, name: str, **settings: Any) -> Session:
        """The live session of this name; a new one with these settings (those of `create`) if there is none.

        One that is about to end, or ends while it is waited for, is none: its end is waited for, and a new one made.
        Whoever else asks at the same time gets the same one; `created` says who made it.
        """
        return await self.create(name, reuse=True, **settings)

    @_io.opening
    async def get(self, session: str, *, owner: str | None = None) -> Session:
        """A session by its id, or by its name among the live ones; `owner` (an access key) is for administrators."""
        owned = _owner(owner)
        return self._session(await self._transport.request("GET", _wire.path("sessions", session), params=owned), owned)

    def iterate(
        self,
        *,
        status: str | Iterable[str] | None = None,
        name: str | None = None,
        tag: str | None = None,
        project: str | None = None,
        labels: Mapping[str, str | None] | None = None,
        all: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[Session]:
        """Live sessions, newest first, or those of some statuses ("all": of any), fetched as they are looked at.

        `name` is a glob or a prefix; a label of None may have any value; `all` is everybody's, for administrators.
        """
        label = ",".join(key if value is None else f"{key}={value}" for key, value in (labels or {}).items()) or None
        asked = {"name": name, "tag": tag, "project": project, "label": label, "all": all or None}
        statuses = status if status is None or isinstance(status, str) else ",".join(status)
        pages = self._transport.pages(_wire.path("sessions"), limit=limit, status=statuses, **asked)
        return self._sessions(pages, all)

    async def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        name: str | None = None,
        tag: str | None = None,
        project: str | None = None,
        labels: Mapping[str, str | None] | None = None,
        all: bool = False,
        limit: int | None = None,
    ) -> SessionList:
        """The same as a list, all pages of it."""
        found = self.iterate(status=status, name=name, tag=tag, project=project, labels=labels, all=all, limit=limit)
        return [session async for session in found]

    async def match(self, pattern: str) -> SessionList:
        """Sessions whose name matches a glob (`train-*`), or whose name or id begins with the pattern."""
        pages = self._transport.pages(_wire.path("sessions", "match"), pattern=pattern)
        return [session async for session in self._sessions(pages, False)]

    async def check_status(self, session_ids: Iterable[str]) -> Outcomes:
        """Compare the sessions' statuses with what their hosts say, and correct them; one outcome for each."""
        fields = {"session_ids": list(session_ids)}
        answer = decoded(await self._transport.request("POST", _wire.path("sessions", "transit"), json=fields))
        return [TransitOutcome.from_json(outcome) for outcome in answer["outcomes"]]

    async def _sessions(self, items: AsyncIterator[Any], everybodys: bool) -> AsyncGenerator[Session]:
        async for item in items:
            info = SessionInfo.from_json(item)
            yield Session(self._transport, info, _owner(info.access_key) if everybodys else None)

    def _session(self, answer: httpx.Response, owned: Mapping[str, str]) -> Session:
        session = Session(self._transport, SessionInfo.from_json(decoded(answer)), owned)
        session._take(answer)
        return session


def _role(role: Mapping[str, Any] | None, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A role's own settings; amounts that it does not name are those of all."""
    if role is None:
        return {}
    amounts = ("cpu", "mem", "gpu", "gpu_mem")
    known = (*amounts, "resources", "image", "environ")
    if unknown := [name for name in role if name not in known]:
        raise TypeError(f"a role has no {unknown[0]!r}, only {', '.join(known)}")
    wanted = {name: role.get(name, shared.get(name)) for name in amounts}
    if "gpu" in role or "gpu_mem" in role:  # devices are asked for whole, or by a share: the one ends the other
        wanted |= {"gpu": role.get("gpu"), "gpu_mem": role.get("gpu_mem")}
    own = any(name in role for name in (*amounts, "resources"))
    asked = {
        "cpu": wanted["cpu"],
        "mem": wanted["mem"],
        "gpu": _wire.gpus(wanted["gpu"])[0],
        "gpu-mem": wanted["gpu_mem"],
    }
    slots = _wire.slots(**asked, **(role.get("resources", shared.get("resources")) or {})) if own else None
    return _wire.body(image=role.get("image"), environ=role.get("environ"), resource_slots=slots)


def _one_model(*settings: Mapping[str, Any] | None) -> str | None:
    """Of the devices of all kernels. Raises ValueError when they are to be of several models."""
    said = [
        given for one in settings if one for given in (one.get("gpu_model"), _wire.gpus(one.get("gpu"))[1]) if given
    ]
    if len({model.lower() for model in said}) > 1:
        raise ValueError(f"the GPUs of a session are of one model, and not of {' and '.join(dict.fromkeys(said))}")
    return said[0] if said else None


SessionList = list[Session]
Outcomes = list[TransitOutcome]


def _owner(access_key: str | None) -> dict[str, str]:
    return {"owner_access_key": access_key} if access_key else {}


def _hold(wait: bool | float) -> float | None:
    if wait is False:
        return None
    return HOLD_SECONDS if wait is True else min(float(wait), HOLD_SECONDS)


def _deadline(wait: bool | float) -> float | None:
    return None if isinstance(wait, bool) else time.monotonic() + wait


def _ended(info: SessionInfo) -> SessionEnded:
    reason = f": {info.status_reason}" if info.status_reason else ""
    sentence = f"The session {info.name} is {info.status}{reason}".rstrip(".") + "."
    return SessionEnded(sentence, facts={"status": info.status, "status_reason": info.status_reason})


def _is_session(answer: httpx.Response) -> bool:
    found = decoded(answer)
    return isinstance(found, dict) and "status" in found
