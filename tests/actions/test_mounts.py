"""Volumes of new sessions: who may mount what where, asked again in the write and when the kernel is sent to its host."""

from __future__ import annotations

import pytest

from actions import CreateFromParamsAction, DeleteVolumeAction, DestroySessionAction, RestartSessionAction
from actions.mounts import places_of
from agent.wire import KernelSpec
from domain.errors import (
    InvalidMount,
    MoorageError,
    MountedTwice,
    VolumeNotFound,
    VolumeNotReady,
    VolumeReadOnly,
)
from domain.ids import KernelId, SessionId
from domain.principal import Principal
from domain.scheduler import plan
from domain.session import Want
from domain.volumes import Mount
from repositories.database import Database
from repositories.kernels import Intent
from repositories.placement import snapshot
from repositories.volumes import mounts_asked_again
from tests.actions.test_volumes import OTHER_VOLUME, STORE, VOLUME, a_store, a_volume, shared
from tests.scenario import ALICE, HOST, MALLORY, NOW, Given, stage


def creation(*mounts: Mount) -> CreateFromParamsAction:
    return CreateFromParamsAction(name="train", image="python", mounts=mounts)


@pytest.mark.parametrize(
    ("given", "by", "mounts", "error"),
    [
        ((), ALICE, (Mount(volume="set"),), VolumeNotFound),
        ((a_volume(),), MALLORY, (Mount(volume=str(VOLUME)),), VolumeNotFound),
        ((a_volume(), shared()), MALLORY, (Mount(volume="set"),), VolumeReadOnly),
        ((a_volume(status="making"),), ALICE, (Mount(volume="set"),), VolumeNotReady),
        ((a_volume(),), ALICE, (Mount(volume="set"), Mount(volume="set", path="other")), MountedTwice),
        (
            (a_volume(), a_volume("b", id=OTHER_VOLUME)),
            ALICE,
            (Mount(volume="set", path="data"), Mount(volume="b", path="/home/work/data/b")),
            MountedTwice,
        ),
        ((a_volume(),), ALICE, (Mount(volume="set", path="/etc"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="/usr/share/x"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="/home"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="/home/alice/../../etc"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="../x"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="/home/work"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", path="a\nb"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", subpath="a/../../b"),), InvalidMount),
        ((a_volume(),), ALICE, (Mount(volume="set", subpath="/etc"),), InvalidMount),
        (
            (a_volume(), a_volume("b", id=OTHER_VOLUME, store="elsewhere")),
            ALICE,
            (Mount(volume="set"), Mount(volume="b")),
            InvalidMount,
        ),
    ],
)
async def test_what_may_not_be_mounted_leaves_no_session(
    given: tuple[Given, ...], by: Principal, mounts: tuple[Mount, ...], error: type[MoorageError], database: Database
) -> None:
    processor = await stage(database, a_store, *given)
    with pytest.raises(error) as caught:
        await processor.run(creation(*mounts), by=by)
    assert type(caught.value) is error
    async with database.reader() as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 0
        assert await connection.fetchval("SELECT count(*) FROM volume_mounts") == 0


async def test_a_session_tells_what_it_mounts_and_goes_where_its_store_is(database: Database) -> None:
    processor = await stage(database, a_store, a_volume(), shared())
    created = await processor.run(creation(Mount(volume="set", path="in", subpath="a//b/", read_only=True)), by=MALLORY)
    (mount,) = created.session_data.mounts
    assert (mount.volume, mount.path, mount.subpath, mount.read_only) == ("set", "/home/work/in", "a/b", True)
    async with database.transaction() as connection:
        await connection.execute("UPDATE agents SET uid = 'u'")
        seen = await snapshot(connection, now=NOW)
        assert seen.pending[0].stores == {STORE}
        assert plan(seen, NOW).placements
        await connection.execute("UPDATE agents SET info = '{}' WHERE id = $1", HOST)
        blocked = plan(await snapshot(connection, now=NOW), NOW).blocked
    assert "store of its volumes" in blocked[created.session_data.id].detail


async def test_the_right_is_asked_again_in_the_write(database: Database) -> None:
    """Taken back between the look and the write."""
    processor = await stage(database, a_store, a_volume(), shared(read_only=False))
    first = await processor.run(CreateFromParamsAction(name="train", image="python"), by=MALLORY)
    call = await processor._call(creation(Mount(volume="set")), MALLORY, None, None)
    async with processor.transaction(call, "test") as work:
        places = await places_of(work, [Mount(volume="set")])
        await work.db.connection.execute("UPDATE volume_shares SET read_only = true")
        with pytest.raises(VolumeReadOnly):
            await work.db.volumes.mount(first.session_data.id, places)
        await work.db.connection.execute("DELETE FROM volume_shares")
        with pytest.raises(VolumeNotFound):
            await work.db.volumes.mount(first.session_data.id, places)


async def test_a_session_whose_volume_is_gone_is_not_restarted(database: Database) -> None:
    processor = await stage(database, a_store, a_volume())
    await processor.run(creation(Mount(volume="set")), by=ALICE)
    ended = await processor.run(DestroySessionAction(session_name="train"), by=ALICE)
    await processor.run(DeleteVolumeAction(volume="set"), by=ALICE)
    again = RestartSessionAction(session_name=str(ended.session_data.id))
    with pytest.raises(VolumeNotFound, match="cannot be started again"):
        await processor.run(again, by=ALICE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("SELECT 1", None),
        ("DELETE FROM volume_shares", "no longer shared"),
        ("UPDATE volume_shares SET read_only = true", "reading only"),
        ("UPDATE volumes SET status = 'removing'", "being removed"),
        ("DELETE FROM volumes", "has been removed"),
    ],
)
async def test_the_right_is_asked_again_when_the_kernel_is_sent(
    change: str, why: str | None, database: Database
) -> None:
    processor = await stage(database, a_store, a_volume(), shared(read_only=False))
    created = await processor.run(creation(Mount(volume="set")), by=MALLORY)
    async with database.transaction() as connection:
        await connection.execute(change)
        row = await connection.fetchrow("SELECT id, spec FROM kernels")
        assert row is not None
        intent = Intent(
            kernel_id=KernelId(row["id"]),
            session_id=SessionId(created.session_data.id),
            agent_id=HOST,  # type: ignore[arg-type]
            attempt=1,
            generation=1,
            want=Want.RUN,
            tries=1,
            spec=KernelSpec.unpack(row["spec"]),
        )
        (asked,) = await mounts_asked_again(connection, [intent])
    assert asked.spec is not None
    refused = asked.spec.mounts[0]["refused"]
    assert refused is None if why is None else why in refused
