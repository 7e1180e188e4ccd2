"""How each action is asked for over its door: what has to be there, what is sent, and what the answer is when all is well."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from manager.rest.routes import ROUTES, Route
from tests.gate.people import COLLEAGUE, FOREIGNER, NEIGHBOUR, USER, Person
from tests.gate.things import SERVICE_PORT, acquaintance, image_name, registry_host, thing_id, thing_name

UPGRADE: Final = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
_UNMADE: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One principal, and one thing that it comes upon."""

    row: str
    role: str
    relation: str
    by: Person | None  #: None: without a credential
    number: int

    @property
    def owner(self) -> Person:
        """Of the thing; of what does not exist, somebody else."""
        others = {"same domain": NEIGHBOUR, "other domain": FOREIGNER}
        if self.relation == "own":
            return self.by or USER
        return others.get(self.relation, COLLEAGUE)

    @property
    def exists(self) -> bool:
        return self.relation != "nonexistent"

    @property
    def named(self) -> int:
        """The number by which the thing is asked for."""
        return self.number if self.exists else self.number + _UNMADE

    @property
    def email(self) -> str:
        """Of the person that is meant: oneself, or somebody of the owner's project."""
        if self.relation == "own":
            return f"{self.owner.name}@example.org"
        return f"{thing_name('user', self.named)}@example.org"

    @property
    def key(self) -> str:
        """A keypair of the thing's owner, who is oneself or one of the others."""
        return self.owner.access_key if self.exists else "KEY-nobody"

    @property
    def domain(self) -> str:
        return self.owner.domain if self.exists else "nowhere"

    @property
    def project(self) -> str:
        return self.owner.project if self.exists else "nothing"

    def path(self, template: str) -> str:
        n = self.named
        values = {
            "session": str(thing_id("session", n)),
            "run": str(thing_id("run", n)),
            "volume": str(thing_id("volume", n)),
            "task": str(thing_id("task", n)),
            "template": str(thing_id("template", n)),
            "app": str(thing_id("app", n)),
            "call": str(thing_id("call", n)),
            "token": str(thing_id("token", n)),
            "ssh_key": str(thing_id("ssh_key", n)),
            "image": quote(image_name(n), safe=""),
            "user": self.email,
            "of": self.email,
            "keypair": f"KEY-{n}",
            "policy": thing_name("policy", n),
            "agent": thing_name("agent", n),
            "resource_group": thing_name("resource_group", n),
            "domain": thing_name("domain", n),
            "host": registry_host(n),
            "project": self.project,
            "device": "gpu%2Fone",
            "service": "web",
            "port": str(SERVICE_PORT),
            "scope": "user",
            "path*": "there.txt",
        }
        for name, value in values.items():
            template = template.replace("{" + name + "}", value)
        return template


@dataclass(frozen=True, kw_only=True)
class Ask:
    """`things`: the kinds that have to be there. A body that is no bytes goes as JSON."""

    things: tuple[str, ...] = ()
    somebody: bool = False  #: the user among them is another, also where one's own is meant, and is always there
    ok: int = 200
    method: str | None = None  #: of the action's route, when it has more than one
    path: str | None = None
    address: Callable[[Cell], str] | None = None  #: where it is not as `Cell.path` fills it in
    query: Callable[[Cell], str] = lambda cell: ""
    body: Callable[[Cell], Any] = lambda cell: None
    headers: Callable[[Cell], tuple[str, ...]] = lambda cell: ()
    told: Callable[[Cell], str] = lambda cell: "\0"  #: what a list holds when it tells of the thing


def route_of(row: str, ask: Ask) -> Route:
    name = row.partition(":")[0]
    if name == "dry_run":  # is asked for with what it would create
        name = "create_from_params"
    found = [
        route
        for route in ROUTES
        if route.action.action_name == name and ask.method in (None, route.method) and ask.path in (None, route.path)
    ]
    assert found, row
    return found[0]


SESSION: Final = ("session",)
SLOTS: Final = {"cpu": 0.001, "mem": 64}


def creation(cell: Cell) -> dict[str, Any]:
    return {"image": "python", "resource_slots": SLOTS, "name": f"made-{cell.number}"}


def for_owner(cell: Cell) -> str:
    return "" if cell.relation == "own" else f"owner_access_key={cell.key}"


def of_session(ok: int = 200, **more: Any) -> Ask:
    return Ask(things=SESSION, ok=ok, **more)


def socket(cell: Cell) -> tuple[str, ...]:
    return UPGRADE


