"""Services on the whole product: Jupyter and a notebook's cell through the proxy, and requests balanced over a cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from uuid import uuid4

import aiohttp
import docker
import moorage
import pytest

import manager
from actions import StartServiceAction
from bench.installation import MOORAGE
from domain import AccessKey
from tests.jupyter import DECLARED, ensure_image
from tests.product.conftest import Installation

WHO = """
import http.server as h, socket, sys
class H(h.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = socket.gethostname().encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
h.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


@pytest.fixture(scope="module")
def notebook_image(installation: Installation, engine: docker.DockerClient, kernel_image: str) -> str:
    name = ensure_image(engine, kernel_image)
    label = f"moorage.service.pages={DECLARED}"
    assert installation.run("admin", "image", "register", name, "--label", label).returncode == 0
    return name


@pytest.fixture
def notebook(client: moorage.Client, notebook_image: str) -> Iterator[moorage.Session]:
    with client.sessions.create("my-python-session", image=notebook_image, cpu=1, mem="1g") as session:
        yield session


async def execute(kernel: aiohttp.ClientWebSocketResponse, code: str) -> str:
    """What a cell prints, as a notebook asks for it."""
    header = {"msg_id": uuid4().hex, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
    content = {"code": code, "silent": False}
    await kernel.send_json(
        {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}
    )
    printed = ""
    async for message in kernel:
        said = json.loads(message.data)
        if said["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        if said["msg_type"] == "stream":
            printed += said["content"]["text"]
        if said["msg_type"] == "execute_reply":
            break
    return printed


@pytest.mark.long
async def test_a_cell_is_executed_through_the_proxy(installation: Installation, notebook: moorage.Session) -> None:
    """The sixth usage example, word for word but for the imports; what it prints is opened, as a browser would."""
    async with manager.open_service(installation.data_dir) as service:
        processors = service.processors
        user = SimpleNamespace(key=AccessKey(installation.access_key))
        action = StartServiceAction(
            session_name="my-python-session",
            access_key=user.key,
            service="jupyter",
            port=8888,
            arguments=["--no-browser", "--ip=0.0.0.0"],
            login_session_token="user-token",
        )

        result = await processors.start_service.wait_for_complete(action)
        print(f"Service URL: {result.wsproxy_addr}")
    connector, jar = aiohttp.TCPConnector(force_close=True), aiohttp.CookieJar(unsafe=True)
    async with asyncio.timeout(60), aiohttp.ClientSession(connector=connector, cookie_jar=jar) as http:
        async with http.get(result.wsproxy_addr + "api/status") as response:
            assert response.status == 200, await response.text()
            base = str(response.url).removesuffix("api/status")
        async with http.get(base + "tree"):  # any page gives the token that the rest asks for
            pass
        token = next((cookie.value for cookie in jar if cookie.key == "_xsrf"), "")
        async with http.post(base + "api/kernels", json={}, headers={"X-XSRFToken": token}) as response:
            assert response.status == 201, await response.text()
            kernel_id = (await response.json())["id"]
        origin = {"Origin": base.split("/proxy/")[0]}
        async with http.ws_connect(f"{base}api/kernels/{kernel_id}/channels", headers=origin) as kernel:
            assert await execute(kernel, "x = 6 * 7") == ""
            assert await execute(kernel, "print(x)") == "42\n"
    assert [(s.name, s.health) for s in notebook.services.list()] == [("jupyter", "healthy")]
    pages = notebook.services.start("pages")
    assert (pages.info.kind, pages.info.port) == ("pages", 9111)


def test_a_local_port_leads_into_a_session(installation: Installation, session: moorage.Session) -> None:
    import os
    import urllib.request

    session.services.start("who", port=8101, command=["python3", "-c", WHO, "{port}"])
    environ = {**os.environ, "MOORAGE_CONFIG": str(installation.config)}
    command = [MOORAGE, "port-forward", session.name, "0:8101"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as forwarding:
        try:
            assert forwarding.stdout is not None
            address = forwarding.stdout.readline().split(" ")[0]
            for _ in range(3):
                with urllib.request.urlopen(f"http://{address}/") as answer:
                    assert answer.read()
        finally:
            forwarding.terminate()
    service = session.services.list()[0]
    assert (service.name, service.health, service.instances[0].kernel) == ("who", "healthy", "main1")
    session.services.stop("who")
    assert session.services.list() == []


def test_requests_go_round_a_worker_that_is_killed(client: moorage.Client, engine: docker.DockerClient) -> None:
    with client.sessions.create_cluster(workers=2, cpu=0.5, mem="256m") as session:
        started = session.services.start("who", port=8102, command=["python3", "-c", WHO, "{port}"], kernels="all")
        assert {i.kernel for i in session.services.list()[0].instances} == {"main1", "worker1", "worker2"}
        answers, statuses = asyncio.run(_ask(started.url, engine, str(session.id)))
    assert set(statuses) == {200}, "somebody saw that a worker was killed"
    assert answers == {"main1", "worker1", "worker2"}, "all kernels were asked"
    assert len(statuses) == 1000


async def _ask(url: str, engine: docker.DockerClient, session_id: str) -> tuple[set[str], list[int]]:
    """1,000 requests, ten at a time; after the 300th one worker is killed."""
    answers: set[str] = set()
    statuses: list[int] = []
    asked = iter(range(1000))
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        async with http.get(url) as response:
            base = str(response.url)

        async def one() -> None:
            for number in asked:
                if number == 300:
                    await asyncio.to_thread(_kill_a_worker, engine, session_id)
                async with http.get(base) as response:
                    statuses.append(response.status)
                    answers.add(await response.text())

        async with asyncio.timeout(60):
            await asyncio.gather(*(one() for _ in range(10)))
    return answers, statuses


def _kill_a_worker(engine: docker.DockerClient, session_id: str) -> None:
    containers = engine.containers.list(filters={"label": f"moorage.session={session_id}"})
    worker = next(one for one in containers if one.attrs["Config"]["Hostname"].startswith("worker"))
    worker.kill()


def test_one_word_is_a_command_for_a_shell(
    installation: Installation, client: moorage.Client, kernel_image: str
) -> None:
    with client.sessions.create(image=kernel_image, cpu=1, mem="256m") as session:
        started = installation.run(
            *("service", "start", session.name, "docs", "--port", "8123", "--json", "--"),
            "cd /tmp && echo $((6 * 7)) > answer && exec python3 -m http.server 8123 --bind 127.0.0.1",
        )
        assert started.returncode == 0, started.stderr
        assert session.commands.run("cat /tmp/answer").stdout == "42\n"
        stopped = installation.run("service", "stop", session.name, "docs")
        assert stopped.returncode == 0, stopped.stderr
