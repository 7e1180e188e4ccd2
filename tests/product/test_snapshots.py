"""Snapshots and images as users have them: through the SDK and the command, on real containers and a real registry."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.error
from collections.abc import Callable, Iterator

import docker
import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation
from tests.registry import PASSWORD, USERNAME, Registry

#: Enough to be in the middle of, and packed within a second.
FILL = "f = open('big', 'wb')\nfor _ in range(120): f.write(b'0' * (1 << 20))\nf.close()"


@pytest.fixture(autouse=True)
def tidy(client: moorage.Client, installation: Installation, engine: docker.DockerClient) -> Iterator[None]:
    """Nothing stays frozen, and what was made goes."""
    yield
    with sqlite3.connect(installation.data_dir / "agent" / "agent.db") as store:
        (uid,) = store.execute("SELECT value FROM meta WHERE key = 'uid'").fetchone()
    assert not engine.containers.list(filters={"status": "paused", "label": f"moorage.agent={uid}"})
    for session in client.sessions.list(all=True):
        session.destroy(wait=30)
    for image in client.images.list(all=True):
        if image.kind != "registered":
            client.images.remove(image.name)
    client.images.collect(older_than_days=0).wait(30)
    assert not [image for image in engine.images.list() if image.labels.get("moorage.image.agent") == uid]


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """For what no signal tells of: another process' state on the engine."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def told(task: moorage.Task) -> str | None:
    """What it says of its progress now."""
    progress = task.refresh().info.progress
    return progress.message if progress else None


def test_a_session_from_a_snapshot_sees_the_files(
    client: moorage.Client, user: Callable[[str], moorage.Client]
) -> None:
    with user("snapper") as alice, user("stranger") as mallory:
        with alice.sessions.create(mem="512m") as session:
            session.files.write("data/a.txt", "kept")
            task = session.commit("trained")
            assert task.wait(30).status == "done"
            assert session.commit_status().status == "done"
            with pytest.raises(errors.ImageNameTaken):
                session.commit("trained")
            with pytest.raises(errors.InvalidImageName):
                session.commit("no such/name")
            told = [event.type for event in alice.events(session=session.id, follow=False)]
            assert {"session.committing", "session.committed"} <= set(told)
            assert "stands still" in session.logs()
        with pytest.raises(errors.SessionEnded):
            session.commit("late")
        with alice.sessions.create(image="trained", mem="512m") as again:
            assert again.files.read("data/a.txt") == "kept"
            assert again.info.image.endswith(":trained")
            with pytest.raises(errors.StillInUse):
                alice.images.remove("trained")
        assert "trained" not in {image.title for image in mallory.images.list()}
        with pytest.raises(errors.ImageNotFound):
            mallory.sessions.create(image="trained")
        with pytest.raises(errors.ImageNotFound):
            mallory.images.remove("trained")
        alice.images.share("trained", "project", project="default")
        mine = next(image for image in alice.images.list() if image.title == "trained")
        client.projects.edit("default", add_members=["stranger@example.org"])
        with mallory.sessions.create(image=mine.name, mem="512m") as theirs:
            assert theirs.files.read("data/a.txt") == "kept"
        alice.images.remove("trained")


def test_an_image_goes_to_a_registry_and_comes_back(
    client: moorage.Client, installation: Installation, registry: Registry, engine: docker.DockerClient, tiny_image: str
) -> None:
    name = f"{registry.host}/team/tool:1"
    client.images.register(tiny_image)
    with client.sessions.create(image=tiny_image, mem="256m") as session:
        session.files.write("a.txt", "travelled")
        with pytest.raises(errors.RegistryDenied):
            session.to_image(name).wait(60)
        client.registries.set(registry.host, USERNAME, "wrong")
        with pytest.raises(errors.RegistryDenied):
            session.to_image(name).wait(60)
        with pytest.raises(errors.RegistryUnreachable):
            session.to_image("127.0.0.1:1/team/tool:1").wait(60)
        assert {image.kind for image in client.images.list()} == {"registered"}  # nothing half-made
        with pytest.raises(urllib.error.HTTPError):
            registry.ask("team/tool/tags/list")

        kept = client.registries.set(registry.host, USERNAME, PASSWORD)
        assert PASSWORD not in json.dumps(
            [kept.to_json(), *(one.to_json() for one in client.registries.list())], default=str
        )
        done = installation.run("imagify", session.id, name, "--json", timeout=90)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"]["digest"].startswith("sha256:")
        assert json.loads(registry.ask("team/tool/tags/list"))["tags"] == ["1"]
    engine.images.remove(name, force=True)
    with client.sessions.create(image=name, mem="256m") as again:  # fetched, with the password
        assert again.files.read("a.txt") == "travelled"
        (container,) = engine.containers.list(filters={"label": f"moorage.session={again.id}"})
        assert PASSWORD not in json.dumps(container.attrs)
    client.images.remove(name)
    found = client.images.rescan(registry=registry.host, register=True).wait(30).info.result or {}
    assert name in found["registered"]
    for registered in (*found["registered"], tiny_image):
        client.images.remove(registered)
    client.registries.remove(registry.host)
    engine.images.remove(name, force=True)


def test_an_agent_that_is_killed_in_mid_commit_leaves_nothing_frozen(
    client: moorage.Client, installation: Installation, engine: docker.DockerClient
) -> None:
    with client.sessions.create(mem="1g") as session:
        session.run_code(FILL)
        (container,) = engine.containers.list(filters={"label": f"moorage.session={session.id}"})
        task = session.commit("cut-short")

        def frozen() -> bool:
            container.reload()
            return container.status == "paused"

        until(frozen)
        for process in installation.processes("agent"):
            os.kill(process, signal.SIGKILL)
        assert task.wait(60).status == "done"  # begun again by the agent that came after
        container.reload()
        assert container.status == "running"
        assert session.run_code("print(1)").stdout == "1\n"
    assert not list((installation.data_dir / "agent" / "commits").glob("*"))


def test_a_commit_goes_on_when_its_manager_is_killed(client: moorage.Client, installation: Installation) -> None:
    with client.sessions.create(mem="1g") as session:
        session.run_code(FILL)
        task = session.commit("taken-over")
        until(lambda: told(task))
        for process in _control(installation):
            os.kill(process, signal.SIGKILL)
        assert task.wait(60).status == "done"
    with client.sessions.create(image="taken-over", mem="512m") as again:
        assert again.run_code("import os; print(os.path.getsize('big'))").stdout == f"{120 << 20}\n"


def _control(installation: Installation) -> list[int]:
    """The manager's processes but the first, which supervises them."""
    return sorted(installation.processes("manager"))[1:]


def test_a_commit_is_cancelled_in_its_middle(client: moorage.Client, engine: docker.DockerClient) -> None:
    with client.sessions.create(mem="1g") as session:
        session.run_code(FILL)
        task = session.commit("unwanted")
        until(lambda: told(task))
        task.cancel()
        with pytest.raises(moorage.MoorageError, match="cancelled"):
            task.wait(30)
        assert not [image for image in client.images.list() if image.title == "unwanted"]
        assert session.run_code("print(1)").stdout == "1\n"
        assert session.commit("unwanted", visibility="user").wait(60).status == "done"
