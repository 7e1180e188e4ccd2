"""The client: one server, one caller."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any, Self

from moorage import _wire
from moorage._models import Event, Token, WhoAmI
from moorage._shipped import Work
from moorage.aio._transport import Transport, decoded
from moorage.aio.access import Tokens, Webhooks
from moorage.aio.admin import Agents, Images
from moorage.aio.apps import Apps
from moorage.aio.audit import Audit
from moorage.aio.calls import AllCalls
from moorage.aio.devices import Devices
from moorage.aio.events import server_sent
from moorage.aio.groups import ResourceGroups
from moorage.aio.mapping import Crew, Mapped, Setup
from moorage.aio.people import Domains, Keypairs, Projects, Users
from moorage.aio.quotas import Policies, Quotas
from moorage.aio.reports import ClientReports
from moorage.aio.sessions import Session, Sessions
from moorage.aio.snapshots import Registries
from moorage.aio.ssh import SshKeys
from moorage.aio.tasks import Tasks
from moorage.aio.templates import Templates
from moorage.aio.volumes import Volumes
from moorage.config import load_config

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_RETRY_SECONDS = 30.0


class Client(ClientReports):
    """Talks to a Moorage server.

    Where it is and who is asking: arguments; else MOORAGE_ENDPOINT, MOORAGE_ACCESS_KEY, MOORAGE_SECRET_KEY; else the
    configuration file that `moorage up` writes (MOORAGE_CONFIG, by default ~/.config/moorage/config.toml). Requests
    that met a broken connection or a busy server are repeated for `retry_for` seconds; none takes effect twice.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        fingerprint: str | None = None,
        config: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retry_for: float = DEFAULT_RETRY_SECONDS,
        transport: Any = None,
    ) -> None:
        self.config = load_config(
            endpoint=endpoint,
            access_key=access_key,
            secret_key=secret_key,
            token=token,
            ca=ca,
            fingerprint=fingerprint,
            config=config,
        )
        self._transport = Transport(self.config, timeout=timeout, retry_for=retry_for, transport=transport)
        self.sessions = Sessions(self._transport)
        self.images = Images(self._transport)
        self.registries = Registries(self._transport)
        self.agents = Agents(self._transport)
        self.devices = Devices(self._transport)
        self.audit = Audit(self._transport)
        self.users = Users(self._transport)
        self.keypairs = Keypairs(self._transport)
        self.projects = Projects(self._transport)
        self.domains = Domains(self._transport)
        self.tasks = Tasks(self._transport)
        self.templates = Templates(self._transport)
        self.apps = Apps(self._transport)
        self.calls = AllCalls(self._transport)
        self.quotas = Quotas(self._transport)
        self.policies = Policies(self._transport)
        self.resource_groups = ResourceGroups(self._transport)
        self.tokens = Tokens(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.ssh_keys = SshKeys(self._transport)
        self.volumes = Volumes(self._transport)

    def __repr__(self) -> str:
        return f"Client({self.config.endpoint!r}, access_key={self.config.access_key!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections. Sessions go on."""
        await self._transport.close()

    async def whoami(self) -> WhoAmI:
        """Who the server takes this caller for."""
        return WhoAmI.from_json(await self._transport.get(_wire.path("whoami")))

    async def sign_in(self, email: str, password: str) -> Token:
        """A token for 12 hours, in this answer only: `Client(endpoint, token=...)` uses it. This client goes on as it is."""
        fields = {"email": email, "password": password}
        return Token.from_json(decoded(await self._transport.request("POST", _wire.path("sign-in"), json=fields)))

    async def sign_out(self) -> None:
        """End the sign-in whose token this client sends."""
        await self._transport.request("POST", _wire.path("sign-out"), json={})

    async def events(
        self, *, session: str | None = None, follow: bool = True, after: str | None = None
    ) -> AsyncGenerator[Event]:
        """What happens, as it happens; `after` an event's id, also what has happened since. Resumed by itself.

        With `follow=False`, what has happened so far.
        """
        params = _wire.query(session=session, follow=follow)
        found = server_sent(self._transport, _wire.path("events"), params, after=after, once=not follow)
        async for event_id, name, data in found:
            yield Event.from_json({"id": event_id, "type": name, **data})

    def map(
        self,
        work: Work,
        inputs: Iterable[Any],
        *,
        sessions: int | Iterable[Session] = 4,
        setup: Setup | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> AsyncGenerator[Mapped]:
        """The same work on every input, in several sessions at once; outcomes in the inputs' order, as they are asked for.

        `work`: a function of one argument that stands for itself (it imports what it needs, and uses nothing around
        it), or code that finds `item` and sets `result`. Inputs and values are JSON. `sessions`: how many to make
        (with `settings`, those of `create`), or sessions of yours. `setup`, code or a function of a session, comes
        first in each. `timeout` ends the work on one input. A failure of one input is in its outcome (`error`); what a
        session had not begun when it ended goes to another. Inputs are read no further ahead than is needed; at the
        end, or when the iteration is given up, what still runs is ended, and so are the sessions that were made.
        """
        return Crew(self.sessions, work, inputs, sessions, setup=setup, timeout=timeout, settings=settings).outcomes()
