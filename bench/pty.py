"""How long a typed character takes to be seen: a terminal through the API's WebSocket, against `docker exec -it` on the same container."""

from __future__ import annotations

import os
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import docker

from bench.http import Client
from bench.installation import Installation
from bench.report import Row, p50, percentile

#: The two take turns in blocks, as people type: one character, and what it echoes, before the next.
BLOCKS, CHARACTERS = 10, 200
PROGRAM = "stty -icanon; echo ready; exec sleep 600"


def run(installation: Installation) -> Iterator[Row]:
    client = Client.of(installation)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 1, "mem": 256}})
    ours: list[float] = []
    theirs: list[float] = []
    engine = docker.from_env(timeout=60)
    try:
        terminal, attached = WebSocket(installation, session["id"]), _docker_exec(engine, session["id"])
        with terminal.socket, attached:
            for block in range(BLOCKS + 1):
                mine = [_echo(terminal.send, terminal.receive) for _ in range(CHARACTERS)]
                reference = [_echo(attached.sendall, lambda: attached.recv(100)) for _ in range(CHARACTERS)]
                if block:  # the first warms both up
                    ours += mine
                    theirs += reference
    finally:
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60&forced=true")
        client.close()
        engine.close()
    yield Row(
        name="PTY echo, p50",
        ours=p50(ours),
        reference=p50(theirs),
        unit="ms",
        bound="ratio <= 2",
        reference_is="docker exec -it, its socket attached",
        note=f"p95 {percentile(ours, 0.95):.2f} (reference {percentile(theirs, 0.95):.2f}) ms over {len(ours)} characters",
    )


def _echo(send: Callable[[bytes], None], receive: Callable[[], bytes]) -> float:
    started = time.perf_counter()
    send(b"x")
    seen = receive()
    taken = (time.perf_counter() - started) * 1000
    assert seen == b"x", seen
    return taken


class WebSocket:
    """As little of one as is needed: its own cost is not what is measured."""

    def __init__(self, installation: Installation, session_id: str) -> None:
        self.socket = socket.create_connection((installation.host, installation.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = bytearray()
        words = "".join(
            f"&command={word}" for word in ("/bin/sh", "-c", PROGRAM.replace(" ", "%20").replace(";", "%3B"))
        )
        head = (
            f"GET /v1/sessions/{session_id}/pty?rows=24{words} HTTP/1.1\r\nHost: {installation.host}:{installation.port}\r\n"
            f"Authorization: Bearer {installation.bearer}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}\r\n\r\n"
        )
        self.socket.sendall(head.encode())
        while b"\r\n\r\n" not in self._rest:
            self._rest += self.socket.recv(1 << 16)
        answer, _, rest = bytes(self._rest).partition(b"\r\n\r\n")
        assert b" 101 " in answer.splitlines()[0], answer
        self._rest = bytearray(rest)
        while b"ready" not in self.receive().replace(b'"type":"ready"', b""):
            pass

    def send(self, data: bytes) -> None:
        self.socket.sendall(bytes((0x82, 0x80 | len(data), 0, 0, 0, 0)) + data)

    def receive(self) -> bytes:
        """One message's payload."""
        head = self._take(2)
        length = head[1] if head[1] < 126 else int.from_bytes(self._take(2), "big")
        return self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            more = self.socket.recv(1 << 16)
            assert more, "the terminal was closed"
            self._rest += more
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken


def _docker_exec(engine: Any, session_id: str) -> socket.socket:
    found = engine.containers.list(filters={"label": f"moorage.session={session_id}"})
    made = engine.api.exec_create(found[0].id, ["/bin/sh", "-c", PROGRAM], stdin=True, tty=True)["Id"]
    attached: socket.socket = engine.api.exec_start(made, tty=True, socket=True)._sock
    attached.settimeout(30)
    seen = b""
    while b"ready\r\n" not in seen:
        seen += attached.recv(1 << 16)
    return attached
