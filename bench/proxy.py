"""Requests and megabytes through the proxy, against nginx in front of the same program: an nginx inside the container.

nginx and wrk are installed by apt where they are missing (root on Debian); without them there is no such figure here.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import docker

from bench.http import Client
from bench.installation import Installation
from bench.report import Row

ROUNDS: Final = 3
SECONDS: Final = 3
BODY_MIB: Final = 8
PORT: Final = 8080
_FOLDER: Final = "/home/work/bench"
#: Inside the container: one worker, a small answer and a large one.
_INSIDE: Final = f"""
daemon off; worker_processes 1; pid {_FOLDER}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;
  client_body_temp_path {_FOLDER}; proxy_temp_path {_FOLDER}; fastcgi_temp_path {_FOLDER};
  uwsgi_temp_path {_FOLDER}; scgi_temp_path {_FOLDER};
  server {{ listen 0.0.0.0:{PORT}; location = / {{ return 200 "hello\\n"; }} location = /big {{ alias {_FOLDER}/big; }} }}
}}
"""
_REFERENCE: Final = """
daemon off; worker_processes 1; pid FOLDER/pid; error_log stderr crit; user root;
events { worker_connections 1024; }
http {
  access_log off; tcp_nodelay on; keepalive_requests 100000000; client_body_temp_path FOLDER; proxy_temp_path FOLDER;
  fastcgi_temp_path FOLDER; uwsgi_temp_path FOLDER; scgi_temp_path FOLDER;
  upstream inside { server ADDRESS; keepalive 64; keepalive_requests 100000000; }
  server { listen 127.0.0.1:LISTEN; location / { proxy_pass http://inside; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; proxy_max_temp_file_size 0; } }
}
"""


def run(installation: Installation) -> Iterator[Row]:
    if not _have_tools():
        print("bench: proxy: no nginx and wrk here, and they cannot be installed")
        return
    client, engine = Client.of(installation), docker.from_env(timeout=300)
    session = client.ask("POST", "/v1/sessions?wait=60", {"image": "python", "resource_slots": {"cpu": 2, "mem": 512}})
    try:
        with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
            base, token = _serve_inside(client, session["id"])
            [container] = engine.containers.list(filters={"label": f"moorage.session={session['id']}"})
            network = next(iter(container.attrs["NetworkSettings"]["Networks"].values()))
            with _reference(Path(folder), f"{network['IPAddress']}:{PORT}") as reference:
                yield from _compare(base, token, reference)
    finally:
        client.ask("DELETE", f"/v1/sessions/{session['id']}?wait=60")
        client.close()
        engine.close()


def _compare(base: str, token: str, reference: str) -> Iterator[Row]:
    head = f"Authorization: Bearer {token}"
    for connections in (1, 32):
        pairs = [(_wrk(base, connections, head)[0], _wrk(reference, connections)[0]) for _ in range(ROUNDS)]
        yield _row(f"proxy, {connections} connection{'s' * (connections > 1)}", pairs, "req/s")
    pairs = [(_wrk(f"{base}big", 4, head)[1], _wrk(f"{reference}big", 4)[1]) for _ in range(ROUNDS)]
    yield _row(f"proxy, bodies of {BODY_MIB} MiB", pairs, "MiB/s")


def _row(name: str, pairs: list[tuple[float, float]], unit: str) -> Row:
    return Row(
        name=name,
        ours=max(ours for ours, _ in pairs),
        reference=max(reference for _, reference in pairs),
        unit=unit,
        bound="ratio >= 0.8",
        reference_is="nginx 1 worker, same backend",
        note=f"best of {ROUNDS}, in turn; one proxy process; nginx in the container behind both; wrk with one thread",
    )


def _wrk(url: str, connections: int, *headers: str) -> tuple[float, float]:
    """Requests and MiB per second."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", *(word for one in headers for word in ("-H", one)), url]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    requests = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    amount, unit = re.findall(r"Transfer/sec:\s+([\d.]+)(\wB)", said)[0]
    return requests, float(amount) * {"KB": 1 / 1024, "MB": 1.0, "GB": 1024.0}[unit]


def _serve_inside(client: Client, session_id: str) -> tuple[str, str]:
    """The service's address at the proxy, and a token for it."""
    path = f"/v1/sessions/{session_id}"
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    for name, source in {"nginx": nginx, **_libraries(nginx)}.items():
        _put(client, f"{path}/files/bench/{name}", Path(source).read_bytes())
    _put(client, f"{path}/files/bench/conf", _INSIDE.encode())
    prepare = f"chmod +x {_FOLDER}/nginx; head -c {BODY_MIB << 20} /dev/urandom > {_FOLDER}/big"
    client.ask("POST", f"{path}/execute", {"mode": "batch", "code": prepare, "wait": 30})
    command = ["/bin/sh", "-c", f"LD_LIBRARY_PATH={_FOLDER} exec {_FOLDER}/nginx -p {_FOLDER} -c {_FOLDER}/conf"]
    started = client.ask("POST", f"{path}/services/bench", {"port": PORT, "command": command, "path": "/"})
    at = urlsplit(started["wsproxy_addr"])
    connection = http.client.HTTPConnection(at.hostname or "", at.port)
    connection.request("GET", at.path, headers={"Accept": "application/json"})
    passed: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return f"{at.scheme}://{at.netloc}{passed['path']}", passed["token"]


def _put(client: Client, path: str, content: bytes) -> None:
    head = f"PUT {path} HTTP/1.1\r\n{client._head}Content-Length: {len(content)}\r\n\r\n".encode()
    status, answer = client.send(head + content)
    if status >= 400:
        raise RuntimeError(f"{path}: {status} {answer[:200]!r}")


def _libraries(program: str) -> dict[str, str]:
    """What it is linked against, but for the C library, which the image has."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(\S+\.so[.\d]*) => (/\S+)", said))
    return {name: path for name, path in found.items() if not re.match(r"lib(c|m|dl|pthread|rt)\.so", name)}


@contextmanager
def _reference(folder: Path, address: str) -> Iterator[str]:
    port = 20_000 + os.getpid() % 20_000
    text = _REFERENCE.replace("FOLDER", str(folder)).replace("ADDRESS", address).replace("LISTEN", str(port))
    (folder / "conf").write_text(text)
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "conf")]) as process:
        try:
            _until_it_answers(port)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


def _until_it_answers(port: int) -> None:
    for _ in range(100):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the reference nginx does not answer")


def _have_tools() -> bool:
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = ["nginx-light" if name == "nginx" else name for name in missing]
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
            env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    return all(shutil.which(name) for name in ("nginx", "wrk"))
