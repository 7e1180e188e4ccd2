"""Webhooks against a real HTTP server: signed, in order, tried again, and taken over from a manager that was killed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from aiohttp import web

from domain.ids import SessionId
from manager.egress import Egress, networks
from manager.herald import Herald
from manager.vault import Vault
from manager.webhooks import Callbacks, Webhooks, WebhookSettings
from repositories.database import Database
from repositories.transit import Cause, emit
from repositories.upkeep import stamp_events
from repositories.webhook import secret_about
from tests.control.fakes import Clock
from tests.scenario import ALICE, ID, NOW, OTHER_ID, a_session, people_and_a_host

SECRET: Final = "mwh_of-alice"
VAULT: Final = Vault(bytes(32))
LOCAL: Final = WebhookSettings(egress=Egress(networks("127.0.0.0/8")), timeout_seconds=5.0)


@dataclass
class Receiver:
    """Answers as it is told, and remembers what it got."""

    url: str = ""
    answers: list[int] = field(default_factory=list)  #: the next ones; 200 when there are none
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.text()))
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        status = self.answers.pop(0) if self.answers else 200
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/"} if status == 302 else None)

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    there = Receiver()
    app = web.Application()
    app.router.add_post("/hook", there.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    there.url = f"http://{host}:{port}/hook"
    yield there
    if there.hold is not None:
        there.hold.set()
    await runner.cleanup()


class Office:
    """A session with a callback, and a manager's two loops, driven by hand."""

    def __init__(self, database: Database, dsn: str, url: str, settings: WebhookSettings = LOCAL) -> None:
        self.database, self.url, self.clock = database, url, Clock()
        self.callbacks = Callbacks(database, Herald(dsn), clock=self.clock)
        self.hooks = self.manager(settings)

    def manager(self, settings: WebhookSettings = LOCAL) -> Webhooks:
        return Webhooks(
            self.database, manager_id=uuid4(), clock=self.clock, jitter=lambda: 0.5, vault=VAULT, settings=settings
        )

    async def open(self) -> None:
        async with self.database.transaction() as connection:
            await people_and_a_host(connection)
            await a_session(callback_url=self.url).put(connection)
            await a_session(id=OTHER_ID, name="quiet").put(connection)
            sealed = VAULT.seal(SECRET, secret_about(ALICE.user_id))
            await connection.execute(
                "INSERT INTO webhook_secrets (user_id, sealed) VALUES ($1, $2)", ALICE.user_id, sealed
            )

    async def happen(self, *types: str, to: SessionId = ID) -> None:
        async with self.database.transaction() as connection:
            for kind in types:
                await emit(connection, kind, now=NOW, cause=Cause(by="SECRET-KEY"), session_id=to, data={"a": 1})
        async with self.database.transaction() as connection:
            await stamp_events(connection)
        while await self.callbacks.step() == 0.0:
            pass

    async def post(self, hooks: Webhooks | None = None) -> None:
        """Everything that is due now."""
        hooks = hooks or self.hooks
        while await hooks.step() == 0.0:
            await hooks.settle()

    async def log(self) -> list[tuple[Any, ...]]:
        async with self.database.reader() as connection:
            rows = await connection.fetch("SELECT * FROM webhook_deliveries ORDER BY event_seq")
        return [(row["type"], row["status"], row["tries"], row["http_status"]) for row in rows]

    async def errors(self) -> list[str]:
        async with self.database.reader() as connection:
            rows = await connection.fetch("SELECT error FROM webhook_deliveries ORDER BY event_seq")
        return [row["error"] for row in rows]


Open = Callable[..., Any]


@pytest.fixture
async def office(database: Database, dsn: str, receiver: Receiver) -> Office:
    office = Office(database, dsn, receiver.url)
    await office.open()
    return office


async def test_what_happens_is_told_once_signed_and_in_order(office: Office, receiver: Receiver) -> None:
    await office.happen("session.running", "execution.finished", "session.terminating", "session.terminated")
    await office.happen("session.running", to=OTHER_ID)  # has no callback
    await office.post()
    await office.post()
    assert receiver.types == ["session.running", "session.terminating", "session.terminated"]
    headers, body = receiver.got[0]
    told = json.loads(body)
    assert (told["session_id"], told["name"], told["data"]) == (str(ID), "train", {"a": 1})
    assert datetime.fromisoformat(told["at"]) == NOW
    assert "SECRET-KEY" not in body
    signed = f"{headers['Moorage-Timestamp']}.{body}".encode()
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["Moorage-Signature"] == f"v1={expected}"
    assert headers["Moorage-Event"] == "session.running"
    assert UUID(headers["Moorage-Delivery"])
    assert await office.log() == [(kind, "delivered", 1, 200) for kind in receiver.types]


