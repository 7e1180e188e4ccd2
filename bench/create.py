"""Create to RUNNING, against the Engine API alone: the same image, mounts, network, profile and interpreter."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import docker

from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

ROUNDS = 12
#: Of a container's configuration, what the reference takes over; the rest is the engine's own.
_HOST_CONFIG = (
    "Binds Mounts NetworkMode CapDrop SecurityOpt ReadonlyRootfs Tmpfs Memory MemorySwap CpuPeriod CpuQuota PidsLimit ShmSize"
    " LogConfig Init RestartPolicy Ulimits"
).split()


def run(installation: Installation) -> Iterator[Row]:
    """The two take turns, so that the machine's mood falls on both. Both clocks start at the request."""
    client, engine = Client.of(installation), docker.from_env(timeout=60)
    body = {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}}
    model = client.ask("POST", "/v1/sessions?wait=60", body)
    try:
        like = configuration(engine, model["id"])
        _reference(engine, like, 0)
        ours, reference = [], []
        for turn in range(1, ROUNDS + 1):
            started = time.perf_counter()
            session = client.ask("POST", "/v1/sessions?wait=60", body)
            ours.append((time.perf_counter() - started) * 1000)
            assert session["status"] == "RUNNING", session
            client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
            reference.append(_reference(engine, like, turn) * 1000)
    finally:
        client.ask("DELETE", f"/v1/sessions/{model['id']}?wait=60")
        client.close()
        engine.close()
    yield Row(
        name="create to RUNNING, p50",
        ours=p50(ours),
        reference=p50(reference),
        unit="ms",
        bound="ratio <= 1.3",
        reference_is="Engine API: create, start, first output",
        note=f"p95 {percentile(ours, 0.95):.0f} against {percentile(reference, 0.95):.0f} ms, {ROUNDS} rounds in turn",
    )


def configuration(engine: docker.DockerClient, session_id: str) -> dict[str, object]:
    """What the product asked the engine for, read back from one of its containers."""
    found = engine.containers.list(filters={"label": f"moorage.session={session_id}"})[0].attrs
    host_config = {
        name: found["HostConfig"][name] for name in _HOST_CONFIG if found["HostConfig"].get(name) is not None
    }
    command = [*(found["Config"]["Entrypoint"] or []), *(found["Config"]["Cmd"] or [])]
    # The interpreter with its loader and its flags, without the runner that it is given to run.
    interpreter = list(itertools.takewhile(lambda word: not word.endswith("__main__.py"), command))
    return {
        "Image": found["Config"]["Image"],
        "User": found["Config"]["User"],
        "Entrypoint": [*interpreter, "-c", "print(1, flush=True)"],
        "Cmd": [],
        "HostConfig": host_config,
    }


def _reference(engine: docker.DockerClient, configuration: dict[str, object], turn: int) -> float:
    """Seconds from the create request to the first byte that the process prints."""
    api, started = engine.api, time.perf_counter()
    made = api.create_container_from_config(  # type: ignore[no-untyped-call]
        configuration, name=f"moorage-bench-{turn}-{time.time_ns()}"
    )["Id"]
    try:
        output = api.attach(made, stdout=True, stream=True, logs=True)
        api.start(made)
        first = next(iter(output))
        assert first.strip() == b"1", first
        return time.perf_counter() - started
    finally:
        api.remove_container(made, force=True)
