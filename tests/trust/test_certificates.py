"""Certificates of agents: renewed while they work, changed to another authority, and taken away at once everywhere."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent import authority, pki, wire
from agent.client import KernelAddress
from agent.doctor import _certificate
from agent.hub import AgentHub
from agent.link import Links
from agent.renewal import Renewal
from domain.doctor import Level
from domain.errors import AgentRevoked, AgentUnavailable
from domain.ids import AgentId, KernelId
from repositories import trust
from repositories.agents import enrol, issue_token, remove
from repositories.transit import Cause
from tests.agent.test_hub import Host as AnyHost
from tests.agent.test_hub import answering
from tests.control.rows import NOW
from tests.trust.conftest import MINE, Installation, Speaker, Two

TEST = Cause(by="test")


class Host(AnyHost):
    async def epoch_is(self, epoch: int) -> None: ...


async def revoke(installation: Installation, agent_id: AgentId = MINE) -> None:
    async with installation.database.transaction() as connection:
        await trust.revoke(connection, agent_id, reason="sold", now=datetime.now(UTC), cause=TEST)
    installation.heralds[0].announce("trust")


async def ends(*hosts: Speaker) -> None:
    async with asyncio.timeout(5):
        await asyncio.gather(*(host.reading for host in hosts))


async def linked(two: Two, hub: AgentHub, host: Host, folder: Path) -> tuple[Links, ssl.SSLContext, asyncio.Task[None]]:
    tls = pki.client_context(folder)
    links = Links([hub.url], tls, host, answering(host))
    task = asyncio.create_task(links.run())
    async with asyncio.timeout(10):
        while not links.is_connected:
            await asyncio.sleep(0.01)
    return links, tls, task


async def test_a_revoked_agent_is_cut_off_from_all_managers_at_once_and_does_not_come_back(two: Two) -> None:
    others = [await two.installation.hub(role) for role in ("api", "proxy")]
    hosts = [two.host, *[await two.installation.host(hub, two.folder) for hub in others]]
    third = await two.installation.host(two.hub, await two.installation.certify("third"), "third")
    await revoke(two.installation)
    await ends(*hosts)
    for hub in (two.hub, *others):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await two.installation.host(hub, two.folder)
    await third.say(wire.HEARTBEAT, {})
    assert ("agent:mine", "connect_agent") in [(who, action) for who, action, _ in await two.installation.audit()]
    async with two.installation.database.reader() as connection:
        assert await connection.fetchval("SELECT lease_until <= now() FROM agents WHERE id = 'mine'")


async def test_only_a_token_made_afterwards_brings_a_revoked_agent_back(two: Two) -> None:
    now = datetime.now(UTC)
    later = now + timedelta(days=3000)
    async with two.installation.database.transaction() as connection:
        before = await issue_token(connection, expires_at=later + timedelta(1), now=now - timedelta(1))
        await trust.revoke(connection, MINE, reason=None, now=now, cause=TEST)
        await trust.revoke(connection, MINE, reason=None, now=now + timedelta(1), cause=TEST)  # changes nothing
        after = await issue_token(connection, expires_at=later + timedelta(1), now=now + timedelta(hours=1))
    with pytest.raises(AgentRevoked, match="ask for a new one"):
        async with two.installation.database.transaction() as connection:
            await enrol(connection, before, MINE, "print", now=later)
    async with two.installation.database.transaction() as connection:
        await enrol(connection, after, MINE, "print", now=later)
        assert await trust.is_known(connection, MINE, "print", now=later)
    with pytest.raises(AgentRevoked):
        await revoke(two.installation)
        async with two.installation.database.transaction() as connection:
            await trust.renewing(connection, MINE, "another")


async def test_a_removed_agent_is_cut_off_and_does_not_come_back(installation: Installation) -> None:
    hub = await installation.hub()
    folder = await installation.certify("gone")
    host = await installation.host(hub, folder, "gone")
    async with installation.database.transaction() as connection:
        await remove(connection, AgentId("gone"), now=NOW)
    installation.heralds[0].announce("trust")
    await ends(host)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await installation.host(hub, folder, "gone")


async def test_a_certificate_that_has_ended_ends_its_connection(installation: Installation) -> None:
    hub = await installation.hub()
    folder = await installation.certify("old", lifetime=timedelta(seconds=3))
    host = await installation.host(hub, folder, "old")
    async with asyncio.timeout(10):
        while not host.peer.closed.is_set():
            await hub.check_trust()
            await asyncio.sleep(0.05)


async def test_the_certificate_is_renewed_while_a_request_goes_on(two: Two) -> None:
    await two.host.close()
    host, release, begun = Host(agent_id=MINE, boot_no=2), asyncio.Event(), asyncio.Event()

    async def slow(_arguments: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await release.wait()
        return {"run_id": "r", "records": b"all of it"}

    host.handlers[wire.READ] = slow
    former = (two.folder / "agent.pem").read_bytes()
    links, tls, task = await linked(two, two.hub, host, two.folder)
    try:
        where = KernelAddress(agent_id=MINE, kernel_id=KernelId(two.my_kernel), attempt=1)
        asking = asyncio.create_task(two.hub.read(where, "r", from_seq=0, max_bytes=1, wait_seconds=30))
        await begun.wait()
        peer = two.hub._peers[MINE]
        assert await Renewal(two.folder, MINE, tls, links).renew()
        async with asyncio.timeout(10):
            while two.hub._peers[MINE] is peer:
                await asyncio.sleep(0.01)
        assert not asking.done()
        release.set()
        assert (await asking).records == b"all of it"
        async with asyncio.timeout(10):
            await peer.closed.wait()  # nobody waits for anything over it any more
        renewed = (two.folder / "agent.pem").read_bytes()
        assert renewed != former
        assert (two.folder / "agent.pem").stat().st_mode & 0o777 == 0o600
        assert not (two.folder / "agent.key").exists()
        async with two.installation.database.reader() as connection:
            row = await connection.fetchrow("SELECT * FROM agents WHERE id = 'mine'")
        assert row is not None
        assert row["renewed_at"] is not None
        assert row["next_fingerprint"] is None
        assert row["former_until"] < datetime.now(UTC) + timedelta(hours=2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await two.installation.host(two.hub, two.folder)  # as after a restart of the agent


async def test_who_renews_is_known_by_the_former_certificate_only_for_a_while(two: Two) -> None:
    now = datetime.now(UTC)
    async with two.installation.database.transaction() as connection:
        former = await connection.fetchval("SELECT fingerprint FROM agents WHERE id = 'mine'")
        await trust.renewing(connection, MINE, "next")
        assert await trust.is_known(connection, MINE, former, now=now)
        assert await trust.is_known(connection, MINE, "next", now=now)
        assert await trust.is_known(connection, MINE, former, now=now + timedelta(minutes=50))
        assert not await trust.is_known(connection, MINE, former, now=now + timedelta(hours=2))
        assert await trust.trusted(connection, [(MINE, former), (MINE, "next"), (MINE, "x")], now=now) == {
            (MINE, former),
            (MINE, "next"),
        }
        assert await trust.is_known(connection, MINE, "next", now=now + timedelta(hours=2))


class Nobody:
    """No manager there, or one that was asked `asked` times."""

    def __init__(self) -> None:
        self.asked = 0
        self.on_authorities: Any = None

    async def renew(self, request_pem: str) -> dict[str, Any] | None:
        self.asked += 1
        if self.asked > 1:
            raise AgentUnavailable
        return None

    def make_anew(self) -> None:
        raise AssertionError("there is nothing new")


async def test_an_agent_renews_when_a_third_of_the_time_is_left_and_not_before(installation: Installation) -> None:
    folder = await installation.certify("young")
    managers = Nobody()
    issued = datetime.now(UTC)
    turned = [issued + timedelta(days=19)]
    renewal = Renewal(folder, "young", pki.client_context(folder), managers, now=lambda: turned[0])
    assert await renewal._step() > 0
    assert managers.asked == 0
    for days in (20.1, 20.2):  # nobody there; a manager that goes away
        turned[0] = issued + timedelta(days=days)
        assert await renewal._step() == 60.0
    assert managers.asked == 2
    assert pki.client_context(folder)


async def test_another_authority_is_trusted_beside_the_old_one_and_takes_its_place(installation: Installation) -> None:
    """Step by step, with the managers started anew after each: no step leaves out a host that was there for the last."""
    ca = installation.folder / "ca"
    folder = await installation.certify(MINE)

    async def host_meets_managers() -> None:
        hub = await installation.hub()
        host = Host(agent_id=MINE)
        tls = pki.client_context(folder)
        links = Links([hub.url], tls, host, answering(host))
        renewal = Renewal(folder, MINE, tls, links)
        tasks = [asyncio.create_task(links.run()), asyncio.create_task(renewal.run())]
        try:
            await hub.wait_until_connected([MINE], 10)
            async with asyncio.timeout(10):
                while not (pki.authorities(folder) == pki.authorities(ca) and pki.is_of_signing_authority(folder)):
                    await asyncio.sleep(0.01)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    first, secret = pki.authorities(ca), (ca / "ca.key").read_bytes()
    await host_meets_managers()
    authority.begin(ca)
    await host_meets_managers()
    authority.switch(ca)
    await host_meets_managers()
    authority.finish(ca)
    await host_meets_managers()
    assert first not in pki.authorities(ca)
    assert (ca / "vault.key").read_bytes() == secret  # what is sealed with it opens as before
    with pytest.raises(ssl.SSLError):
        pki.client_context(folder).load_cert_chain(ca / "manager.pem", folder / "agent.pem")


async def test_doctor_says_when_the_certificate_ends(installation: Installation) -> None:
    said = []
    for number, lifetime in enumerate((timedelta(days=30, minutes=1), timedelta(days=4), timedelta(minutes=-1))):
        folder = await installation.certify(f"of-{number}", lifetime=lifetime)
        said += [(one.level, one.subject) for one in _certificate(folder)]
    assert said == [(Level.OK, "certificate"), (Level.WARN, "certificate"), (Level.BAD, "certificate")]
    assert [one.level for one in _certificate(installation.folder / "nothing")] == [Level.BAD]
