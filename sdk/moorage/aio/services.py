"""Services of sessions: started, opened, listed, shut down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moorage import _wire
from moorage._models import PortPass, ServiceInfo
from moorage.aio._transport import Transport, decoded


class Service:
    """One service; `info` is what the server said last."""

    def __init__(self, services: Services, info: ServiceInfo, url: str) -> None:
        self._services = services
        self.info = info
        #: opens the service in a browser; good for one use within five minutes, `open()` gets another
        self.url = url

    def __repr__(self) -> str:
        return f"<Service {self.name!r} {self.health}>"

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def health(self) -> str:
        return self.info.health

    async def open(self) -> str:
        """A new address with a ticket in it."""
        self.url = (await self._services.open(self.name)).url
        return self.url

    async def stop(self, *, drain: float = 0.0) -> None:
        await self._services.stop(self.name, drain=drain)


class Services:
    """`session.services`"""

    def __init__(self, transport: Transport, base: str, owner: Mapping[str, str]) -> None:
        self._transport = transport
        self._base = base
        self._owner = owner

    async def start(
        self,
        name: str,
        *,
        kind: str | None = None,
        port: int | None = None,
        command: Sequence[str] | None = None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        path: str | None = None,
        protocol: str | None = None,
        keep_prefix: bool | None = None,
        kernels: str = "main",
        ready_timeout: float | None = None,
        most_restarts: int | None = None,
    ) -> Service:
        """Start a service and wait until it answers: `jupyter`, `tensorboard`, one of the image, or any command or port."""
        fields = _wire.body(
            kind=kind,
            port=port,
            command=list(command) if command is not None else None,
            arguments=list(arguments) or None,
            environ=dict(environ) if environ else None,
            path=path,
            protocol=protocol,
            keep_prefix=keep_prefix,
            kernels=kernels,
            ready_timeout=ready_timeout,
            most_restarts=most_restarts,
        )
        return self._service(await self._post(name, "", fields, hold=(ready_timeout or 60.0) + 15.0))

    async def open(self, name: str) -> Service:
        """A running service, with a new address."""
        return self._service(await self._post(name, "/ticket", {}))

    async def list(self) -> ServiceList:
        answer = await self._transport.get(f"{self._base}/services", **self._owner)
        return [ServiceInfo.from_json(item) for item in answer["items"]]

    async def stop(self, name: str, *, drain: float = 0.0) -> None:
        """Shut it down; what is under way has `drain` seconds."""
        params = {**self._owner, **({"drain_seconds": str(drain)} if drain else {})}
        await self._transport.request("DELETE", self._path(name), params=params, hold=drain)

    async def direct_access(self, *, kernel: str | None = None, read_only: bool = False) -> dict[str, Any]:
        """The addresses of the session's services, of its SSH access, and of a kernel's files on the host itself:
        `services`, `ssh`, `kernels`, `direct` (url, token, certificate, ..., for five minutes; or `no_direct` says why not).
        """
        asked = {**({"kernel": kernel} if kernel else {}), **({"read_only": "true"} if read_only else {})}
        return dict(await self._transport.get(f"{self._base}/direct-access", **self._owner, **asked))

    async def port_pass(self, port: int, *, kernel: str | None = None) -> PortPass:
        """What connects to any port of a kernel through the proxy; `moorage port-forward` does so."""
        path = f"{self._base}/ports/{port}/pass"
        fields = _wire.body(kernel=kernel)
        answer = await self._transport.request("POST", path, json=fields, params=self._owner)
        return PortPass.from_json(decoded(answer))

    async def _post(self, name: str, more: str, fields: object, *, hold: float = 0.0) -> object:
        path = f"{self._path(name)}{more}"
        return decoded(await self._transport.request("POST", path, json=fields, params=self._owner, hold=hold))

    def _path(self, name: str) -> str:
        return f"{self._base}/services/{_wire.segment(name)}"

    def _service(self, answer: object) -> Service:
        assert isinstance(answer, dict)
        return Service(self, ServiceInfo.from_json(answer["service"]), str(answer["wsproxy_addr"]))


ServiceList = list[ServiceInfo]
