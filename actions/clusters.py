"""Sessions of several kernels with roles: made all or none, and grown and shrunk while they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from actions.base import Effect, Rules, Work, action, any_user
from actions.kernels import KernelGroup
from actions.lifecycle import DEFAULT_SLOTS, CreateFromParamsAction, checked_environ
from domain.errors import InvalidConfiguration
from domain.principal import TokenScope
from domain.resources import ResourceSlot
from repositories.clusters import MOST_KERNELS
from repositories.image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRole:
    """What the kernels of one role are to be; what is left out is as the session's."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    resource_slots: ResourceSlot | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class CreateClusterAction(CreateFromParamsAction):
    """Queue a session of a main kernel and workers on a network of their own; they run all at once, or none of them.

    `single-node` puts all of them on one host, `multi-node` on as many as it takes. They find each other as `main1`,
    `worker1`, ...
    """

    workers: Annotated[int, Field(ge=1, lt=MOST_KERNELS)] = 1
    main: KernelRole = field(default_factory=KernelRole)
    worker: KernelRole = field(default_factory=KernelRole)

    async def _groups(self, call: Work, image: Image) -> Sequence[KernelGroup]:
        if self.cluster_size not in (1, self.workers + 1):
            raise InvalidConfiguration(
                f"{self.workers} workers and the main kernel are {self.workers + 1}, not {self.cluster_size}; leave "
                "cluster_size out.",
                field="cluster_size",
            )
        return [
            await self._group(call, "main", 1, self.main, image),
            await self._group(call, "worker", self.workers, self.worker, image),
        ]

    async def _group(self, call: Work, name: str, count: int, role: KernelRole, image: Image) -> KernelGroup:
        environ, _ = checked_environ(role.environ)
        return KernelGroup(
            role=name,
            count=count,
            image=image if role.image is None else await call.db.images.resolve(role.image),
            slots=role.resource_slots or self.resource_slots or DEFAULT_SLOTS,
            environ=environ,
        )
