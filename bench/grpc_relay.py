"""Messages of 64 MiB and of 100 bytes through the gRPC front, against the same service in its container asked directly."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import docker
import grpc
import moorage

from bench.grpc_front import front_process
from bench.installation import Installation
from bench.report import Row, p50
from manager.compat.grpc.sessions import meant
from manager.compat.grpc.wire import text, text_field

MIB: Final = 64
ROUNDS: Final = 7
SMALL_ROUNDS: Final = 300
PORT: Final = 50051
_CALL: Final = "/cuvis_ai.v1.CuvisAIService/"
_OPTIONS: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
#: In the container: gives back what it is given.
_ECHO: Final = f"""
import grpc
from concurrent import futures
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Echo(),), options={_OPTIONS!r})
server.add_insecure_port("0.0.0.0:{PORT}")
server.start()
server.wait_for_termination()
"""
_TEMPLATE: Final = {
    "session": {
        "image": "python",
        "resource_slots": {"cpu": 2, "mem": "2g"},
        "environ": {"PYTHONPATH": "/home/work/echo"},
        "mounts": [{"volume": "echo", "read_only": True}],
        "session_type": "inference",
        "serves": {"name": "echo", "port": PORT, "command": ["python3", "/home/work/echo/echo.py"]},
    }
}


def run(installation: Installation) -> Iterator[Row]:
    access_key, _, secret_key = installation.bearer.partition(".")
    with moorage.Client(endpoint=installation.endpoint, access_key=access_key, secret_key=secret_key) as client:
        client.volumes.create("echo").files.unpack(io.BytesIO(_packed()))
        client.templates.create("echo", _TEMPLATE)
    key = (("authorization", f"Bearer {installation.bearer}"),)
    with front_process(installation.data_dir, grpc_template="echo") as port:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as front:
            made = front.unary_unary(f"{_CALL}CreateSession")(b"", metadata=key)
            session = text_field(made, 1) or ""
            with grpc.insecure_channel(f"{_address(meant(session))}:{PORT}", options=_OPTIONS) as direct:
                ask = front.unary_unary(f"{_CALL}Inference")
                yield from _compare(
                    lambda data: ask(data, metadata=key), direct.unary_unary(f"{_CALL}Inference"), session
                )
            front.unary_unary(f"{_CALL}CloseSession")(made, metadata=key)


def _compare(ours: Callable[[bytes], Any], direct: Callable[[bytes], Any], session: str) -> Iterator[Row]:
    for size, rounds, shown in ((MIB << 20, ROUNDS, f"{MIB} MiB"), (100, SMALL_ROUNDS, "100 bytes")):
        message = text(1, session) + b"\x12" + _length(size) + bytes(size)
        pairs = [(_ms(ours, message), _ms(direct, message)) for _ in range(rounds + 1)][1:]
        yield Row(
            name=f"gRPC front, {shown} there and back",
            ours=p50([mine for mine, _ in pairs]),
            reference=p50([theirs for _, theirs in pairs]),
            unit="ms",
            bound="ratio <= 3.5" if size == MIB << 20 else "",
            reference_is="the same service, asked directly",
            note=f"p50 of {rounds}, in turn; the front takes each message whole before it passes it on, both ways",
        )


def _ms(ask: Callable[[bytes], Any], message: bytes) -> float:
    began = time.perf_counter()
    if len(ask(message)) != len(message):
        raise RuntimeError("what came back is not what was sent")
    return (time.perf_counter() - began) * 1000


def _length(size: int) -> bytes:
    found = b""
    while size >= 0x80:
        found += bytes([size & 0x7F | 0x80])
        size >>= 7
    return found + bytes([size])


def _address(session_id: UUID) -> str:
    engine = docker.from_env(timeout=60)
    [container] = engine.containers.list(filters={"label": f"moorage.session={session_id}"})
    networks = container.attrs["NetworkSettings"]["Networks"]
    engine.close()
    return str(next(iter(networks.values()))["IPAddress"])


def _packed() -> bytes:
    """grpcio as it is installed here, and the service."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("grpc", "typing_extensions"):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            path = Path(spec.origin)
            path = path.parent if path.name == "__init__.py" else path
            archive.add(path, path.name, filter=lambda one: None if "__pycache__" in one.name else one)
        entry = tarfile.TarInfo("echo.py")
        entry.size = len(_ECHO)
        archive.addfile(entry, io.BytesIO(_ECHO.encode()))
    return out.getvalue()
