"""`print(1)` in one session while another does its worst, over the same call in the same run while nobody does anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

#: Quiet and beside the bomb; between them the bomb gets under way.
CALLS, WARM_UP, UNDER_WAY_SECONDS = 300, 30, 1.5
MOST_SECONDS: Final = 60.0  #: should nobody be there any more to end it
#: Each goes on until it is ended.
BOMBS: Final = {
    "fork": "python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'",
    "memory": "while :; do python3 -c 'a = []\nwhile True: a.append(bytearray(8 << 20))'; done",
    "CPU": "for i in $(seq 64); do (while :; do :; done) & done; wait",
    "disk": "while :; do dd if=/dev/zero of=big bs=1M count=256 conv=fsync 2>/dev/null; done",
    "files": "while :; do mkdir -p d; (cd d && seq 5000 | xargs touch); rm -rf d; done",
    "log": "yes ''",
    "output": "yes $(head -c 60000 /dev/zero | tr '\\0' x)",
}


def run(installation: Installation) -> Iterator[Row]:
    client = Client.of(installation)
    neighbour = _session(client, 256)
    request = client.request("POST", f"/v1/sessions/{neighbour}/execute", {"code": "print(1)", "mode": "query"})
    try:
        _calls(client, request, WARM_UP)
        for name, code in BOMBS.items():
            bomber = _session(client, 512)
            try:
                quiet = _calls(client, request, CALLS)
                asked = {"code": code, "mode": "batch", "wait": 0, "timeout": MOST_SECONDS}
                client.ask("POST", f"/v1/sessions/{bomber}/execute", asked)
                time.sleep(UNDER_WAY_SECONDS)
                beside = _calls(client, request, CALLS)
                said = client.ask("GET", f"/v1/sessions/{bomber}")
            finally:
                client.ask("DELETE", f"/v1/sessions/{bomber}?forced=true&wait=60")
            yield _row(name, beside, quiet, said)
    finally:
        client.ask("DELETE", f"/v1/sessions/{neighbour}?wait=60")
        client.close()


def _row(name: str, beside: list[float], quiet: list[float], bomber: dict[str, Any]) -> Row:
    slow, usual = percentile(beside, 0.99), percentile(quiet, 0.99)
    ended = "" if bomber["status"] == "RUNNING" else f"; the bomb was {bomber['status']}: {bomber['status_reason']}"
    return Row(
        name=f"execute beside a {name} bomb, p50",
        ours=p50(beside),
        reference=p50(quiet),
        unit="ms",
        bound="ratio <= 2",
        reference_is="the same, quiet, in the same run",
        note=f"p99 {slow:.2f} over {usual:.2f} ms: {slow / usual:.2f}{ended}",
    )


def _session(client: Client, memory_mib: int) -> str:
    wanted = {"image": "python", "resource_slots": {"cpu": 1, "mem": memory_mib}}
    return str(client.ask("POST", "/v1/sessions?wait=60", wanted)["id"])


def _calls(client: Client, request: bytes, number: int) -> list[float]:
    taken = []
    for _ in range(number):
        began = time.perf_counter()
        status, answer = client.send(request)
        taken.append((time.perf_counter() - began) * 1000)
        assert status == 200, answer
    return taken
