"""Rows to come upon: sessions, volumes, templates and the rest, of whom one likes.

A thing is made under a number; its names and ids follow from kind and number, so that nobody has to keep them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from domain.principal import Principal, Role
from domain.session import Status
from repositories.database import Connection
from tests.gate.people import COLLEAGUE, HOST, IMAGE, NEIGHBOUR, Person, id_of, insert_host
from tests.scenario import a_session, insert, kernel_of

STORE: Final = "5" * 32
SERVICE_PORT: Final = 8000
#: A session template that takes no parameters.
DOCUMENT: Final = {"session": {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}}}
#: kind -> puts one down
Maker = Callable[[Connection, Person, int], Awaitable[None]]


def thing_id(kind: str, number: int) -> UUID:
    """Of what has a UUID; of what has a name, `thing_name`."""
    return id_of(f"{kind} {number}")


def thing_name(kind: str, number: int) -> str:
    return f"{kind}-{number}"


def project_id(owner: Person) -> UUID:
    return id_of(f"project {owner.project}")


async def add_session(connection: Connection, owner: Person, number: int, status: Status = Status.RUNNING) -> None:
    """With a run, a service that answers, and a ticket and a pass for it."""
    by = Principal(user_id=owner.id, access_key=owner.access_key, domain=owner.domain, role=Role(owner.role))  # type: ignore[arg-type]
    session_id: Any = thing_id("session", number)
    name = thing_name("session", number)
    columns = {"domain": owner.domain, "project_id": project_id(owner)}
    await a_session(status, id=session_id, name=name, owner=by, **columns).put(connection)
    kernel_id = kernel_of(session_id)
    if status is not Status.RUNNING:
        return
    run = {"run_id": thing_id("run", number), "session_id": session_id, "kernel_id": kernel_id, "agent_id": HOST}
    await insert(connection, "executions", {**run, "user_id": owner.id, "request_hash": b"", "mode": "query"})
    now = datetime.now(UTC)
    service = {"session_id": session_id, "name": "web", "kind": "http", "protocol": "http", "port": SERVICE_PORT}
    spec = {"name": "web", "generation": 0, "port": SERVICE_PORT}
    more = {"kernels": "main", "spec": spec, "settled": True, "started_at": now, "deadline_at": now}
    await insert(connection, "services", {**service, **more})
    instance = {"session_id": session_id, "name": "web", "kernel_id": kernel_id, "state": "healthy", "changed_at": now}
    await insert(connection, "service_instances", instance)
    whose = {"session_id": session_id, "name": "web", "user_id": owner.id, "access_key": owner.access_key}
    for kind in ("ticket", "pass"):
        row = {"token_hash": sha256(pass_of(kind, number).encode()).digest(), "kind": kind, **whose}
        await insert(connection, "service_tickets", {**row, "expires_at": now + timedelta(hours=1)})


def pass_of(kind: str, number: int) -> str:
    """What opens the service of a session at the proxy."""
    return sha256(f"{kind} {number}".encode()).hexdigest()[:43]


async def add_volume(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("volume", number), "name": thing_name("volume", number), "user_id": owner.id}
    await insert(connection, "volumes", {**row, "store": STORE, "uid": 1000, "gid": 1000})


async def add_template(connection: Connection, owner: Person, number: int) -> None:
    template_id = thing_id("template", number)
    row = {"id": template_id, "name": thing_name("template", number), "created_by": owner.id, "user_id": owner.id}
    await insert(connection, "session_templates", {**row, "document": DOCUMENT})
    version = {"template_id": template_id, "version": 1, "document": DOCUMENT, "source": "session: {}\n"}
    await insert(connection, "session_template_versions", {**version, "by_access_key": owner.access_key})


async def add_app(connection: Connection, owner: Person, number: int) -> None:
    app_id = thing_id("app", number)
    row = {"id": app_id, "name": thing_name("app", number), "created_by": owner.id, "user_id": owner.id}
    await insert(connection, "apps", row)
    said = {"image": "python", "entry": "app:App", "path": "/opt/app", "resource_slots": {"cpu": 1, "mem": 512}}
    version = {"app_id": app_id, "version": 1, "definition": said, "by_access_key": owner.access_key}
    await insert(connection, "app_versions", version)


async def add_worker(connection: Connection, owner: Person, number: int) -> None:
    """A worker session of that app, with a call that is over."""
    by = Principal(user_id=owner.id, access_key=owner.access_key, domain=owner.domain, role=Role(owner.role))  # type: ignore[arg-type]
    session_id: Any = thing_id("session", number)
    columns: dict[str, Any] = {
        "domain": owner.domain,
        "project_id": project_id(owner),
        "idle_timeout_seconds": 60.0,
    }
    made = a_session(id=session_id, name=thing_name("session", number), owner=by, session_type="worker", **columns)
    await made.put(connection)
    now = datetime.now(UTC)
    app = {"id": str(thing_id("app", number)), "name": "app", "version": 1, "concurrency": 1, "functions": []}
    row = {"session_id": session_id, "app_id": thing_id("app", number), "app_version": 1, "app": app}
    await insert(connection, "workers", {**row, "ready_attempt": 1, "ready_at": now})
    call = {"id": thing_id("call", number), "session_id": session_id, "user_id": owner.id, "function": "run"}
    over = {"request_hash": b"", "status": "completed", "output": "1", "finished_at": now}
    await insert(connection, "calls", {**call, **over})


async def add_task(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("task", number), "action": "pull_image", "user_id": owner.id}
    await insert(connection, "tasks", row)


async def add_image(connection: Connection, owner: Person, number: int) -> None:
    row = {"name": image_name(number), "architecture": "x86_64", "kind": "built", "title": thing_name("image", number)}
    await insert(connection, "images", {**row, "owner_id": owner.id, "visibility": "user"})


def image_name(number: int) -> str:
    return f"registry.example.org/of/image-{number}:1"


async def add_user(connection: Connection, owner: Person, number: int) -> None:
    """Somebody of the owner's project, to be changed or removed."""
    name = thing_name("user", number)
    row = {"id": thing_id("user", number), "email": f"{name}@example.org", "username": name, "domain": owner.domain}
    await insert(connection, "users", row)
    await insert(connection, "project_members", {"project_id": project_id(owner), "user_id": row["id"]})


