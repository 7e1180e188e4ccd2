"""A scripted server, and clients of it in both colours."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import moorage
import pytest
from moorage import aio

from tests.sdk.scripted import ScriptedServer


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "TOKEN", "CA", "FINGERPRINT"):
        monkeypatch.delenv(f"MOORAGE_{name}", raising=False)
    monkeypatch.setenv("MOORAGE_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture(scope="module")
def _server() -> Iterator[ScriptedServer]:
    scripted, ready, stop = ScriptedServer(), threading.Event(), threading.Event()
    thread = threading.Thread(target=scripted.run, args=(ready, stop))
    thread.start()
    try:
        assert ready.wait(10)
        yield scripted
    finally:
        stop.set()
        thread.join(10)


@pytest.fixture
def server(_server: ScriptedServer) -> ScriptedServer:
    _server.forget()
    return _server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[moorage.Client]:
    with moorage.Client(server.endpoint, "AKIA", "secret", retry_for=5) as found:
        yield found


@pytest.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[aio.Client]:
    async with aio.Client(server.endpoint, "AKIA", "secret", retry_for=5) as found:
        yield found
