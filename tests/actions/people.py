"""More people than the stage has: administrators of a domain and of a project, and others of another domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from uuid import UUID

from actions.administration import hash_secret
from domain.principal import Principal, Role
from repositories.database import Connection
from tests.scenario import NOW, PROJECT, Given, insert, person

LAB: Final = UUID("00000000-0000-7000-8000-0000000000aa")
DORA: Final = person(5, "dora", Role.DOMAIN_ADMIN)
PIA: Final = replace(person(6, "pia"), administers=frozenset({"default"}))  #: administers the project 'default'
EVE: Final = replace(person(7, "eve"), domain="lab")  #: of another domain, as the next
LARS: Final = replace(person(8, "lars", Role.DOMAIN_ADMIN), domain="lab")


def email(who: Principal) -> str:
    return f"{who.access_key.removeprefix('KEY-')}@example.org"


async def _put(connection: Connection) -> None:
    await insert(connection, "domains", {"name": "lab", "created_at": NOW})
    await insert(connection, "projects", {"id": LAB, "domain": "lab", "name": "default", "created_at": NOW})
    for who in (DORA, PIA, EVE, LARS):
        name = who.access_key.removeprefix("KEY-")
        user = {"id": who.user_id, "email": email(who), "username": name, "domain": who.domain, "role": str(who.role)}
        await insert(connection, "users", {**user, "created_at": NOW})
        project = PROJECT if who.domain == "default" else LAB
        member = {"project_id": project, "user_id": who.user_id, "administers": bool(who.administers)}
        await insert(connection, "project_members", member)
        keypair = {"access_key": who.access_key, "secret_hash": hash_secret(f"secret-{name}"), "user_id": who.user_id}
        await insert(connection, "keypairs", {**keypair, "created_at": NOW})


#: All of them, and their domain.
OTHERS: Final = Given(put=_put)
