"""Images and agents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    Work,
    action,
    any_user,
    anyone,
    superadmin,
    superadmin_or_monitor,
)
from actions.information import TaskData, TaskResult
from actions.views import AgentData, Done, ImageData
from domain.errors import InvalidRequest, PermissionDenied
from domain.ids import AgentId
from domain.options import change_labels
from domain.principal import TokenScope
from repositories import agents as agent_rows
from repositories import drains
from repositories.image import Image

ImageName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[\w][\w./:@-]*$")]


def hash_secret(secret: str) -> bytes:
    """Of 32 random bytes: nothing to guess, so a fast hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult(Result):
    image: ImageData


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePage(Result):
    items: list[ImageData]
    next_cursor: str | None = None


def image_data(image: Image) -> ImageData:
    return ImageData(
        name=image.name,
        architecture=image.architecture,
        aliases=image.aliases,
        labels=image.labels,
        created_at=image.created_at,
        kind=image.kind,
        status=image.status,
        title=image.title,
        owner=image.owner,
        visibility=image.visibility,
        project=image.project,
        agent=image.agent_id,
        session_id=image.session_id,
        size_bytes=image.size_bytes,
        digest=image.digest,
    )


@action(Rules(allow=anyone, effect=Effect.READ))
class ListImagesAction(ScopeAction[Reading, ImagePage]):
    """The images that sessions can be made of, with their aliases."""

    async def run(self, call: Reading, /) -> ImagePage:
        return ImagePage(items=[image_data(image) for image in await call.db.images.all()])


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class RegisterImageAction(ScopeAction[Work, ImageResult]):
    """Let sessions be made of an image, by its name and by aliases."""

    image: ImageName
    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")] = "x86_64"
    aliases: list[ImageName] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False

    def target(self) -> str:
        return self.image

    async def run(self, call: Work, /) -> ImageResult:
        image = await call.db.images.register(
            self.image, architecture=self.architecture, labels=self.labels, aliases=self.aliases, replace=self.replace
        )
        call.announce("images")
        return ImageResult(image=image_data(image))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class AliasImageAction(ScopeAction[Work, ImageResult]):
    """Give an image one more name."""

    image: str
    alias: ImageName

    def target(self) -> str:
        return self.image

    async def run(self, call: Work, /) -> ImageResult:
        image = await call.db.images.resolve(self.image)
        await call.db.images.alias(image.name, self.alias)
        call.announce("images")
        return ImageResult(image=image_data(await call.db.images.resolve(image.name)))


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class ForgetImageAction(ScopeAction[Work, Done]):
    """Let no more sessions be made of an image. A snapshot goes from its host as well; of others, hosts keep their copies."""

    image: str

    def target(self) -> str:
        return self.image

    async def run(self, call: Work, /) -> Done:
        image = await call.db.images.resolve(self.image)
        if not call.by.is_admin and (image.owner_id is None or image.owner_id != call.by.user_id):
            raise PermissionDenied("This image is not yours; its owner or an administrator can remove it.")
        await call.db.images.remove(image.name)
        if image.agent_id is not None:
            arguments = {"image": image.name, "agent": image.agent_id, "job": str(image.task_id)}
            await call.db.tasks.add(
                call.new_id(), action="remove_image", arguments=arguments, user_id=call.by.user_id, session_id=None
            )
            call.announce("tasks")
        call.announce("images")
        return Done()


@action(Rules(allow=superadmin, effect=Effect.DATABASE, background=True))
class PullImageAction(ScopeAction[Work, TaskResult]):
    """Have hosts fetch an image now, in the background; the task tells the progress."""

    image: ImageName
    agent: str | None = None  #: all hosts when left out

    def target(self) -> str:
        return self.image

    async def run(self, call: Work, /) -> TaskResult:
        if self.agent is not None:
            await agent_rows.get_agent(call.db.connection, AgentId(self.agent))
        task = await call.db.tasks.add(
            call.new_id(),
            action="pull_image",
            arguments={"image": self.image, "agent": self.agent},
            user_id=call.by.user_id,
            session_id=None,
        )
        call.announce("tasks")
        return TaskResult(task=TaskData.of(task))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPage(Result):
    items: list[AgentData]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult(Result):
    agent: AgentData


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class ListAgentsAction(ScopeAction[Reading, AgentPage]):
    """The hosts: what each has, how much of it is taken, and when it was last heard of."""

    async def run(self, call: Reading, /) -> AgentPage:
        return AgentPage(items=[AgentData.of(row) for row in await agent_rows.list_agents(call.db.connection)])


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class GetAgentAction(ScopeAction[Reading, AgentResult]):
    """One host."""

    agent: str

    async def run(self, call: Reading, /) -> AgentResult:
        return AgentResult(agent=AgentData.of(await agent_rows.get_agent(call.db.connection, AgentId(self.agent))))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyAgentAction(ScopeAction[Work, AgentResult]):
    """Change a host: whether it takes sessions, its resource group (while nothing is there), labels; the rest stays."""

    agent: str
    schedulable: bool | None = None  #: false: cordoned, true: in use again; what runs there goes on
    resource_group: str | None = None
    labels: Mapping[str, str | None] | None = None  #: those that are named; null takes one away

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> AgentResult:
        connection, agent = call.db.connection, AgentId(self.agent)
        if self.schedulable is None and self.resource_group is None and self.labels is None:
            raise InvalidRequest("Nothing to change was given; name one of schedulable, resource_group, labels.")
        if self.resource_group is not None:
            await agent_rows.assign(connection, agent, self.resource_group)
        if self.schedulable is True:
            for session_id in await drains.uncordon(connection, agent, now=call.now):
                call.announce("sessions", session_id)
        elif self.schedulable is False:
            await drains.cordon(connection, agent, reason=None, now=call.now)
        if self.labels is not None:
            before = (await agent_rows.get_agent(connection, agent))["labels"]
            await agent_rows.set_labels(connection, agent, change_labels(before, self.labels))
        call.announce("agents")
        call.announce("queue")
        return AgentResult(agent=AgentData.of(await agent_rows.get_agent(connection, agent)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class RemoveAgentAction(ScopeAction[Work, Done]):
    """Forget a host on which nothing runs any more; its certificate is refused from then on.

    `lost_for_good` is your word that a lost host will not come back with containers: slots held there are freed.
    """

    agent: str
    lost_for_good: bool = False

    def target(self) -> str:
        return self.agent

    async def run(self, call: Work, /) -> Done:
        await agent_rows.remove(call.db.connection, AgentId(self.agent), now=call.now, lost_for_good=self.lost_for_good)
        call.announce("trust")  # its certificate is nobody's any more
        call.announce("agents")
        return Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken(Result):
    secret: str | None  #: the door makes the whole token of it: address, the certificate authority's hash, and this
    expires_at: datetime


@action(Rules(allow=superadmin, effect=Effect.DATABASE, secrets=frozenset({"secret"})))
class CreateAgentTokenAction(ScopeAction[Work, JoinToken]):
    """Make a token with which one host may join, once ('moorage agent join TOKEN')."""

    ttl_seconds: Annotated[float, Field(ge=60, le=7 * 86400)] = 3600.0

    async def run(self, call: Work, /) -> JoinToken:
        expires_at = call.now + timedelta(seconds=self.ttl_seconds)
        secret = await agent_rows.issue_token(call.db.connection, expires_at=expires_at, now=call.now)
        return JoinToken(secret=secret, expires_at=expires_at)