def text(kind: str) -> Callable[[Cell], tuple[str, ...]]:
    return lambda cell: (f"Content-Type: {kind}",)


FORM: Final = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\ncontent\r\n--b--\r\n'
DOCUMENT: Final = json.dumps({"session": {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}}})


def _key(cell: Cell) -> str:
    """A public key that nobody else has."""
    import base64

    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + cell.number.to_bytes(32, "big")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


_SESSIONS: Final[Mapping[str, Ask]] = {
    **dict.fromkeys(
        "get_session_info get_status_history explain_session get_container_logs list_executions read_execution "
        "get_statistics get_metrics get_session_devices get_dependency_graph get_commit_status list_deliveries "
        "get_abusing_report kill_execution interrupt list_files download_file list_services "
        "open_service get_direct_access_info open_port destroy_session restart_session shutdown_service".split(),
        of_session(),
    ),
    "download_results": Ask(things=("ended",)),
    "follow_execution": of_session(101, headers=socket),
    "open_process": of_session(101, headers=socket),
    "modify_session": of_session(body=lambda cell: {"tag": "x"}),
    "rename_session": of_session(body=lambda cell: {"new_name": f"renamed-{cell.number}"}),
    "exempt_session": of_session(body=lambda cell: {"exempt": True, "reason": "x"}),
    "start_call": Ask(things=("worker",), body=lambda cell: {"input": 1}),
    "list_calls": Ask(things=("worker",)),
    "keepalive_session": of_session(body=lambda cell: {}),
    "get_call": Ask(things=("worker",)),
    "follow_call": Ask(things=("worker",)),
    "cancel_call": Ask(things=("worker",), body=lambda cell: {}),
    "delete_call": Ask(things=("worker",), ok=204),
    "execute_session": of_session(body=lambda cell: {"code": "1"}),
    "complete": of_session(body=lambda cell: {"code": "pri"}),
    "list_state": of_session(),
    **dict.fromkeys(
        ("get_state", "delete_state"), of_session(address=lambda cell: cell.path("/v1/sessions/{session}/state/best"))
    ),
    "set_state": of_session(
        address=lambda cell: cell.path("/v1/sessions/{session}/state/best"), body=lambda cell: {"value": 1}
    ),
    "issue_ssh_certificate": of_session(201, body=lambda cell: {"public_key": _key(cell)}),
    "upload_files": of_session(method="PUT", body=lambda cell: b"content", headers=text("application/octet-stream")),
    "upload_files:form": of_session(
        method="POST", body=lambda cell: FORM, headers=text("multipart/form-data; boundary=b")
    ),
    "download_files": of_session(body=lambda cell: {"paths": ["there.txt"]}),
    "manage_files": of_session(body=lambda cell: {"op": "stat", "path": "there.txt"}),
    "unpack_archive": of_session(body=lambda cell: b"name", headers=text("application/x-tar")),
    "start_service": of_session(
        address=lambda cell: cell.path("/v1/sessions/{session}/services/other"),
        body=lambda cell: {"kind": "http", "port": SERVICE_PORT + 1},
    ),
    "commit_session": of_session(202, body=lambda cell: {"name": f"made-{cell.number}"}),
    "convert_session_to_image": of_session(
        202, body=lambda cell: {"image": f"registry.example.org/m/i{cell.number}:1"}
    ),
    "check_and_transit_status": of_session(body=lambda cell: {"session_ids": [cell.path("{session}")]}),
    "create_from_params": Ask(ok=201, query=for_owner, body=creation),
    "dry_run": Ask(
        query=lambda cell: f"{for_owner(cell)}&dry_run=true", body=creation, method="POST", path="/v1/sessions"
    ),
    "create_cluster": Ask(
        ok=201, query=for_owner, body=lambda cell: {**creation(cell), "cluster_mode": "single-node", "workers": 1}
    ),
    "create_from_template": Ask(
        things=("template",),
        ok=201,
        query=for_owner,
        body=lambda cell: {"template": cell.path("{template}"), "overrides": {"name": f"made-{cell.number}"}},
    ),
    "search_sessions": of_session(
        query=lambda cell: f"name={thing_name('session', cell.named)}", told=lambda cell: cell.path("{session}")
    ),
    "search_sessions:all": of_session(
        query=lambda cell: f"all=true&name={thing_name('session', cell.named)}",
        told=lambda cell: cell.path("{session}"),
    ),
    "search_sessions:for": of_session(
        query=lambda cell: f"name={thing_name('session', cell.named)}&owner_access_key={cell.key}",
        told=lambda cell: cell.path("{session}"),
    ),
    "match_sessions": of_session(
        query=lambda cell: f"pattern={thing_name('session', cell.named)}", told=lambda cell: cell.path("{session}")
    ),
    "match_sessions:for": of_session(
        query=lambda cell: f"pattern={thing_name('session', cell.named)}&owner_access_key={cell.key}",
        told=lambda cell: cell.path("{session}"),
    ),
    "read_events": Ask(
        things=("session", "event"),
        query=lambda cell: "follow=false",
        headers=lambda cell: (f"Last-Event-ID: 1.{cell.number - 1}",),
        told=lambda cell: cell.path("{session}"),
    ),
    "read_events:one": Ask(
        things=("session", "event"),
        query=lambda cell: f"follow=false&session={cell.path('{session}')}",
        headers=lambda cell: (f"Last-Event-ID: 1.{cell.number - 1}",),
        told=lambda cell: cell.path("{session}"),
    ),
    "get_top": Ask(),
    "get_top:all": Ask(query=lambda cell: "all=true"),
}
_PEOPLE: Final[Mapping[str, Ask]] = {
    "list_users": Ask(things=("user",), query=lambda cell: "limit=1000", told=lambda cell: cell.email),
    "get_user": Ask(things=("user",)),
    "create_user": Ask(
        ok=201, body=lambda cell: {"email": f"made-{cell.number}@example.org", "domain": cell.domain, "username": "m"}
    ),
    "modify_user": Ask(things=("user",), body=lambda cell: {"username": "x"}),
    "delete_user": Ask(things=("user",), ok=204),
    "set_password": Ask(things=("user",), body=lambda cell: {"password": None}),
    "list_keypairs": Ask(things=("keypair",), told=lambda cell: f'"KEY-{cell.number}"'),
    "list_keypairs:of": Ask(
        things=("user", "keypair_of"),
        query=lambda cell: f"user={cell.email}",
        told=lambda cell: f'"KEY-{cell.number}"',
    ),
    "create_keypair": Ask(ok=201, body=lambda cell: {}),
    "create_keypair:for": Ask(things=("user",), ok=201, body=lambda cell: {"user": cell.email}),
    "modify_keypair": Ask(things=("keypair",), body=lambda cell: {"active": False}),
    "modify_keypair:enable": Ask(things=("keypair", "disabled"), body=lambda cell: {"active": True}),
    "rotate_keypair": Ask(things=("keypair",), body=lambda cell: {}),
    "set_signing": Ask(things=("keypair",), body=lambda cell: {"on": False}),
    "delete_keypair": Ask(things=("keypair",), ok=204),
    "list_tokens": Ask(things=("token",), told=lambda cell: cell.path("{token}")),
    "list_tokens:of": Ask(
        things=("user", "token_of"), query=lambda cell: f"user={cell.email}", told=lambda cell: cell.path("{token}")
    ),
    "create_token": Ask(ok=201, body=lambda cell: {"name": "x", "ttl_seconds": 60}),
    "create_token:for": Ask(
        things=("keypair",),
        ok=201,
        body=lambda cell: {"name": "x", "ttl_seconds": 60, "keypair": f"KEY-{cell.named}"},
    ),
    "delete_token": Ask(things=("token",), ok=204),
    "sign_in": Ask(ok=201, body=lambda cell: {"email": f"nobody-{cell.number}@example.org", "password": "wrong wrong"}),
    "sign_out": Ask(ok=204, body=lambda cell: {}),
    "who_am_i": Ask(),
    "list_projects": Ask(told=lambda cell: f'"{cell.project}"'),
    "get_project": Ask(query=lambda cell: f"domain={cell.domain}" if cell.exists else ""),
    "create_project": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}", "domain": cell.domain}),
    "delete_project": Ask(
        things=("project",),
        ok=204,
        address=lambda cell: f"/v1/projects/{thing_name('project', cell.named)}",
        query=lambda cell: f"domain={cell.domain}" if cell.exists else "",
    ),
    "modify_project": Ask(
        things=("user",),
        somebody=True,
        body=lambda cell: {
            "add_members": [f"{thing_name('user', cell.number)}@example.org"],
            "domain": cell.owner.domain,
        },
    ),
    "modify_project:appoint": Ask(
        things=("user",),
        somebody=True,
        body=lambda cell: {
            "add_admins": [f"{thing_name('user', cell.number)}@example.org"],
            "domain": cell.owner.domain,
        },
    ),
    "list_domains": Ask(things=("domain",), told=lambda cell: f'"{thing_name("domain", cell.named)}"'),
    "get_domain": Ask(things=("domain",)),
    "create_domain": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}"}),
    "modify_domain": Ask(things=("domain",), body=lambda cell: {"active": True}),
    "delete_domain": Ask(things=("domain",), ok=204),
}


