"""1,000 small files up and down as one tar through all hops, in a session and in a volume, against plain tar in a bind mount."""

from __future__ import annotations

import http.client
import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import docker

from bench.http import Client
from bench.installation import Installation
from bench.report import Row

FILES = 1000
ROUNDS = 5
_USER = 1000


def run(installation: Installation) -> Iterator[Row]:
    client, engine = Client.of(installation), docker.from_env(timeout=300)
    volume = client.ask("POST", "/v1/volumes", {"name": "bench"})
    body = {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}, "mounts": [{"volume": "bench"}]}
    session = client.ask("POST", "/v1/sessions?wait=60", body)
    folder = Path(tempfile.mkdtemp(prefix="moorage-bench-", dir=installation.data_dir))
    bound = folder / "bound"
    bound.mkdir(mode=0o777)
    plain = engine.containers.run(
        "moorage/python:3.11", ["600"], entrypoint=["sleep"], user=f"{_USER}:{_USER}", network_mode="none",
        volumes={str(bound): {"bind": "/bound", "mode": "rw"}}, detach=True,
    )  # fmt: skip
    try:
        archive = _archive()
        (folder / "in.tar").write_bytes(archive)
        places = {"session": f"/v1/sessions/{session['id']}", "volume": f"/v1/volumes/{volume['id']}"}
        ups: dict[str, list[float]] = {name: [] for name in (*places, "tar")}
        downs: dict[str, list[float]] = {name: [] for name in (*places, "tar")}
        for number in range(ROUNDS):
            here = bound / str(number)
            here.mkdir()
            ups["tar"].append(_timed(partial(_tar, "xf", folder / "in.tar", here)))
            downs["tar"].append(_timed(partial(_tar, "cf", folder / "out.tar", here)))
            for name, base in places.items():
                ups[name].append(_timed(partial(_up, installation, base, f"r{number}", archive)))
                downs[name].append(_timed(partial(_down, installation, base, f"r{number}")))
            shutil.rmtree(here)
    finally:
        plain.remove(force=True)
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()
        engine.close()
    for name in places:
        yield _row(f"1,000 small files up, {name}", ups[name], ups["tar"])
        yield _row(f"1,000 small files down, {name}", downs[name], downs["tar"])


def _row(name: str, ours: list[float], reference: list[float]) -> Row:
    return Row(
        name=name,
        ours=FILES / min(ours),
        reference=FILES / min(reference),
        unit="files/s",
        bound="",
        reference_is="plain tar in a bind mount",
        note=f"best of {ROUNDS}, in turn; 1 to 8 KiB each in 20 folders; unpacked whole or not at all, every entry checked",
    )


def _archive() -> bytes:
    rng, made = random.Random(1), io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number in range(FILES):
            info = tarfile.TarInfo(f"d{number % 20:02}/file-{number:04}.txt")
            info.size = rng.randrange(1024, 8192)
            archive.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    return made.getvalue()


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _tar(what: str, archive: Path, folder: Path) -> None:
    subprocess.run(["tar", what, str(archive), "-C", str(folder), *([] if what == "xf" else ["."])], check=True)


def _up(installation: Installation, base: str, path: str, archive: bytes) -> None:
    said = json.loads(_asked(installation, f"{base}/files/unpack?path={path}", archive, "application/x-tar"))
    assert said["files"] == FILES, said


def _down(installation: Installation, base: str, path: str) -> None:
    body = json.dumps({"paths": [path]}).encode()
    got = len(_asked(installation, f"{base}/files/archive", body, "application/json"))
    assert got > FILES * 512, got


def _asked(installation: Installation, address: str, body: bytes, kind: str) -> bytes:
    connection = http.client.HTTPConnection(installation.host, installation.port, blocksize=1 << 20)
    headers = {"Authorization": f"Bearer {installation.bearer}", "Content-Type": kind}
    connection.request("POST", address, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == 200, said[:500]
    connection.close()
    return said
