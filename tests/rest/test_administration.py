"""Users, keypairs, projects, images, agents, quotas, tasks: each answered as written in the table."""

from __future__ import annotations

from tests.rest.conftest import HOST, IMAGE, Caller, Installation


async def test_users(root: Caller, alice: Caller) -> None:
    made = await root.post("/v1/users", {"email": "new@example.org", "username": "new", "role": "user"})
    assert (made.status, made.json["projects"], made.json["active"]) == (201, ["default"], True)
    assert (await root.post("/v1/users", {"email": "new@example.org"})).code == "already_exists"
    assert (await root.post("/v1/users", {"email": "no address"})).json["field"] == "email"
    assert (await root.get("/v1/users/new@example.org")).json["id"] == made.json["id"]
    assert (await root.get("/v1/users/new%40example.org")).json["id"] == made.json["id"]
    closed = await root.ask("PATCH", f"/v1/users/{made.json['id']}", {"active": False})
    assert closed.json["active"] is False
    page = (await root.get("/v1/users?limit=3")).json
    assert len(page["items"]) == 3
    rest = (await root.get(f"/v1/users?limit=3&cursor={page['next_cursor']}")).json
    assert ({item["username"] for item in page["items"] + rest["items"]}, rest["next_cursor"]) == (
        {"alice", "mallory", "root", "watcher", "new"},
        None,
    )
    assert (await root.ask("DELETE", "/v1/users/new@example.org")).status == 204
    assert (await root.get("/v1/users/new@example.org")).code == "user_not_found"
    assert (await root.ask("DELETE", "/v1/users/alice@example.org")).code == "still_in_use"
    assert (await alice.get("/v1/users")).code == "permission_denied"
    assert (await alice.post("/v1/users", {"email": "x@example.org"})).code == "permission_denied"


async def test_keypairs(root: Caller, alice: Caller, nobody: Caller) -> None:
    headers = {"Idempotency-Key": "keys"}
    made = await alice.post("/v1/keypairs", {}, headers=headers)
    assert made.status == 201
    bearer = {"Authorization": f"Bearer {made.json['access_key']}.{made.json['secret_key']}"}
    assert (await nobody.get("/v1/whoami", headers=bearer)).json["user"]["username"] == "alice"
    again = await alice.post("/v1/keypairs", {}, headers=headers)  # the secret was shown once
    assert again.json["access_key"] == made.json["access_key"]
    assert "secret_key" not in again.json
    listed = (await alice.get("/v1/keypairs")).json["items"]
    assert [item["access_key"] for item in listed] == ["KEY-alice", made.json["access_key"]]
    assert not any("secret_key" in item for item in listed)
    first = (await root.get("/v1/keypairs?limit=2")).json
    second = (await root.get(f"/v1/keypairs?limit=2&cursor={first['next_cursor']}")).json
    assert len(first["items"] + second["items"]) == 4
    assert len((await root.get("/v1/keypairs?user=alice@example.org")).json["items"]) == 2
    disabled = await alice.ask("PATCH", f"/v1/keypairs/{made.json['access_key']}", {"active": False})
    assert disabled.json["active"] is False
    assert (await nobody.get("/v1/whoami", headers=bearer)).code == "unauthenticated"
    assert (await alice.ask("DELETE", f"/v1/keypairs/{made.json['access_key']}")).status == 204
    assert (await alice.ask("DELETE", "/v1/keypairs/KEY-root")).code == "keypair_not_found"
    assert (await alice.post("/v1/keypairs", {"user": "root@example.org"})).code == "permission_denied"


async def test_projects(root: Caller, alice: Caller) -> None:
    made = await root.post("/v1/projects", {"name": "vision", "members": ["alice@example.org"]})
    assert (made.status, made.json["members"]) == (201, ["alice@example.org"])
    edited = await root.ask("PATCH", "/v1/projects/vision", {"add_members": ["mallory@example.org"]})
    assert edited.json["members"] == ["alice@example.org", "mallory@example.org"]
    assert {item["name"] for item in (await root.get("/v1/projects")).json["items"]} == {"default", "vision"}
    assert (await root.ask("DELETE", "/v1/projects/vision")).status == 204
    assert (await root.ask("DELETE", "/v1/projects/vision")).code == "project_not_found"
    assert (await alice.post("/v1/projects", {"name": "mine"})).code == "permission_denied"


async def test_images(root: Caller, alice: Caller) -> None:
    listed = (await alice.get("/v1/images?all=true")).json["items"]
    assert [(item["name"], item["aliases"]) for item in listed] == [(IMAGE, ["python"])]
    made = await root.post("/v1/images", {"name": "registry.local:5000/a/b:1", "aliases": ["ab"]})
    assert (made.status, made.json["aliases"]) == (201, ["ab"])
    assert (await root.post("/v1/images", {"name": "registry.local:5000/a/b:1"})).code == "already_exists"
    encoded = "registry.local%3A5000%2Fa%2Fb%3A1"
    assert (await root.post(f"/v1/images/{encoded}/alias", {"alias": "abc"})).json["aliases"] == ["ab", "abc"]
    assert (await root.ask("DELETE", f"/v1/images/{encoded}")).status == 204
    assert (await root.ask("DELETE", f"/v1/images/{encoded}")).code == "image_not_found"
    assert (await root.ask("DELETE", "/v1/images/python")).code == "still_in_use"
    assert (await alice.post("/v1/images", {"name": "x"})).code == "permission_denied"


