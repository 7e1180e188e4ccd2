"""What a client of a mesh may set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Literal

from moorage._errors import NotConfigured
from moorage.mesh._tensors import Limits

if TYPE_CHECKING:
    from moorage.aio import Client

Kind = Literal["auto", "torch", "numpy", "raw"]


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Which nodes there are, and how patient the client is. Times are in seconds.

    The nodes are the replicas of `service` in the Moorage session `session`, reached through `client`, or through one made
    of `endpoint` and the rest, as `moorage.Client` takes them; or the addresses (HOST:PORT) in `initial_peers`.
    """

    session: str | None = None
    service: str = "tensor-stream"
    client: Client | None = None
    endpoint: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    token: str | None = None
    config: str | PathLike[str] | None = None
    initial_peers: Sequence[str] = ()

    connect_timeout: float = 5.0
    request_timeout: float = 180.0  #: between one chunk and the next
    update_period: float = 60.0
    min_backoff: float = 1.0
    max_backoff: float = 60.0
    ban_timeout: float = 15.0  #: doubled with each failure in a row
    max_ban: float = 3600.0
    ping_timeout: float = 2.0
    allowed_servers: Collection[str] | None = None  #: node ids, or names such as worker1
    blocked_servers: Collection[str] | None = None
    tensors: Kind = "auto"  #: as what outputs are given out; auto: as the input was
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.session is None and not self.initial_peers:
            raise NotConfigured("Say whose nodes are meant: session=NAME, or initial_peers=['HOST:PORT', ...].")
