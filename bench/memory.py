"""What the daemons take: proportional set size, which counts shared pages once, idle and after 10,000 requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.http import Client
from bench.installation import Installation
from bench.report import Row

REQUESTS = 10_000


def run(installation: Installation) -> Iterator[Row]:
    idle = {daemon: _pss_mib(installation, daemon) for daemon in ("manager", "agent")}
    client = Client.of(installation)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}})
    execute = client.request("POST", f"/v1/sessions/{session['id']}/execute", {"code": "1", "mode": "query"})
    read = client.request("GET", f"/v1/sessions/{session['id']}")
    for number in range(REQUESTS):
        status, said = client.send(execute if number % 5 == 0 else read)
        assert status == 200, said
    client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
    client.close()
    for daemon, bound in (("manager", "< 200"), ("agent", "")):
        after = _pss_mib(installation, daemon)
        yield Row(
            name=f"memory of the {daemon}'s processes, PSS",
            ours=after,
            reference=idle[daemon],
            unit="MiB",
            bound=bound,
            reference_is="the same, idle",
            note=f"after {REQUESTS} requests, a fifth of them executions",
        )


def _pss_mib(installation: Installation, daemon: str) -> float:
    total = 0
    for process in installation.processes(daemon):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