def _assignment(cell: Cell) -> str:
    return cell.path("/v1/policies/{policy}/assignments/user/") + f"{thing_name('user', cell.number)}@example.org"


_LIMITS: Final = {"limits": {"sessions": 1_000_000}}
_LIMIT_ASKS: Final[Mapping[str, Ask]] = {
    "list_quotas": Ask(),
    "list_quotas:of": Ask(things=("user",), query=lambda cell: f"of=user:{cell.email}"),
    "set_quota": Ask(things=("user",), body=lambda cell: _LIMITS, path="/v1/quota/{scope}/{of}"),
    "set_quota:domain": Ask(body=lambda cell: _LIMITS, address=lambda cell: f"/v1/quota/domain/{cell.domain}"),
    "list_policies": Ask(things=("policy",), told=lambda cell: f'"{thing_name("policy", cell.named)}"'),
    "get_policy": Ask(things=("policy",)),
    "create_policy": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}", "domain": cell.domain, **_LIMITS}),
    "modify_policy": Ask(things=("policy",), body=lambda cell: {"description": "x"}),
    "delete_policy": Ask(things=("policy",), ok=204),
    "assign_policy": Ask(things=("policy", "user"), somebody=True, address=_assignment, body=lambda cell: {}),
    "unassign_policy": Ask(things=("policy", "user", "assignment"), somebody=True, address=_assignment),
    "get_usage": Ask(),
    "get_usage:of": Ask(things=("user",), query=lambda cell: f"user={cell.email}"),
}
_INSTALLATION: Final[Mapping[str, Ask]] = {
    "list_agents": Ask(),
    "get_agent": Ask(things=("agent",)),
    "modify_agent": Ask(things=("agent",), body=lambda cell: {"labels": {"a": "b"}}),
    "remove_agent": Ask(things=("agent",), ok=204),
    "cordon_agent": Ask(things=("agent",), body=lambda cell: {}),
    "uncordon_agent": Ask(things=("agent",), body=lambda cell: {}),
    "drain_agent": Ask(things=("agent",), body=lambda cell: {}),
    "revoke_agent": Ask(things=("agent",), body=lambda cell: {"reason": "x"}),
    "list_devices": Ask(things=("agent",), path="/v1/agents/{agent}/devices"),
    "list_devices:all": Ask(path="/v1/devices"),
    "take_device_out": Ask(things=("agent",), body=lambda cell: {"reason": "x"}),
    "put_device_in": Ask(things=("agent",), body=lambda cell: {}),
    "create_agent_token": Ask(ok=201, body=lambda cell: {}),
    "fsck": Ask(query=lambda cell: "hosts=false"),
    "fsck_repair": Ask(body=lambda cell: {"checks": ["slots_in_use"]}),
    "get_trace": Ask(),
    "list_audit": Ask(),
    "export_audit": Ask(),
    "verify_audit": Ask(),
    "search_abusing_reports": Ask(),
    "get_watch_rules": Ask(),
    "set_watch_rules": Ask(body=lambda cell: {"rules": {"cpu_idle": {"max_share": 0.05}}}),
    "list_images": Ask(things=("image",), told=lambda cell: image_name(cell.named)),
    "register_image": Ask(ok=201, body=lambda cell: {"name": f"registry.example.org/m/r{cell.number}:1"}),
    "pull_image": Ask(ok=202, body=lambda cell: {"name": "python"}),
    "rescan_images": Ask(ok=202, body=lambda cell: {}),
    "collect_images": Ask(ok=202, body=lambda cell: {"dry_run": True}),
    "share_image": Ask(things=("image",), body=lambda cell: {"visibility": "user"}),
    "alias_image": Ask(things=("image",), body=lambda cell: {"alias": f"alias-{cell.number}"}),
    "forget_image": Ask(things=("image",), ok=204),
    "list_resource_groups": Ask(
        things=("resource_group",), told=lambda cell: f'"{thing_name("resource_group", cell.named)}"'
    ),
    "get_resource_group": Ask(things=("resource_group",)),
    "create_resource_group": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}"}),
    "modify_resource_group": Ask(things=("resource_group",), body=lambda cell: {"description": "x"}),
    "delete_resource_group": Ask(things=("resource_group",), ok=204),
    "modify_resource_group_access": Ask(
        things=("resource_group", "user"),
        somebody=True,
        body=lambda cell: {"allowed": True, "users": [f"{thing_name('user', cell.number)}@example.org"]},
    ),
    "set_weight": Ask(things=("resource_group", "user"), body=lambda cell: {"weight": 2}),
    "list_shares": Ask(),
}
VOLUME: Final = ("volume",)
_OWN: Final[Mapping[str, Ask]] = {
    "list_volumes": Ask(things=VOLUME, query=lambda cell: "limit=1000", told=lambda cell: cell.path("{volume}")),
    "list_volumes:all": Ask(
        things=VOLUME, query=lambda cell: "all=true&limit=1000", told=lambda cell: cell.path("{volume}")
    ),
    "create_volume": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}"}),
    **dict.fromkeys("get_volume list_volume_files download_volume_file".split(), Ask(things=VOLUME)),
    "download_volume_files": Ask(things=VOLUME, body=lambda cell: {"paths": ["there.txt"]}),
    "modify_volume": Ask(things=VOLUME, body=lambda cell: {"name": f"renamed-{cell.number}"}),
    "delete_volume": Ask(things=VOLUME, ok=202),
    "share_volume": Ask(things=VOLUME, body=lambda cell: {"users": ["una@example.org", "ben@example.org"]}),
    "unshare_volume": Ask(
        things=("volume", "share"), body=lambda cell: {"users": [f"{acquaintance(cell.owner).name}@example.org"]}
    ),
    "leave_volume": Ask(things=("volume", "share_with"), ok=204, body=lambda cell: {}),
    "clone_volume": Ask(things=VOLUME, ok=202, body=lambda cell: {"name": f"cloned-{cell.number}"}),
    "manage_volume_files": Ask(things=VOLUME, body=lambda cell: {"op": "mkdir", "path": f"made-{cell.number}"}),
    "manage_volume_files:stat": Ask(things=VOLUME, body=lambda cell: {"op": "stat", "path": "there.txt"}),
    "unpack_volume_archive": Ask(things=VOLUME, body=lambda cell: b"name", headers=text("application/x-tar")),
    "upload_volume_files": Ask(things=VOLUME, body=lambda cell: b"content", headers=text("application/octet-stream")),
    "list_templates": Ask(things=("template",), told=lambda cell: cell.path("{template}")),
    "get_template": Ask(things=("template",)),
    "create_template": Ask(ok=201, body=lambda cell: {"name": f"made-{cell.number}", "document": DOCUMENT}),
    "modify_template": Ask(things=("template",), body=lambda cell: {"name": f"renamed-{cell.number}"}),
    "delete_template": Ask(things=("template",), ok=204),
    "list_apps": Ask(things=("app",), told=lambda cell: cell.path("{app}")),
    "get_app": Ask(things=("app",)),
    "deploy_app": Ask(
        ok=201,
        body=lambda cell: {"name": f"made-{cell.number}", "image": "python", "entry": "app:App", "path": "/opt/app"},
    ),
    "delete_app": Ask(things=("app",), ok=204),
    "call_app": Ask(things=("app",), ok=201, body=lambda cell: {"input": 1}),
    "list_tasks": Ask(things=("task",), query=lambda cell: "limit=1000", told=lambda cell: cell.path("{task}")),
    "get_task": Ask(things=("task",), path="/v1/tasks/{task}"),
    "get_task:events": Ask(things=("task", "done"), path="/v1/tasks/{task}/events"),
    "cancel_task": Ask(things=("task",)),
    "list_ssh_keys": Ask(things=("ssh_key",), told=lambda cell: cell.path("{ssh_key}")),
    "add_ssh_key": Ask(ok=201, body=lambda cell: {"public_key": _key(cell), "name": f"made-{cell.number}"}),
    "remove_ssh_key": Ask(things=("ssh_key",)),
    "create_webhook_secret": Ask(ok=201, body=lambda cell: {}),
    "list_registries": Ask(things=("registry",), told=lambda cell: registry_host(cell.named)),
    "set_registry": Ask(body=lambda cell: {"username": "u", "password": "p"}),
    "set_registry:common": Ask(body=lambda cell: {"username": "u", "password": "p", "common": True}),
    "remove_registry": Ask(things=("registry",), ok=204),
}
ASKS: Final[Mapping[str, Ask]] = {**_SESSIONS, **_PEOPLE, **_LIMIT_ASKS, **_INSTALLATION, **_OWN}
