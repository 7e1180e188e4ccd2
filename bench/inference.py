"""A warm call through the front of inference.sh, as its client makes it, against a bare aiohttp worker in a like container."""

from __future__ import annotations

import io
import json
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, Final

import docker

from bench.create import configuration
from bench.installation import Installation
from bench.report import Row, p50, percentile

#: The two take turns in blocks, so that each finds its processes as somebody does who makes one call after another.
BLOCKS, CALLS = 10, 40
APP: Final = """
class App:
    async def setup(self):
        self.count = 0

    async def run(self, input):
        self.count += 1
        return {"count": self.count, "echo": input}
"""
WORKER: Final = f"""
from aiohttp import web
{APP}
app = App()

async def call(request):
    return web.json_response(await app.run((await request.json())["input"]))

async def main():
    await app.setup()
    made = web.Application()
    made.router.add_post("/", call)
    return made

web.run_app(main(), host="0.0.0.0", port=5001, print=None)
"""
_BOUNDARY: Final = "moorage-bench"


def run(installation: Installation) -> Iterator[Row]:
    http = HTTPConnection(installation.host, installation.port, timeout=120)
    head = {"Authorization": f"Bearer {installation.bearer}"}
    _deploy(http, head)
    session = _ask(http, head, {"app": "bench", "input": {}, "session": "new", "session_timeout": 600, "wait": True})
    session_id = session["session_id"]
    ours: list[float] = []
    held: list[float] = []
    reference: list[float] = []
    try:
        with _worker(session_id) as worker:
            for block in range(BLOCKS + 1):
                mine = [_streamed(http, head, session_id) for _ in range(CALLS)]
                at_once = [_held(http, head, session_id) for _ in range(CALLS)]
                theirs = [_theirs(worker) for _ in range(CALLS)]
                if block:  # the first warms all up
                    ours, held, reference = ours + mine, held + at_once, reference + theirs
    finally:
        http.request("DELETE", f"/compat/inference/sessions/{session_id}", headers=head)
        http.getresponse().read()
        http.close()
    against = "bare aiohttp worker in such a container"
    note = f"p95 {percentile(ours, 0.95):.2f} ms over {BLOCKS * CALLS} calls; asked for and then followed, as the client does"
    yield Row(
        name="warm call, inference front, p50",
        ours=p50(ours),
        reference=p50(reference),
        unit="ms",
        reference_is=against,
        note=note,
    )
    note = f"p95 {percentile(held, 0.95):.2f} ms; answered in one request"
    yield Row(
        name="warm call, inference front with wait, p50",
        ours=p50(held),
        reference=p50(reference),
        unit="ms",
        reference_is=against,
        note=note,
    )


def _deploy(http: HTTPConnection, head: dict[str, str]) -> None:
    said = json.dumps({"name": "bench", "image": "python", "entry": "app:App"})
    parts = (("app", "application/json", said.encode()), ("archive", "application/gzip", _archive()))
    body = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, kind, content in parts
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    http.request("POST", "/v1/apps", body + f"--{_BOUNDARY}--\r\n".encode(), {**head, **kind})
    answer = http.getresponse()
    told = answer.read()
    assert answer.status == 201, told


def _archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("app.py")
        info.size = len(APP.encode())
        archive.addfile(info, io.BytesIO(APP.encode()))
    return out.getvalue()


def _ask(http: HTTPConnection, head: dict[str, str], body: Any) -> Any:
    http.request("POST", "/compat/inference/apps/run", json.dumps(body), {**head, "Content-Type": "application/json"})
    answer = http.getresponse()
    told = json.loads(answer.read())
    assert answer.status == 200, told
    return told["data"]


def _streamed(http: HTTPConnection, head: dict[str, str], session_id: str) -> float:
    started = time.perf_counter()
    task = _ask(http, head, {"app": "bench", "input": {"n": 1}, "session": session_id})
    http.request("GET", f"/compat/inference/tasks/{task['id']}/stream", headers=head)
    last = json.loads(http.getresponse().read().splitlines()[-1])
    taken = (time.perf_counter() - started) * 1000
    assert last["output"]["echo"] == {"n": 1}, last
    return taken


def _held(http: HTTPConnection, head: dict[str, str], session_id: str) -> float:
    started = time.perf_counter()
    task = _ask(http, head, {"app": "bench", "input": {"n": 1}, "session": session_id, "wait": True})
    taken = (time.perf_counter() - started) * 1000
    assert task["output"]["echo"] == {"n": 1}, task
    return taken


def _theirs(http: HTTPConnection) -> float:
    started = time.perf_counter()
    http.request("POST", "/", json.dumps({"input": {"n": 1}}), {"Content-Type": "application/json"})
    told = json.loads(http.getresponse().read())
    taken = (time.perf_counter() - started) * 1000
    assert told["echo"] == {"n": 1}, told
    return taken


@contextmanager
def _worker(session_id: str) -> Iterator[HTTPConnection]:
    """The same class behind aiohttp, on the session's image, mounts, network and limits."""
    engine = docker.from_env(timeout=60)
    like = configuration(engine, session_id)
    host_config = dict(like["HostConfig"])  # type: ignore[call-overload]
    host_config["Binds"] = [*(host_config.get("Binds") or []), f"{sysconfig.get_path('purelib')}:/bench:ro"]
    made = engine.api.create_container_from_config(  # type: ignore[no-untyped-call]
        {
            **like,
            "Entrypoint": ["python3", "-c", WORKER],
            "Env": ["PYTHONPATH=/bench", "HOME=/tmp"],
            "HostConfig": host_config,
        },
        name=f"moorage-bench-worker-{time.time_ns()}",
    )["Id"]
    try:
        engine.api.start(made)
        networks = engine.api.inspect_container(made)["NetworkSettings"]["Networks"]
        yield _connected(next(iter(networks.values()))["IPAddress"])
    finally:
        engine.api.remove_container(made, force=True)
        engine.close()


def _connected(address: str) -> HTTPConnection:
    until = time.monotonic() + 60
    while True:
        http = HTTPConnection(address, 5001, timeout=60)
        try:
            http.connect()
            return http
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