async def test_what_fails_is_tried_again_later_and_holds_up_what_follows(office: Office, receiver: Receiver) -> None:
    receiver.answers = [500, 302]
    await office.happen("session.running", "session.terminated")
    await office.post()
    assert receiver.types == ["session.running"]
    office.clock.turn(seconds=1.9)
    await office.post()
    assert len(receiver.got) == 1, "not before its time"
    office.clock.turn(seconds=0.2)
    await office.post()
    office.clock.turn(seconds=3.9)
    await office.post()
    assert len(receiver.got) == 2, "twice as long"
    assert "redirects are not followed" in (await office.errors())[0]
    office.clock.turn(seconds=0.2)
    await office.post()
    assert receiver.types == [*["session.running"] * 3, "session.terminated"]
    assert len({headers["Moorage-Delivery"] for headers, _ in receiver.got[:3]}) == 1
    assert await office.log() == [("session.running", "delivered", 3, 200), ("session.terminated", "delivered", 1, 200)]


async def test_it_is_given_up_after_so_many_tries_and_at_once_when_the_receiver_says_gone(
    office: Office, receiver: Receiver
) -> None:
    receiver.answers = [*[503] * LOCAL.most_tries, 410]
    await office.happen("session.running", "session.terminated")
    for _ in range(LOCAL.most_tries):
        await office.post()
        office.clock.turn(seconds=LOCAL.most_pause_seconds * 1.25)
    await office.post()
    assert await office.log() == [
        ("session.running", "failed", LOCAL.most_tries, 503),
        ("session.terminated", "failed", 1, 410),
    ]


async def test_a_receiver_that_is_not_there_and_one_that_never_answers(
    database: Database, dsn: str, receiver: Receiver
) -> None:
    impatient = WebhookSettings(egress=LOCAL.egress, timeout_seconds=0.05)
    office = Office(database, dsn, receiver.url, impatient)
    await office.open()
    receiver.hold = asyncio.Event()
    await office.happen("session.running")
    await office.post()
    assert await office.errors() == ["no answer within 0.05 s"]
    async with database.reader() as connection:
        await connection.execute("UPDATE webhook_deliveries SET url = 'http://127.0.0.1:1/x'")
    office.clock.turn(seconds=5)
    await office.post()
    assert "Connect" in (await office.errors())[0]


async def test_without_leave_nothing_is_sent_to_private_addresses(
    database: Database, dsn: str, receiver: Receiver
) -> None:
    office = Office(database, dsn, receiver.url, WebhookSettings())
    await office.open()
    await office.happen("session.running")
    await office.post()
    assert receiver.got == []
    assert "which is loopback" in (await office.errors())[0]


async def test_a_host_is_looked_up_once_and_the_checked_address_is_called(
    office: Office, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere the second time does not help."""
    asked: list[str] = []
    loop, port = asyncio.get_running_loop(), int(receiver.url.split(":")[2].split("/")[0])

    async def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "169.254.169.254", port))]

    async with office.database.reader() as connection:
        await connection.execute("UPDATE sessions SET callback_url = $1", f"http://rebind.example.org:{port}/hook")
    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    await office.happen("session.running")
    await office.post()
    assert asked == ["rebind.example.org"]
    assert receiver.got[0][0]["Host"] == f"rebind.example.org:{port}"


async def test_two_managers_share_the_work(office: Office, receiver: Receiver) -> None:
    await office.happen("session.running")
    other = office.manager()
    await asyncio.gather(office.post(), office.post(other))
    assert len(receiver.got) == 1


#: A manager's loop in a process of its own; it says when it has taken the delivery on.
_PROCESS: Final = """
import asyncio, sys
from datetime import datetime, timezone
from uuid import uuid4
from manager.egress import Egress, networks
from manager.vault import Vault
from manager.webhooks import Webhooks, WebhookSettings
from repositories.database import Database

async def main():
    database = await Database.connect(sys.argv[1])
    settings = WebhookSettings(egress=Egress(networks("127.0.0.0/8")), timeout_seconds=60.0)
    clock = lambda: datetime.fromisoformat(sys.argv[2])
    hooks = Webhooks(database, manager_id=uuid4(), clock=clock, jitter=lambda: 0.5, vault=Vault(bytes(32)), settings=settings)
    await hooks.run()

asyncio.run(main())
"""


async def test_what_a_killed_manager_was_sending_is_sent_by_another(
    office: Office, receiver: Receiver, dsn: str
) -> None:
    receiver.hold = asyncio.Event()
    await office.happen("session.running", "session.terminated")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _PROCESS, dsn, office.clock.now.isoformat())
    async with asyncio.timeout(20):
        await receiver.arrived.wait()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    receiver.hold.set()
    await office.post()
    assert len(receiver.got) == 1, "its lease still holds"
    office.clock.turn(seconds=LOCAL.lease_seconds + 1)
    await office.post()
    assert receiver.types == ["session.running", "session.running", "session.terminated"]
    assert [(kind, status, tries) for kind, status, tries, _ in await office.log()] == [
        ("session.running", "delivered", 2),
        ("session.terminated", "delivered", 1),
    ]
