"""Who may use the installation: users, keypairs, projects, domains."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from moorage import _wire
from moorage._models import Domain, Keypair, Project, User
from moorage.aio._transport import Transport, decoded

UserList = list[User]
KeypairList = list[Keypair]
ProjectList = list[Project]
DomainList = list[Domain]


class Users:
    """`client.users`; a user is named by e-mail address or id."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[User]:
        """Everybody. Fetched as they are looked at."""
        return self._transport.items(User.from_json, _wire.path("users"), limit=limit)

    async def list(self, *, limit: int | None = None) -> UserList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, user: str) -> User:
        """One user."""
        return User.from_json(await self._transport.get(_wire.path("users", user)))

    async def create(
        self, email: str, *, username: str | None = None, role: str = "user", domain: str | None = None
    ) -> User:
        """A new user; the username is by default what stands before the @."""
        fields = _wire.body(email=email, username=username or email.partition("@")[0], role=role, domain=domain)
        return User.from_json(decoded(await self._transport.request("POST", _wire.path("users"), json=fields)))

    async def edit(self, user: str, **changes: Any) -> User:
        """Change some of `username`, `role`, `active`, `uid`, `gid`."""
        address = _wire.path("users", user)
        return User.from_json(decoded(await self._transport.request("PATCH", address, json=_wire.body(**changes))))

    async def set_password(self, user: str, password: str | None, *, current_password: str | None = None) -> None:
        """Set a password, or with None take it away. One's own, when there is one, takes the present one."""
        fields = _wire.body(password=password, current_password=current_password)
        await self._transport.request("PUT", _wire.path("users", user, "password"), json=fields)

    async def remove(self, user: str) -> None:
        """Remove a user, whose keypairs cease to work."""
        await self._transport.request("DELETE", _wire.path("users", user))


class Keypairs:
    """`client.keypairs`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, user: str | None = None, limit: int | None = None) -> AsyncGenerator[Keypair]:
        """Keypairs, of one user or of all. Fetched as they are looked at."""
        return self._transport.items(Keypair.from_json, _wire.path("keypairs"), limit=limit, user=user)

    async def list(self, *, user: str | None = None, limit: int | None = None) -> KeypairList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(user=user, limit=limit)]

    async def create(self, user: str | None = None) -> Keypair:
        """A new keypair, of another user for administrators; its `secret_key` is in this answer and nowhere else."""
        answer = await self._transport.request("POST", _wire.path("keypairs"), json=_wire.body(user=user))
        return Keypair.from_json(decoded(answer))

    async def edit(
        self, access_key: str, *, active: bool | None = None, requests_per_second: float | None = None
    ) -> Keypair:
        """Switch it off; for administrators: on, or limit how often it may ask (0: as often as it likes)."""
        address = _wire.path("keypairs", access_key)
        fields = _wire.body(active=active, requests_per_second=requests_per_second)
        return Keypair.from_json(decoded(await self._transport.request("PATCH", address, json=fields)))

    async def rotate(self, access_key: str, *, grace_seconds: float = 0) -> Keypair:
        """Give it a new `secret_key`, in this answer only; the old one is good for `grace_seconds` more."""
        address, fields = _wire.path("keypairs", access_key, "rotate"), {"grace_seconds": grace_seconds}
        return Keypair.from_json(decoded(await self._transport.request("POST", address, json=fields)))

    async def set_signing(self, access_key: str, on: bool) -> Keypair:
        """Let it sign requests, as clients of Backend.AI do, with a new `signing_secret`, in this answer only; or no longer."""
        address = _wire.path("keypairs", access_key, "signing")
        return Keypair.from_json(decoded(await self._transport.request("PUT", address, json={"on": on})))

    async def remove(self, access_key: str) -> None:
        """Remove it."""
        await self._transport.request("DELETE", _wire.path("keypairs", access_key))


class Projects:
    """`client.projects`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Project]:
        """Projects. Fetched as they are looked at."""
        return self._transport.items(Project.from_json, _wire.path("projects"), limit=limit)

    async def list(self, *, limit: int | None = None) -> ProjectList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, project: str, *, domain: str | None = None) -> Project:
        """One project."""
        return Project.from_json(await self._transport.get(_wire.path("projects", project), domain=domain))

    async def create(
        self, name: str, *, domain: str | None = None, members: Iterable[str] = (), admins: Iterable[str] = ()
    ) -> Project:
        """A new project. Its `admins` see and end its sessions, and let members in and out."""
        fields = _wire.body(name=name, domain=domain, members=[*members] or None, admins=[*admins] or None)
        return Project.from_json(decoded(await self._transport.request("POST", _wire.path("projects"), json=fields)))

    async def edit(
        self,
        project: str,
        *,
        add_members: Iterable[str] = (),
        remove_members: Iterable[str] = (),
        add_admins: Iterable[str] = (),
        remove_admins: Iterable[str] = (),
        domain: str | None = None,
    ) -> Project:
        """Let members in and out, and say who of them administers it."""
        fields = _wire.body(
            add_members=[*add_members] or None,
            remove_members=[*remove_members] or None,
            add_admins=[*add_admins] or None,
            remove_admins=[*remove_admins] or None,
            domain=domain,
        )
        address = _wire.path("projects", project)
        return Project.from_json(decoded(await self._transport.request("PATCH", address, json=fields)))

    async def remove(self, project: str, *, domain: str | None = None) -> None:
        """Remove it, when nothing of it is left."""
        await self._transport.request("DELETE", _wire.path("projects", project), params=_wire.query(domain=domain))


class Domains:
    """`client.domains`: each has users, projects and administrators of its own. For superadmins."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def iterate(self, *, limit: int | None = None) -> AsyncGenerator[Domain]:
        """All of them. Fetched as they are looked at."""
        return self._transport.items(Domain.from_json, _wire.path("domains"), limit=limit)

    async def list(self, *, limit: int | None = None) -> DomainList:
        """The same as a list, all pages of it."""
        return [one async for one in self.iterate(limit=limit)]

    async def get(self, domain: str) -> Domain:
        """One domain."""
        return Domain.from_json(await self._transport.get(_wire.path("domains", domain)))

    async def create(self, name: str) -> Domain:
        """A new domain, with a project 'default'."""
        return Domain.from_json(
            decoded(await self._transport.request("POST", _wire.path("domains"), json={"name": name}))
        )

    async def modify(self, domain: str, *, active: bool) -> Domain:
        """Close it, which locks everybody of it out within a second, or open it again."""
        address = _wire.path("domains", domain)
        return Domain.from_json(decoded(await self._transport.request("PATCH", address, json={"active": active})))

    async def remove(self, domain: str) -> None:
        """Remove it, when nobody and nothing of it is left."""
        await self._transport.request("DELETE", _wire.path("domains", domain))
