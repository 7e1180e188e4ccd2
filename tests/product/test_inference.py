"""Inference sessions on real containers: a service in every kernel, and new kernels for those that die."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable

import moorage
import pytest
from moorage import errors

SERVES = {"name": "api", "command": ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"], "port": 8000}


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def healthy(session: moorage.Session) -> int:
    [service] = session.services.list()
    return sum(instance.state == "healthy" for instance in service.instances)


def test_a_dead_worker_is_replaced_and_all_serve(client: moorage.Client, engine_host: str) -> None:
    with client.sessions.create(
        "model", session_type="inference", serves=SERVES, cluster_size=2, cpu=0.2, mem="96m"
    ) as session:
        until(lambda: session.services.list() and healthy(session) == 2)
        opened = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"Directory listing" in opened.open(session.services.open("api").url, timeout=10).read()

        [worker] = [kernel for kernel in session.refresh().info.kernels if kernel.role == "worker"]
        container = f"moorage-{worker.id.replace('-', '')}-1"
        subprocess.run(["docker", "-H", engine_host, "kill", container], check=True, capture_output=True)
        until(lambda: worker.id not in [kernel.id for kernel in session.refresh().info.kernels])
        until(lambda: healthy(session) == 2)
        assert session.wait_until("RUNNING", timeout=10).info.cluster_size == 2
        degraded = [entry for entry in session.history() if entry.event in ("degrade", "recover")]
        assert [entry.status for entry in degraded] == ["RUNNING_DEGRADED", "RUNNING"]

        session.modify(cluster_size=3)
        until(lambda: healthy(session) == 3)
        session.modify(cluster_size=1)
        until(lambda: healthy(session) == 1)


def test_what_cannot_serve_is_refused(client: moorage.Client) -> None:
    for fields in (
        {"session_type": "inference"},
        {"session_type": "interactive", "serves": SERVES},
        {"session_type": "inference", "serves": {"name": "api", "command": ["x"]}},
        {"session_type": "inference", "serves": {"name": "api", "port": 8000}},
    ):
        with pytest.raises(errors.InvalidConfiguration):
            client.sessions.create("model", **fields)
    assert client.sessions.list(name="model") == []
