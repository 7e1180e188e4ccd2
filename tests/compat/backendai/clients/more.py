"""What `test_more` asks of the real SDK, step by step; the last line of each step says what came of it."""

import asyncio
import base64
import json
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import AsyncSession, Session

IMAGE = "python"
SIZE = {"cpu": 1, "mem": "256m"}


def start(name: str) -> dict[str, Any]:
    with Session() as session:
        made = session.ComputeSession.get_or_create(IMAGE, name=name, resources=SIZE)
        return {"id": str(made.id), "status": made.status, "apps": [app["name"] for app in made.service_ports]}


def end(name: str) -> dict[str, Any]:
    with Session() as session:
        return dict(session.ComputeSession(name).destroy())


def refused(ask: Callable[[], Any]) -> list[Any]:
    try:
        ask()
    except BackendAPIError as error:
        return [error.status, error.data["title"], error.data.get("msg") or error.data["data"][0]["message"]]
    return ["not refused"]


def lists() -> dict[str, Any]:
    """As an administrator."""
    with Session() as session:
        agents = session.Agent.paginated_list("ALIVE")
        policies = session.KeypairResourcePolicy.list()
        return {
            "me": session.KeyPair(session.config.access_key).info(),
            "sessions": dict(
                zip(("count", "items"), _page(session.ComputeSession.paginated_list("RUNNING")), strict=True)
            ),
            "agents": _page(agents)[1],
            "agent": session.Agent.detail(agents.items[0]["id"]),
            "images": session.Image.list(),
            "keypairs": _page(session.KeyPair.paginated_list()),
            "keypairs of": session.KeyPair.list(user_id="admin@localhost", is_active=True),
            "users": _page(session.User.paginated_list()),
            "user": session.User.detail("admin@localhost"),
            "domains": session.Domain.list(),
            "domain": session.Domain.detail("default"),
            "groups": session.Group.list("default"),
            "groups by name": session.Group.from_name("default"),
            "scaling groups": session.ScalingGroup.list(),
            "policies": policies,
            "folders": _page(session.VFolder.paginated_own_list()),
            "nonsense": refused(lambda: session.Admin.query("query { nonsense { x } }")),
            "mutation": refused(lambda: session.KeyPair.delete("AKIAX")),
            "filter": refused(lambda: session.ComputeSession.paginated_list("RUNNING", filter="name =")),
        }


def _page(found: Any) -> list[Any]:
    return [found.total_count, list(found.items)]


def others() -> dict[str, Any]:
    """As somebody who is no administrator."""
    with Session() as session:
        return {
            "sessions": _page(session.ComputeSession.paginated_list("RUNNING")),
            "of another": refused(lambda: session.ComputeSession.paginated_list("RUNNING", sys.argv[2])),
            "agents": refused(lambda: session.Agent.paginated_list("ALIVE")),
            "domains": refused(session.Domain.list),
            "users": _page(session.User.paginated_list()),
            "keypairs": _page(session.KeyPair.paginated_list()),
            "recalculate": refused(session.Resource.recalculate_usage),
            "status": session.Manager.status()["active_sessions"],
        }


TEMPLATE = """
api_version: "6"
kind: taskTemplate
metadata: {name: nightly, tag: of-template}
spec:
  session_type: interactive
  kernel:
    image: python
    environ: {FROM_TPL: "yes"}
    run: {bootstrap: "echo booted > /home/work/boot.txt"}
    git: null
  scaling_group: default
  mounts: {}
  resources: {cpu: "1", mem: "256m"}
"""


def templates() -> dict[str, Any]:
    told: dict[str, Any] = {}
    with Session() as session:
        made = session.SessionTemplate.create(TEMPLATE)
        told["listed"] = [
            (one["name"], one["is_owner"], one["id"] == made.template_id)
            for one in session.SessionTemplate.list_templates()
        ]
        told["json"] = json.loads(made.get("json"))["template"]
        told["again"] = refused(lambda: session.SessionTemplate.create(TEMPLATE))
        told["put"] = made.put(made.get("yaml").replace("of-template", "of-put"))
        o = session.ComputeSession.create_from_template(made.template_id, name="made-of-it", envs={"MORE": "1"})
        told["status"] = o.status
        code = "import os; print(os.environ['FROM_TPL'], os.environ['MORE'], open('boot.txt').read().strip())"
        told["ran"] = o.execute(None, code)["console"]
        told["tag"] = o.get_info()["tag"]
        told["nothing"] = refused(lambda: session.SessionTemplate.create("kind: nothing"))
        o.destroy()
        told["deleted"] = made.delete()
        told["gone"] = refused(lambda: made.get("json"))
    return told


def resources() -> dict[str, Any]:
    with Session() as session:
        return {
            "presets": session.Resource.list(),
            "check": session.Resource.check_presets(),
            "slots": session.Resource.get_resource_slots(),
            "folder types": session.Resource.get_vfolder_types(),
            "registries": session.Resource.get_docker_registries(),
            "month": session.Resource.usage_per_month(sys.argv[2], []),
            "recalculated": session.Resource.recalculate_usage(),
            "status": session.Manager.status(),
            "announcement": session.Manager.get_announcement(),
            "freeze": refused(session.Manager.freeze),
        }


