"""SSH connections end when those who opened them may no longer: each way to lose a right, on a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncssh
import pytest

from actions import (
    AddSshKeyAction,
    CreateTokenAction,
    DeleteTokenAction,
    IssueSshCertificateAction,
    ModifyDomainAction,
    ModifyKeypairAction,
    ModifyProjectAction,
    ModifyUserAction,
    RemoveSshKeyAction,
)
from domain.principal import Credential, Principal, Role
from manager.config import ManagerConfig
from manager.gateway.authority import Authority
from manager.gateway.door import Gateway
from manager.herald import Herald
from manager.world import World
from repositories.database import Database
from tests.actions.people import DORA, OTHERS
from tests.agent.fake import FakeAgent
from tests.scenario import ALICE, ID, ROOT, a_session, people_and_a_host

_PATIENCE_SECONDS = 8.0


@dataclass
class Bed:
    world: World
    port: int
    key: asyncssh.SSHKey

    @property
    def public_key(self) -> str:
        return str(self.key.export_public_key().decode())

    async def connect(self, *, certificate: str | None = None) -> asyncssh.SSHClientConnection:
        keys: list[object] = [self.key]
        if certificate is not None:
            keys = [(self.key, asyncssh.import_certificate(certificate))]
        return await asyncssh.connect(
            "127.0.0.1",
            self.port,
            username=str(ID),
            client_keys=keys,
            known_hosts=None,
            config=None,
            agent_path=None,
        )


@pytest.fixture
async def bed(database: Database, tmp_path: Path) -> AsyncIterator[Bed]:
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        await OTHERS.put(connection)
        await a_session().put(connection)
    herald, authority = Herald(database.dsn), Authority.of(ManagerConfig(data_dir=tmp_path, ssh_port=2222))
    await herald.start()
    world = World.build(database, herald, FakeAgent(), observe=lambda *_: None)
    world.service.ssh = authority
    gateway = Gateway(world, authority)
    port = await gateway.listen("127.0.0.1", 0)
    yield Bed(world, port, asyncssh.generate_private_key("ssh-ed25519"))
    await gateway.close()
    await herald.close()


@asynccontextmanager
async def ended(bed: Bed, by: Principal, *, certificate: str | None = None) -> AsyncIterator[None]:
    """Logged in; whatever is done in the block ends the connection."""
    connection = await bed.connect(certificate=certificate)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        async with bed.world.database.reader() as database:  # the login is on record once it is through
            while not await database.fetchval(
                "SELECT count(*) FROM audit WHERE action = 'ssh_login' AND outcome = 'ok'"
            ):
                await asyncio.sleep(0.01)
    yield
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await connection.wait_closed()
    assert by.user_id


@pytest.mark.parametrize("way", ["key", "keypair", "account", "role", "project", "domain"])
async def test_a_login_by_key_ends(bed: Bed, way: str) -> None:
    run = bed.world.processor.run
    added = await run(AddSshKeyAction(public_key=bed.public_key, name="k"), by=ALICE)
    async with ended(bed, ALICE):
        if way == "key":
            await run(RemoveSshKeyAction(ssh_key=str(added.ssh_key.id)), by=ALICE)
        elif way == "keypair":
            await run(ModifyKeypairAction(keypair="KEY-alice", active=False), by=ROOT)
        elif way == "account":
            await run(ModifyUserAction(user="alice@example.org", active=False), by=DORA)
        elif way == "role":
            await run(ModifyUserAction(user="alice@example.org", role=Role.MONITOR), by=ROOT)
        elif way == "project":
            await run(ModifyProjectAction(project="default", remove_members=["alice@example.org"]), by=DORA)
        else:
            outside = replace(ROOT, domain="lab")  # one does not close one's own
            await run(ModifyDomainAction(domain="default", active=False), by=outside)
    with pytest.raises(asyncssh.Error):
        await (await bed.connect()).run("true", check=True)


async def test_an_administrator_who_is_none_any_more_is_out(bed: Bed) -> None:
    run = bed.world.processor.run
    await run(AddSshKeyAction(public_key=bed.public_key, name="k"), by=DORA)
    async with ended(bed, DORA):
        await run(ModifyUserAction(user="dora@example.org", role=Role.USER), by=ROOT)


async def test_a_certificate_ends_with_the_token_that_asked_for_it(bed: Bed) -> None:
    run = bed.world.processor.run
    token = (await run(CreateTokenAction(token_name="ci"), by=ALICE)).token
    by = replace(ALICE, credential=Credential.TOKEN, token_id=token.id)
    asked = IssueSshCertificateAction(session_name=str(ID), public_key=bed.public_key)
    certificate = (await run(asked, by=by)).certificate
    async with ended(bed, ALICE, certificate=certificate):
        await run(DeleteTokenAction(token_id=token.id), by=ALICE)
    with pytest.raises(asyncssh.Error):
        await (await bed.connect(certificate=certificate)).run("true", check=True)
