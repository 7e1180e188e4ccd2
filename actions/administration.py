"""Users, keypairs, tokens, projects, images and agents."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

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
from actions.views import AgentData, Done, ImageData, KeypairData, ProjectData, UserData
from domain.errors import InvalidRequest, KeypairNotFound, NotFound, PermissionDenied
from domain.ids import AccessKey, AgentId
from domain.options import change_labels
from domain.principal import Role, TokenScope
from repositories import agents as agent_rows
from repositories import drains
from repositories.image import Image

Email = Annotated[str, Field(min_length=3, max_length=254, pattern=r"^[^\s@\x00]+@[^\s@\x00]+$")]
Word = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\w[\w.-]*$")]
PosixId = Annotated[int, Field(ge=1, lt=2**31)]
ImageName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[\w][\w./:@-]*$")]


def hash_secret(secret: str) -> bytes:
    """Of 32 random bytes: nothing to guess, so a fast hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserResult(Result):
    user: UserData


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPage(Result):
    items: list[UserData]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAmI(Result):
    user: UserData
    access_key: AccessKey
    role: Role
    domain: str
    projects: tuple[str, ...]


@action(Rules(allow=anyone, effect=Effect.READ))
class WhoAmIAction(ScopeAction[Reading, WhoAmI]):
    """Who the credential belongs to."""

    async def run(self, call: Reading, /) -> WhoAmI:
        user = UserData(**await call.db.identity.user(str(call.by.user_id)))
        return WhoAmI(
            user=user,
            access_key=call.by.access_key,
            role=call.by.role,
            domain=call.by.domain,
            projects=call.by.projects,
        )


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class CreateUserAction(ScopeAction[Work, UserResult]):
    """Add a user, who becomes a member of the domain's default project. A keypair is made separately."""

    email: Email
    username: Word | None = None
    role: Role = Role.USER
    domain: str = "default"

    def target(self) -> str:
        return self.email

    async def run(self, call: Work, /) -> UserResult:
        user = await call.db.identity.add_user(
            call.new_id(),
            email=self.email,
            username=self.username or self.email.split("@")[0][:64],
            domain=self.domain,
            role=self.role,
        )
        return UserResult(user=UserData(**user))


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class ListUsersAction(ScopeAction[Reading, UserPage]):
    """All users, by e-mail address."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, /) -> UserPage:
        found = await call.db.identity.users(limit=self.limit, after=self.cursor)
        items = [UserData(**row) for row in found]
        return UserPage(items=items, next_cursor=items[-1].email if len(items) == self.limit else None)


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class GetUserAction(ScopeAction[Reading, UserResult]):
    """One user, by e-mail address or id."""

    user: str

    async def run(self, call: Reading, /) -> UserResult:
        return UserResult(user=UserData(**await call.db.identity.user(self.user)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyUserAction(ScopeAction[Work, UserResult]):
    """Change a user's name or role, or close and open the account; a closed one is locked out within a second."""

    user: str
    username: Word | None = None
    role: Role | None = None
    active: bool | None = None
    uid: PosixId | None = None  #: of containers and volumes from now on, for homes on NFS
    gid: PosixId | None = None

    def target(self) -> str:
        return self.user

    async def run(self, call: Work, /) -> UserResult:
        user = await call.db.identity.user(self.user)
        if user["id"] == call.by.user_id and (self.active is False or self.role not in (None, call.by.role)):
            raise PermissionDenied("You cannot take your own administration away; let another administrator do it.")
        changes = {
            "username": self.username,
            "role": self.role,
            "active": self.active,
            "uid": self.uid,
            "gid": self.gid,
        }
        call.announce("identity")
        return UserResult(user=UserData(**await call.db.identity.edit_user(user["id"], changes)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class DeleteUserAction(ScopeAction[Work, Done]):
    """Remove a user who has no sessions on record, with all keypairs; otherwise close the account."""

    user: str

    def target(self) -> str:
        return self.user

    async def run(self, call: Work, /) -> Done:
        user = await call.db.identity.user(self.user)
        if user["id"] == call.by.user_id:
            raise PermissionDenied("You cannot remove yourself.")
        await call.db.policies.forget(("user", str(user["id"])))
        await call.db.identity.remove_user(user["id"])
        call.announce("identity")
        return Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairResult(Result):
    keypair: KeypairData


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairPage(Result):
    items: list[KeypairData]
    next_cursor: str | None = None


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret_key"})))
class CreateKeypairAction(ScopeAction[Work, KeypairResult]):
    """Make a keypair for oneself, or as an administrator for another. The secret is shown in this answer only."""

    user: str | None = None

    async def run(self, call: Work, /) -> KeypairResult:
        user = await call.db.identity.user(self.user or str(call.by.user_id))
        if user["id"] != call.by.user_id and not call.by.is_admin:
            raise PermissionDenied("Only administrators make keypairs for others.")
        access_key, secret_key = AccessKey(f"MO{secrets.token_hex(9).upper()}"), secrets.token_urlsafe(32)
        row = await call.db.identity.add_keypair(access_key, hash_secret(secret_key), user["id"])
        return KeypairResult(keypair=KeypairData(**row, secret_key=secret_key))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListKeypairsAction(ScopeAction[Reading, KeypairPage]):
    """One's own keypairs; for administrators those of everybody, or of one user."""

    user: str | None = None

    async def run(self, call: Reading, /) -> KeypairPage:
        user_id: UUID | None = call.by.user_id
        if call.by.sees_all:
            user_id = (await call.db.identity.user(self.user))["id"] if self.user else None
        elif self.user is not None:
            raise PermissionDenied("Only administrators see the keypairs of others.")
        return KeypairPage(items=[KeypairData(**row) for row in await call.db.identity.keypairs(user_id=user_id)])


async def _own_keypair(call: Work, access_key: str) -> None:
    mine = {row["access_key"] for row in await call.db.identity.keypairs(user_id=call.by.user_id)}
    if access_key not in mine and not call.by.is_admin:
        raise KeypairNotFound(access_key=access_key)


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class ModifyKeypairAction(ScopeAction[Work, KeypairResult]):
    """Disable or enable a keypair; a disabled one is refused within a second."""

    keypair: str
    active: bool

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> KeypairResult:
        await _own_keypair(call, self.keypair)
        call.announce("identity")
        return KeypairResult(
            keypair=KeypairData(**await call.db.identity.set_keypair_active(self.keypair, self.active))
        )


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class DeleteKeypairAction(ScopeAction[Work, Done]):
    """Remove a keypair for good."""

    keypair: str

    def target(self) -> str:
        return self.keypair

    async def run(self, call: Work, /) -> Done:
        await _own_keypair(call, self.keypair)
        await call.db.policies.forget(("keypair", self.keypair))
        await call.db.identity.remove_keypair(self.keypair)
        call.announce("identity")
        return Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenData:
    id: UUID
    name: str
    access_key: str
    expires_at: datetime
    created_at: datetime
    secret_token: str | None = None  #: only in the answer to its creation


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResult(Result):
    token: TokenData


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage(Result):
    items: list[TokenData]
    next_cursor: str | None = None


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret_token"})))
class CreateTokenAction(ScopeAction[Work, TokenResult]):
    """Make a token that stands for the keypair it is made with, until it expires. It is shown in this answer only."""

    token_name: Word = "token"  # noqa: S105  # a name, not a secret
    ttl_seconds: Annotated[float, Field(ge=60, le=366 * 86400)] = 30 * 86400.0

    async def run(self, call: Work, /) -> TokenResult:
        token, token_id = f"mot_{secrets.token_urlsafe(32)}", call.new_id()
        expires_at = call.now + timedelta(seconds=self.ttl_seconds)
        await call.db.identity.add_token(
            token_id,
            token_hash=hash_secret(token),
            access_key=call.by.access_key,
            name=self.token_name,
            expires_at=expires_at,
        )
        data = TokenData(
            id=token_id,
            name=self.token_name,
            access_key=call.by.access_key,
            expires_at=expires_at,
            created_at=call.now,
            secret_token=token,
        )
        return TokenResult(token=data)


@action(Rules(allow=anyone, effect=Effect.READ))
class ListTokensAction(ScopeAction[Reading, TokenPage]):
    """One's own tokens."""

    async def run(self, call: Reading, /) -> TokenPage:
        return TokenPage(items=[TokenData(**row) for row in await call.db.identity.tokens(call.by.user_id)])


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class DeleteTokenAction(ScopeAction[Work, Done]):
    """Revoke a token; it is refused within a second."""

    token_id: UUID

    async def run(self, call: Work, /) -> Done:
        user_id = None if call.by.is_admin else call.by.user_id
        if not await call.db.identity.remove_token(self.token_id, user_id=user_id):
            raise NotFound("There is no such token, or it is not yours.")
        call.announce("identity")
        return Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectResult(Result):
    project: ProjectData


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectPage(Result):
    items: list[ProjectData]
    next_cursor: str | None = None


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class CreateProjectAction(ScopeAction[Work, ProjectResult]):
    """Add a project, in which its members create sessions."""

    project: Word
    domain: str = "default"
    members: list[str] = field(default_factory=list)

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> ProjectResult:
        row = await call.db.identity.add_project(
            call.new_id(), name=self.project, domain=self.domain, members=self.members
        )
        call.announce("identity")
        return ProjectResult(project=ProjectData(**row))


@action(Rules(allow=anyone, effect=Effect.READ))
class ListProjectsAction(ScopeAction[Reading, ProjectPage]):
    """The projects one is a member of; for administrators all."""

    async def run(self, call: Reading, /) -> ProjectPage:
        rows = await call.db.identity.projects(domain=None if call.by.sees_all else call.by.domain)
        mine = [row for row in rows if call.by.sees_all or row["name"] in call.by.projects]
        return ProjectPage(items=[ProjectData(**row) for row in mine])


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class ModifyProjectAction(ScopeAction[Work, ProjectResult]):
    """Let users join or leave a project."""

    project: str
    domain: str = "default"
    add_members: list[str] = field(default_factory=list)
    remove_members: list[str] = field(default_factory=list)

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> ProjectResult:
        row = await call.db.identity.edit_project(
            self.project, domain=self.domain, add=self.add_members, remove=self.remove_members
        )
        call.announce("identity")
        return ProjectResult(project=ProjectData(**row))


@action(Rules(allow=superadmin, effect=Effect.DATABASE))
class DeleteProjectAction(ScopeAction[Work, Done]):
    """Remove a project that no session on record belongs to."""

    project: str
    domain: str = "default"

    def target(self) -> str:
        return self.project

    async def run(self, call: Work, /) -> Done:
        policies = call.db.policies
        await policies.forget(await policies.scope("project", self.project, domain=self.domain))
        await call.db.identity.remove_project(self.project, domain=self.domain)
        call.announce("identity")
        return Done()


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