async def test_background_tasks(root: Caller, alice: Caller) -> None:
    started = await root.post("/v1/images/pull", {"name": IMAGE})
    task = started.json
    assert (started.status, task["status"], started.headers["Location"]) == (202, "queued", f"/v1/tasks/{task['id']}")
    assert (await root.get(f"/v1/tasks/{task['id']}")).json["action"] == "pull_image"
    assert [item["id"] for item in (await root.get("/v1/tasks")).json["items"]] == [task["id"]]
    assert (await alice.get(f"/v1/tasks/{task['id']}")).code == "task_not_found"
    async with root.request("GET", f"/v1/tasks/{task['id']}/events") as response:
        assert b"event: task.queued" in await response.content.readuntil(b"\n\n")
        assert (await root.ask("DELETE", f"/v1/tasks/{task['id']}")).json["status"] == "cancelled"
        assert (await response.read()).startswith(b"event: task.cancelled\ndata: {")
    assert (await alice.get(f"/v1/tasks/{task['id']}/events")).code == "task_not_found"


async def test_agents(root: Caller, alice: Caller, installation: Installation) -> None:
    listed = (await root.get("/v1/agents")).json["items"]
    assert listed[0]["id"] == HOST
    assert listed[0]["capacity"] == {"cpu": 8, "mem": 8192}
    assert listed[0]["used"] == {"cpu": 1.5, "mem": 512}
    assert (await root.ask("PATCH", f"/v1/agents/{HOST}", {"schedulable": False})).json["schedulable"] is False
    assert (await root.get(f"/v1/agents/{HOST}")).json["schedulable"] is False
    assert (await root.get("/v1/agents/nothing")).code == "agent_not_found"
    assert (await root.ask("DELETE", f"/v1/agents/{HOST}")).code == "still_in_use"
    token = await root.post("/v1/agents/tokens", {"ttl_seconds": 600})
    assert token.status == 201
    assert token.json["token"].startswith("join-")
    assert (await alice.get("/v1/agents")).code == "permission_denied"
    assert (await installation.caller("watcher").get("/v1/agents")).status == 200
    assert (await installation.caller("watcher").post("/v1/agents/tokens", {})).code == "permission_denied"


async def test_quotas(root: Caller, alice: Caller) -> None:
    put = await root.ask("PUT", "/v1/quota/user/alice@example.org", {"limits": {"sessions": 2, "mem": "4g"}})
    assert {item["name"]: item["max"] for item in put.json["items"]} == {"sessions": 2, "mem": 4096}
    full = await alice.post("/v1/sessions", {"image": "python"})
    assert (full.status, full.code) == (422, "quota_exceeded")
    assert len((await alice.get("/v1/quota")).json["items"]) == 2
    assert (await root.ask("PUT", "/v1/quota/planet/earth", {"limits": {}})).code == "invalid_request"
    facts = [full.json[name] for name in ("limit", "scope", "of", "max")]
    assert facts == ["sessions", "user", "alice@example.org", 2]
    assert (await alice.get("/v1/quota?everybody=true")).code == "permission_denied"
    assert len((await root.get("/v1/quota?of=user:alice@example.org")).json["items"]) == 2


async def test_policies(root: Caller, alice: Caller) -> None:
    limits = {"cpu": {"max": 8, "waits": True}, "mem": "32g"}
    made = await root.post("/v1/policies", {"name": "students", "limits": limits})
    assert (made.status, made.json["limits"]) == (
        201,
        [{"name": "cpu", "max": 8000, "waits": True}, {"name": "mem", "max": 32768, "waits": False}],
    )
    assert (await root.post("/v1/policies", {"name": "students", "limits": limits})).code == "already_exists"
    wrong = await root.post("/v1/policies", {"name": "wrong", "limits": {"cpu": 1, "session.cpu": 2}})
    assert (wrong.status, wrong.code) == (422, "invalid_policy")
    address = "/v1/policies/students/assignments/user/alice@example.org"
    assert (await alice.ask("PUT", address)).code == "permission_denied"
    assert (await root.ask("PUT", address)).json["assigned"] == [{"scope": "user", "of": "alice@example.org"}]
    assert {item["policy"] for item in (await alice.get("/v1/quota")).json["items"]} == {"students"}
    changed = await root.ask("PATCH", "/v1/policies/students", {"limits": {"mem": None, "sessions": 3}})
    assert [one["name"] for one in changed.json["limits"]] == ["cpu", "sessions"]
    assert (await root.ask("DELETE", "/v1/policies/students")).code == "policy_in_use"
    assert (await root.ask("DELETE", address)).json["assigned"] == []
    assert (await root.ask("DELETE", "/v1/policies/students")).status == 204
    assert (await root.get("/v1/policies/students")).code == "policy_not_found"
    assert (await root.get("/v1/policies")).json["items"] == []


async def test_logs(alice: Caller, installation: Installation) -> None:
    from tests.rest.host import Run

    log = installation.host.runs["log"] = Run("", "log")
    for number in range(5):
        log.say("stdout", b"line %d\n" % number)
    log.end()
    answer = await alice.get("/v1/sessions/train/logs")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.count(b"\n") == 5
    assert (await alice.get("/v1/sessions/train/logs?tail=2")).body == b"line 3\nline 4\n"
    assert (await alice.get("/v1/sessions/train/logs?follow=true&tail=1")).body == b"line 4\n"
    assert (await alice.get("/v1/sessions/train/logs?since=2030-01-01T00:00:00Z")).body == b""
    assert (await alice.get("/v1/sessions/train/logs?tail=-1")).code == "invalid_request"
    assert (await alice.get("/v1/sessions/waits/logs")).code == "session_not_ready"
