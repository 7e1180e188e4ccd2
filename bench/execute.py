"""`print(1)` through REST, audited and idempotent, against jupyter_client with ipykernel in a container like a session's."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager

import docker
from jupyter_client.blocking.client import BlockingKernelClient

from bench.create import configuration
from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

#: The two take turns in blocks, so that each finds its processes as a user does who runs one cell after another.
BLOCKS, CALLS = 12, 50
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def run(installation: Installation) -> Iterator[Row]:
    client = Client.of(installation)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}})
    path = f"/v1/sessions/{session['id']}/execute"
    request = client.request("POST", path, {"code": "print(1)", "mode": "query"})
    ours: list[float] = []
    reference: list[float] = []
    try:
        with _kernel(session["id"]) as jupyter:
            for block in range(BLOCKS + 1):
                mine = [_ours(client, request) for _ in range(CALLS)]
                theirs = [_theirs(jupyter) for _ in range(CALLS)]
                if block:  # the first warms both up
                    ours += mine
                    reference += theirs
    finally:
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()
    yield Row(
        name="execute print(1), p50",
        ours=p50(ours),
        reference=p50(reference),
        unit="ms",
        bound="<= 2, ratio <= 0.5",
        reference_is="jupyter_client, ipykernel in such a container",
        note=f"p95 {percentile(ours, 0.95):.2f}, p99 {percentile(ours, 0.99):.2f} ms over {BLOCKS * CALLS} calls",
    )


@contextmanager
def _kernel(session_id: str) -> Iterator[BlockingKernelClient]:
    """ipykernel on the session's image, mounts, network and limits, and a client of it on this side."""
    engine, ports = docker.from_env(timeout=60), dict(zip(PORTS, range(5001, 5006), strict=True))
    like, key = configuration(engine, session_id), "bench"
    host_config = dict(like["HostConfig"])  # type: ignore[call-overload]
    host_config["Binds"] = [*(host_config.get("Binds") or []), f"{sysconfig.get_path('purelib')}:/bench:ro"]
    words = [f"--IPKernelApp.{name}={port}" for name, port in ports.items()]
    made = engine.api.create_container_from_config(  # type: ignore[no-untyped-call]
        {
            **like,
            "Entrypoint": ["python3", "-m", "ipykernel_launcher", "--ip=0.0.0.0", f"--Session.key={key}", *words],
            "Env": ["PYTHONPATH=/bench", "HOME=/tmp"],
            "HostConfig": host_config,
        },
        name=f"moorage-bench-kernel-{time.time_ns()}",
    )["Id"]
    try:
        engine.api.start(made)
        networks = engine.api.inspect_container(made)["NetworkSettings"]["Networks"]
        jupyter = BlockingKernelClient()
        jupyter.load_connection_info(
            {"ip": next(iter(networks.values()))["IPAddress"], "transport": "tcp", "key": key, **ports}  # type: ignore[typeddict-item]
        )
        jupyter.start_channels()
        try:
            jupyter.wait_for_ready(timeout=60)
            yield jupyter
        finally:
            jupyter.stop_channels()
    finally:
        engine.api.remove_container(made, force=True)
        engine.close()


def _ours(client: Client, request: bytes) -> float:
    started = time.perf_counter()
    status, answer = client.send(request)
    taken = (time.perf_counter() - started) * 1000
    assert status == 200, answer
    assert b'"stdout":"1\\n"' in answer, answer
    return taken


def _theirs(jupyter: BlockingKernelClient) -> float:
    started = time.perf_counter()
    jupyter.execute_interactive("print(1)", output_hook=lambda _: None)
    return (time.perf_counter() - started) * 1000
