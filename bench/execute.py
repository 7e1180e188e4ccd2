"""`print(1)` through REST, audited and idempotent, against jupyter_client with ipykernel on the same Python."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jupyter_client.manager import KernelManager

from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

CALLS = 600


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
        ours, reference = [], []
        for turn in range(CALLS + 50):
            started = time.perf_counter()
            status, answer = client.send(request)
            between = time.perf_counter()
            assert status == 200, answer
            assert b'"stdout":"1\\n"' in answer, answer
            jupyter.execute_interactive("print(1)", output_hook=lambda _: None)
            ended = time.perf_counter()
            if turn >= 50:
                ours.append((between - started) * 1000)
                reference.append((ended - between) * 1000)
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
        note=f"p95 {percentile(ours, 0.95):.2f}, p99 {percentile(ours, 0.99):.2f} ms over {CALLS} calls",
    )
