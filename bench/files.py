"""1 GiB up and down through all hops (client, API, agent, container), against the Engine's put_archive and get_archive."""

from __future__ import annotations

import http.client
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from bench.http import Client
from bench.installation import Installation
from bench.report import Row

SIZE = 1 << 30
ROUNDS = 2
_CHUNK = 1 << 20


def run(installation: Installation) -> Iterator[Row]:
    client, engine = Client.of(installation), docker.from_env(timeout=300)
    body = {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}}
    session = client.ask("POST", "/v1/sessions?wait=60", body)
    # The Engine refuses archives on a read-only root, so its reference gets a plain container of the same image.
    plain = engine.containers.create("moorage/python:3.11", ["sleep", "600"], network_mode="none")
    plain.start()
    try:
        with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
            source, archive = Path(folder) / "big", Path(folder) / "big.tar"
            _fill(source)
            with tarfile.open(archive, "w") as tar:
                tar.add(source, "big")
            ups, downs, puts, gets = [], [], [], []
            for _ in range(ROUNDS):
                ups.append(_timed(lambda: _upload(installation, session["id"], source)))
                puts.append(_timed(lambda: _put(plain, archive)))
                downs.append(_timed(lambda: _download(installation, session["id"])))
                gets.append(_timed(lambda: _get(plain)))
    finally:
        plain.remove(force=True)
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()
        engine.close()
    yield _row("1 GiB up", ups, puts, "put_archive")
    yield _row("1 GiB down", downs, gets, "get_archive")


def _row(name: str, ours: list[float], reference: list[float], reference_is: str) -> Row:
    mib = SIZE / (1 << 20)
    return Row(
        name=name,
        ours=mib / min(ours),
        reference=mib / min(reference),
        unit="MiB/s",
        bound="ratio >= 1.0",
        reference_is=f"Engine {reference_is}",
        note=f"best of {ROUNDS}, in turn; client, API, agent and container on this machine",
    )


def _fill(path: Path) -> None:
    block = bytes(range(256)) * (_CHUNK // 256)
    with path.open("wb") as file:
        for _ in range(SIZE // _CHUNK):
            file.write(block)


def _timed(work: object) -> float:
    started = time.perf_counter()
    assert callable(work)
    work()
    return time.perf_counter() - started


def _upload(installation: Installation, session_id: str, source: Path) -> None:
    connection = http.client.HTTPConnection(installation.host, installation.port, blocksize=_CHUNK)
    headers = {"Authorization": f"Bearer {installation.bearer}", "Content-Length": str(SIZE)}
    with source.open("rb") as file:
        connection.request("PUT", f"/v1/sessions/{session_id}/files/big", file, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (200, 201), said
    connection.close()


def _download(installation: Installation, session_id: str) -> None:
    connection = http.client.HTTPConnection(installation.host, installation.port)
    headers = {"Authorization": f"Bearer {installation.bearer}"}
    connection.request("GET", f"/v1/sessions/{session_id}/files/big", headers=headers)
    answer = connection.getresponse()
    buffer, got = bytearray(_CHUNK), 0
    while count := answer.readinto(buffer):
        got += count
    assert got == SIZE, got
    connection.close()


def _put(container: object, archive: Path) -> None:
    with archive.open("rb") as file:
        assert container.put_archive("/home/work", file)  # type: ignore[attr-defined]


def _get(container: object) -> None:
    stream, _ = container.get_archive("/home/work/big", chunk_size=_CHUNK)  # type: ignore[attr-defined]
    assert sum(len(chunk) for chunk in stream) >= SIZE
