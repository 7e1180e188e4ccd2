"""Whether a port in a kernel answers: a connection, or one small HTTP request over it. What answers is hostile."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from agent.rings import RunnerError
from agent.runner_link import RunnerLink

_ANSWER_SECONDS: Final = 5.0
_MOST_BYTES: Final = 4096


async def answer_of(link: RunnerLink, port: int, path: str | None) -> str | None:
    """None when it is well; else what is wrong, in one sentence. RunnerError when the runner itself is lost."""
    try:
        sock = await link.connect_port(port)
    except RunnerError as error:
        if error.code != "nothing_listens":
            raise
        return error.message
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return None if path is None else await _status(sock, port, path)
    except TimeoutError:
        return f"Port {port} takes connections, and does not answer within {_ANSWER_SECONDS:g} s."
    except OSError as error:
        return f"The connection to port {port} broke off: {error.strerror or error}."
    finally:
        sock.close()


async def _status(sock: socket.socket, port: int, path: str) -> str | None:
    loop = asyncio.get_running_loop()
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: moorage\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(sock, asked.encode())
    answer = b""
    while b"\n" not in answer and len(answer) < _MOST_BYTES:
        if not (more := await loop.sock_recv(sock, _MOST_BYTES)):
            break
        answer += more
    words = answer.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"What listens on port {port} does not answer in HTTP."
    status = int(words[1])
    # Whoever asks for a login is there.
    return None if status < 400 or status in (401, 403) else f"It answers {status} to GET {path[:200]}."