def folders() -> dict[str, Any]:
    told: dict[str, Any] = {}
    with Session() as session:
        told["hosts"] = session.VFolder.list_hosts()
        told["types"] = session.VFolder.list_allowed_types()
        told["made"] = session.VFolder.create("data", quota="0")
        folder = session.VFolder("data")
        folder.mkdir("a/b", parents=True)
        told["again"] = refused(lambda: folder.mkdir("a/b"))
        folder.mkdir("a/b", exist_ok=True)
        o = session.ComputeSession.get_or_create(IMAGE, name="with-folder", resources=SIZE, mounts=["data"])
        told["ran"] = o.execute(None, "print(open('data/one.txt', 'w').write('one'))")["console"]
        folder.move_file("one.txt", "a/two.txt")
        folder.rename_file("a/two.txt", "three.txt")
        told["files"] = [(one["name"], one["type"], one["size"]) for one in folder.list_files("a")["items"]]
        told["listed"] = [(one["name"], one["is_owner"], one["permission"]) for one in session.VFolder.list()]
        told["info"] = folder.info()
        folder.delete_files(["a/three.txt"])
        told["left"] = [one["name"] for one in folder.list_files("a")["items"]]
        told["in use"] = refused(folder.delete)
        o.destroy()
        folder.rename("data-2")
        told["group"] = refused(lambda: session.VFolder.create("theirs", group="default"))
        told["transfer"] = refused(lambda: folder.download(["a/x"]))
        folder.delete()
        told["after"] = session.VFolder.list()
    return told


SERVER = """
import http.server, os, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("path " + self.path).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""


def services(name: str) -> dict[str, Any]:
    with Session() as session:
        o = session.ComputeSession(name)
        told: dict[str, Any] = {"unknown": refused(lambda: o.start_service("no-such-thing"))}
        o.execute(None, SERVER)
        begun = o.start_service("http", port=8123)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(begun["wsproxy_addr"]) as answer:
            told["page"] = answer.read().decode()
        told["token"] = begun["token"] in begun["wsproxy_addr"]
        return told


async def tunnel(name: str) -> dict[str, Any]:
    """Several requests over one tunnel, and several tunnels at once, to what runs as the service `http`."""
    told: dict[str, Any] = {}
    async with AsyncSession():

        async def ask(path: str) -> str:
            from ai.backend.client.request import Request

            request = Request("GET", f"/stream/session/{name}/tcpproxy", b"", params={"app": "http"},
                              content_type="application/json")  # fmt: skip
            async with request.connect_websocket() as ws:
                await ws.send_bytes(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                got = b""
                async for message in ws:
                    if message.type != aiohttp.WSMsgType.BINARY:
                        break
                    got += message.data
                return got.partition(b"\r\n\r\n")[2].decode()

        told["pages"] = await asyncio.gather(*(ask(f"/{number}") for number in range(5)))
    return told


async def terminal(name: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    async with AsyncSession() as session, session.ComputeSession(name).stream_pty() as pty:

        async def say(**message: Any) -> None:
            await pty.send_str(json.dumps(message))

        async def type_in(line: str) -> None:
            await say(type="stdin", chars=base64.b64encode(f"{line}\n".encode()).decode())

        async def until(mark: bytes) -> str:
            got = b""
            async for message in pty:
                said = json.loads(message.data)
                if said["type"] == "error":
                    told["error"] = said["reason"]
                else:
                    got += base64.b64decode(said["data"])
                if mark in got:
                    return got.decode()
            return got.decode()

        await say(type="resize", rows=31, cols=101)
        await say(type="ping")
        await say(type="nonsense")
        await type_in("echo pty-$((40+2)); stty size; echo over-$((1))")
        told["first"] = await until(b"over-1")
        await type_in("cd /tmp; export KEPT=$$; echo kept > /home/work/kept.txt; echo set-$((2))")
        await until(b"set-2")
        await say(type="restart")
        await type_in("pwd; cat kept.txt; echo still-$((3)); exit")
        told["second"] = await until(b"\0never")
    return told


async def events(name: str) -> dict[str, Any]:
    """All that is said of a session from its creation to its end."""
    seen: list[str] = []
    async with AsyncSession() as session:
        o = await session.ComputeSession.get_or_create(IMAGE, name=name, resources=SIZE, enqueue_only=True)
        async with o.listen_events() as stream:
            async for event in stream:
                seen.append(event.event)
                if event.event == "session_started":
                    await o.destroy()
                if event.event == "session_terminated":
                    break
    return {"seen": seen}


step = globals()[sys.argv[1]]
arguments = sys.argv[2:] if sys.argv[1] in ("start", "end", "services", "tunnel", "terminal", "events") else []
answer = step(*arguments)
print(json.dumps(asyncio.run(answer) if asyncio.iscoroutine(answer) else answer, default=str))