async def add_keypair(connection: Connection, owner: Person, number: int) -> None:
    row = {"access_key": f"KEY-{number}", "secret_hash": bytes(32), "user_id": owner.id}
    await insert(connection, "keypairs", row)


async def add_token(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("token", number), "token_hash": sha256(b"%d" % number).digest(), "name": f"token-{number}"}
    expires_at = datetime.now(UTC) + timedelta(days=1)
    await insert(connection, "tokens", {**row, "access_key": owner.access_key, "expires_at": expires_at})


async def add_ssh_key(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("ssh_key", number), "name": thing_name("ssh_key", number), "public_key": "ssh-ed25519 AAAA"}
    await insert(connection, "ssh_keys", {**row, "access_key": owner.access_key, "fingerprint": f"SHA256:{number}"})


async def add_project(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("project", number), "domain": owner.domain, "name": thing_name("project", number)}
    await insert(connection, "projects", row)


async def add_domain(connection: Connection, owner: Person, number: int) -> None:
    await insert(connection, "domains", {"name": thing_name("domain", number)})


async def add_policy(connection: Connection, owner: Person, number: int) -> None:
    """Of the owner's domain."""
    name = thing_name("policy", number)
    await insert(connection, "policies", {"name": name, "domain": owner.domain})
    await insert(connection, "policy_limits", {"policy": name, "name": "sessions", "max_amount": 1000})


async def add_registry(connection: Connection, owner: Person, number: int) -> None:
    row = {"id": thing_id("registry", number), "host": registry_host(number), "owner_id": owner.id}
    await insert(connection, "registries", {**row, "username": "u", "sealed": b"x"})


def registry_host(number: int) -> str:
    return f"registry-{number}.example.org"


async def add_agent(connection: Connection, owner: Person, number: int) -> None:
    name = thing_name("agent", number)
    await insert_host(connection, name, datetime.now(UTC))
    device = {"agent_id": name, "name": "gpu/one", "model": "M", "memory_mib": 1024, "offered_mib": 1024}
    await insert(connection, "devices", {**device, "seen_at": datetime.now(UTC)})
    await insert(connection, "resources", {"agent_id": name, "name": "gpu/one", "capacity": 1024, "reported": 1024})


