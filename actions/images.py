"""Images that were made here, where they lie, and the registries that they go to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from actions.administration import ImageResult, image_data
from actions.base import Effect, Reading, Result, Rules, ScopeAction, Work, action, any_user, anyone, superadmin
from actions.information import TaskData, TaskResult
from actions.views import Done
from domain.errors import InvalidRequest, PermissionDenied
from domain.images import check_registry
from domain.principal import TokenScope
from repositories.registry import Registry

Host = Annotated[str, Field(min_length=1, max_length=255)]


@action(Rules(allow=any_user, effect=Effect.DATABASE, scope=TokenScope.SESSIONS))
class ShareImageAction(ScopeAction[Work, ImageResult]):
    """Let one's own image be seen by oneself, by a project, or (administrators) by everybody."""

    image: str
    visibility: Literal["user", "project", "public"]
    project: str | None = None  #: with visibility `project`; one's first when left out

    def target(self) -> str:
        return self.image

    async def run(self, call: Work, /) -> ImageResult:
        image = await call.db.images.resolve(self.image)
        if image.owner_id != call.by.user_id and not call.by.is_admin:
            raise PermissionDenied("This image is not yours; its owner or an administrator can share it.")
        if self.visibility == "public" and not call.by.is_admin:
            raise PermissionDenied("Only administrators let everybody see an image.")
        project_id = None
        if self.visibility == "project":
            project = self.project or next(iter(call.by.projects), None)
            if project is None:
                raise InvalidRequest("Name the project that is to see the image.", field="project")
            member = None if call.by.is_admin else call.by.user_id
            project_id = await call.db.identity.project_id(project, domain=call.by.domain, member=member)
        elif self.project is not None:
            raise InvalidRequest("A project is named for an image that is visible to a project.", field="project")
        await call.db.images.share(image.name, self.visibility, project_id)
        call.announce("images")
        return ImageResult(image=image_data(await call.db.images.resolve(image.name)))


@action(Rules(allow=superadmin, effect=Effect.DATABASE, background=True))
class RescanImagesAction(ScopeAction[Work, TaskResult]):
    """Compare the list of images with what hosts have, or with what a registry has; with `register`, add what is new.

    A snapshot that its host does not have any more is taken off the list.
    """

    registry: Host | None = None  #: look there instead of on the hosts
    register: bool = False

    def target(self) -> str | None:
        return self.registry

    async def run(self, call: Work, /) -> TaskResult:
        registry = None if self.registry is None else check_registry(self.registry)
        return await queue(call, "rescan_images", {"registry": registry, "register": self.register})


@action(Rules(allow=superadmin, effect=Effect.DATABASE, background=True))
class CollectImagesAction(ScopeAction[Work, TaskResult]):
    """Remove snapshots that nobody has used for so many days, and what hosts have of images that are not listed any more."""

    older_than_days: Annotated[float, Field(ge=0, le=36500)] = 30.0
    dry_run: bool = False  #: only say what would go

    async def run(self, call: Work, /) -> TaskResult:
        return await queue(call, "collect_images", {"days": self.older_than_days, "dry_run": self.dry_run})


async def queue(call: Work, name: str, arguments: dict[str, object]) -> TaskResult:
    task = await call.db.tasks.add(
        call.new_id(), action=name, arguments=arguments, user_id=call.by.user_id, session_id=None
    )
    call.announce("tasks")
    return TaskResult(task=TaskData.of(task))


# -- registries --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryData:
    """Credentials for a registry; the password is told to nobody."""

    host: str
    username: str
    common: bool  #: for everybody's images; else for one's own
    changed_at: datetime

    @classmethod
    def of(cls, row: Registry) -> RegistryData:
        return cls(host=row.host, username=row.username, common=row.owner_id is None, changed_at=row.changed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryResult(Result):
    registry: RegistryData


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPage(Result):
    items: list[RegistryData]
    next_cursor: str | None = None


@action(Rules(allow=anyone, effect=Effect.READ))
class ListRegistriesAction(ScopeAction[Reading, RegistryPage]):
    """The registries with credentials: one's own, and those for everybody."""

    async def run(self, call: Reading, /) -> RegistryPage:
        return RegistryPage(items=[RegistryData.of(row) for row in await call.db.registries.all(call.by.user_id)])


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class SetRegistryAction(ScopeAction[Work, RegistryResult]):
    """Keep credentials with which one's images are pushed to and fetched from a registry; `common`: everybody's.

    The password is stored sealed, is shown to nobody, and never gets into a container.
    """

    host: Host
    username: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^:\x00-\x1f]+$")]
    password: Annotated[str, Field(min_length=1, max_length=8192)]
    common: bool = False

    def target(self) -> str:
        return self.host

    async def run(self, call: Work, /) -> RegistryResult:
        host = check_registry(self.host)
        row = await call.db.registries.set(
            call.new_id(),
            host=host,
            owner_id=_owner(call, self.common),
            username=self.username,
            sealed=call.seal(self.password, host),
        )
        return RegistryResult(registry=RegistryData.of(row))


@action(Rules(allow=any_user, effect=Effect.DATABASE))
class RemoveRegistryAction(ScopeAction[Work, Done]):
    """Forget one's credentials for a registry; `common`: those for everybody."""

    host: Host
    common: bool = False

    def target(self) -> str:
        return self.host

    async def run(self, call: Work, /) -> Done:
        await call.db.registries.remove(self.host, _owner(call, self.common))
        return Done()


def _owner(call: Work, common: bool) -> UUID | None:
    if common and not call.by.is_admin:
        raise PermissionDenied("Only administrators keep credentials for everybody.")
    return None if common else call.by.user_id
