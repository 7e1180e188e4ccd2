"""`print(1)` through REST, audited and idempotent, against jupyter_client with ipykernel on the same Python."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

#: The two take turns in blocks, so that each finds its processes as a user does who runs one cell after another.
BLOCKS, CALLS = 12, 50


def run(installation: Installation) -> Iterator[Row]:
    client = Client.of(installation)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}})
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel()
    jupyter = kernel.blocking_client()
    jupyter.start_channels()
    jupyter.wait_for_ready(timeout=60)
    try:
        path = f"/v1/sessions/{session['id']}/execute"
        request = client.request("POST", path, {"code": "print(1)", "mode": "query"})
        ours: list[float] = []
        reference: list[float] = []
        for block in range(BLOCKS + 1):
            mine = [_ours(client, request) for _ in range(CALLS)]
            theirs = [_theirs(jupyter) for _ in range(CALLS)]
            if block:  # the first warms both up
                ours += mine
                reference += theirs
    finally:
        jupyter.stop_channels()
        kernel.shutdown_kernel(now=True)
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()
    yield Row(
        name="execute print(1), p50",
        ours=p50(ours),
        reference=p50(reference),
        unit="ms",
        bound="<= 2, ratio <= 0.5",
        reference_is="jupyter_client, no container",
        note=f"p95 {percentile(ours, 0.95):.2f}, p99 {percentile(ours, 0.99):.2f} ms over {BLOCKS * CALLS} calls",
    )


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