async def add_resource_group(connection: Connection, owner: Person, number: int) -> None:
    name = thing_name("resource_group", number)
    await insert(connection, "resource_groups", {"name": name})
    scope = {"resource_group": name, "scope": "project", "scope_id": str(project_id(owner))}
    await insert(connection, "resource_group_access", scope)


MAKERS: Final[Mapping[str, Maker]] = {
    "session": add_session,
    "volume": add_volume,
    "template": add_template,
    "app": add_app,
    "worker": add_worker,
    "task": add_task,
    "image": add_image,
    "user": add_user,
    "keypair": add_keypair,
    "token": add_token,
    "ssh_key": add_ssh_key,
    "project": add_project,
    "domain": add_domain,
    "policy": add_policy,
    "registry": add_registry,
    "agent": add_agent,
    "resource_group": add_resource_group,
}


async def add_store(connection: Connection) -> None:
    """Volumes are on the one host that there is."""
    await connection.execute("UPDATE agents SET info = $2 WHERE id = $1", HOST, {"volumes": STORE})


__all__ = ["IMAGE", "MAKERS", "Maker", "thing_id", "thing_name"]


async def add_event(connection: Connection, owner: Person, number: int) -> None:
    """Of the session of this number; its place in the order is the number."""
    row = {"seq": number, "type": "session.running", "session_id": thing_id("session", number), "user_id": owner.id}
    await insert(connection, "events", {**row, "domain": owner.domain, "cause": {}, "data": {}})


async def add_done(connection: Connection, owner: Person, number: int) -> None:
    """The task of this number is done."""
    sql = "UPDATE tasks SET status = 'done', finished_at = now() WHERE id = $1"
    await connection.execute(sql, thing_id("task", number))


async def add_keypair_of(connection: Connection, owner: Person, number: int) -> None:
    """Of the user of this number."""
    row = {"access_key": f"KEY-{number}", "secret_hash": bytes(32), "user_id": thing_id("user", number)}
    await insert(connection, "keypairs", row)


async def add_token_of(connection: Connection, owner: Person, number: int) -> None:
    await add_keypair_of(connection, owner, number)
    row = {"id": thing_id("token", number), "token_hash": sha256(b"%d" % number).digest(), "name": f"token-{number}"}
    expires_at = datetime.now(UTC) + timedelta(days=1)
    await insert(connection, "tokens", {**row, "access_key": f"KEY-{number}", "expires_at": expires_at})


async def add_assignment(connection: Connection, owner: Person, number: int) -> None:
    """The user of this number has the policy of this number."""
    row = {"scope": "user", "scope_id": str(thing_id("user", number)), "policy": thing_name("policy", number)}
    await insert(connection, "policy_assignments", row)


async def add_ended(connection: Connection, owner: Person, number: int) -> None:
    await add_session(connection, owner, number, Status.TERMINATED)


async def add_disabled(connection: Connection, owner: Person, number: int) -> None:
    """The keypair of this number is."""
    await connection.execute("UPDATE keypairs SET active = false WHERE access_key = $1", f"KEY-{number}")


async def add_share(connection: Connection, owner: Person, number: int) -> None:
    """The volume of this number is shared with this person; one's own with whom one knows."""
    volume_id = thing_id("volume", number)
    whose = await connection.fetchval("SELECT user_id FROM volumes WHERE id = $1", volume_id)
    whom = owner if whose != owner.id else acquaintance(owner)
    row = {"id": thing_id("share", number), "volume_id": volume_id, "user_id": whom.id}
    await insert(connection, "volume_shares", row)


def acquaintance(owner: Person) -> Person:
    return COLLEAGUE if owner is NEIGHBOUR else NEIGHBOUR


#: Of things that are there.
MORE: Final[Mapping[str, Maker]] = {
    "event": add_event,
    "done": add_done,
    "keypair_of": add_keypair_of,
    "token_of": add_token_of,
    "assignment": add_assignment,
    "ended": add_ended,
    "disabled": add_disabled,
    "share": add_share,
}
