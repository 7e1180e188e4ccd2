"""Two domains with their projects, and everybody who may ask for something there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

from actions.administration import hash_secret
from repositories.database import Connection
from tests.scenario import insert

_NAMES: Final = UUID("0a7e0000-0000-5000-8000-000000000000")
SECRET: Final = "s" * 43
HOST: Final = "host-1"
IMAGE: Final = "moorage/python:3.11"
DOMAINS: Final = ("north", "south")
#: project -> domain
PROJECTS: Final = {"atoms": "north", "bees": "north", "corals": "south"}


@dataclass(frozen=True, kw_only=True)
class Person:
    name: str
    role: str = "user"
    project: str = "atoms"
    administers: bool = False  #: the project

    @property
    def domain(self) -> str:
        return PROJECTS[self.project]

    @property
    def id(self) -> UUID:
        return id_of(f"user {self.name}")

    @property
    def access_key(self) -> str:
        return f"KEY-{self.name}"

    @property
    def header(self) -> str:
        return f"Authorization: Bearer {self.access_key}.{SECRET}"


USER: Final = Person(name="una")
PROJECT_ADMIN: Final = Person(name="pia", administers=True)
DOMAIN_ADMIN: Final = Person(name="dora", role="domain_admin")
SUPERADMIN: Final = Person(name="root", role="superadmin")
MONITOR: Final = Person(name="mona", role="monitor")
#: Whose things the others come upon.
COLLEAGUE: Final = Person(name="ben")
NEIGHBOUR: Final = Person(name="cleo", project="bees")
FOREIGNER: Final = Person(name="zoe", project="corals")
PEOPLE: Final = (USER, PROJECT_ADMIN, DOMAIN_ADMIN, SUPERADMIN, MONITOR, COLLEAGUE, NEIGHBOUR, FOREIGNER)


def id_of(name: str) -> UUID:
    return uuid5(_NAMES, name)


async def populate(connection: Connection) -> None:
    """The people with a keypair each, an image, and a host with room for thousands of small sessions."""
    now = datetime.now(UTC)
    for domain in DOMAINS:
        await insert(connection, "domains", {"name": domain})
    for project, domain in PROJECTS.items():
        await insert(connection, "projects", {"id": id_of(f"project {project}"), "domain": domain, "name": project})
    for person in PEOPLE:
        await insert(connection, "users", user_row(person))
        await insert(
            connection,
            "project_members",
            {
                "project_id": id_of(f"project {person.project}"),
                "user_id": person.id,
                "administers": person.administers,
            },
        )
        keypair = {"access_key": person.access_key, "secret_hash": hash_secret(SECRET), "user_id": person.id}
        await insert(connection, "keypairs", keypair)
    await insert(connection, "images", {"name": IMAGE, "architecture": "x86_64"})
    await insert(connection, "image_aliases", {"alias": "python", "image": IMAGE})
    await insert_host(connection, HOST, now)


async def insert_host(connection: Connection, name: str, now: datetime) -> None:
    lease = now + timedelta(days=1)
    host = {"id": name, "fingerprint": f"f-{name}", "architecture": "x86_64", "seen_at": now, "lease_until": lease}
    await insert(connection, "agents", host)
    for slot, amount in (("cpu", 100_000_000), ("mem", 100_000_000)):
        await insert(connection, "resources", {"agent_id": name, "name": slot, "capacity": amount, "reported": amount})


def user_row(person: Person) -> dict[str, object]:
    return {
        "id": person.id,
        "email": f"{person.name}@example.org",
        "username": person.name,
        "domain": person.domain,
        "role": person.role,
    }
