"""Templates, arguments and keys in Backend.AI's words, without an installation."""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
import pytest

from actions.template_document import parse
from domain.errors import InvalidRequest, InvalidTemplate
from manager.compat.backendai import task_template
from manager.compat.backendai.gql_rows import image_parts
from manager.compat.backendai.services import arguments_of, environment_of, port_of

WHOLE = """
api_version: "6"
kind: taskTemplate
metadata: {name: nightly, tag: x}
spec:
  session_type: batch
  kernel:
    image: index.docker.io/moorage/python:3.11
    architecture: x86_64
    environ: {A: "1"}
    run: {bootstrap: "echo hi", startup_command: "python main.py"}
    git: null
  scaling_group: default
  mounts: {data: /home/work/in, more: ""}
  resources: {cpu: "2", mem: 512m, cuda.device: 1}
  agent_list: null
"""


def test_a_template_becomes_fields_of_a_creation() -> None:
    ((name, document),) = task_template.read(WHOLE)
    assert name == "nightly"
    assert document["session"] == {
        "image": "moorage/python:3.11",
        "architecture": "x86_64",
        "session_type": "batch",
        "bootstrap_script": "echo hi",
        "startup_command": "python main.py",
        "resource_slots": {"cpu": 2, "mem": 512, "gpu": 1},
        "environ": {"A": "1"},
        "mounts": [{"volume": "data", "path": "/home/work/in"}, {"volume": "more"}],
        "resource_group": "default",
        "tag": "x",
    }
    parse(document)  # Moorage takes it
    back = task_template.write(cast(Any, SimpleNamespace(name=name, session=document["session"])))
    assert task_template.read(str(back).replace("None", "null").replace("'", '"'))[0] == (name, document)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        3,
        "",
        "[]",
        "just text",
        "kind: clusterTemplate",
        "{kind: taskTemplate, metadata: {}, spec: {}}",
        "{kind: taskTemplate, metadata: [], spec: {}}",
        "{kind: taskTemplate, metadata: {name: x}, spec: {kernel: {git: {repository: r}}}}",
        "{kind: taskTemplate, metadata: {name: x}, spec: {kernel: text}}",
        "a: &a [*a]",
        "- [[[[",
        "x" * 70_000,
    ],
)
def test_what_is_no_template(payload: Any) -> None:
    with pytest.raises(InvalidTemplate):
        task_template.read(payload)


def test_a_template_of_moorages_own_is_shown_with_its_parameters() -> None:
    told = task_template.write(
        cast(Any, SimpleNamespace(name="own", session={"image": {"$param": "image"}, "resource_slots": {"cpu": {"$param": "n"}}}))
    )  # fmt: skip
    assert told["spec"]["kernel"]["image"] == {"$param": "image"}
    assert told["spec"]["resources"] == {"cpu": {"$param": "n"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, []),
        ("", []),
        ("{}", []),
        ('{"--port": "80", "--flag": null, "-v": ["a", "b"], "--n": 3}', ["--port", "80", "--flag", "-v", "a", "b", "--n", "3"]),
        ({"--x": "y"}, ["--x", "y"]),
    ],
)  # fmt: skip
def test_arguments(given: Any, words: list[str]) -> None:
    assert arguments_of(given) == words


@pytest.mark.parametrize("given", ["[]", "nonsense", 3, "{" * 2000])
def test_what_are_no_arguments(given: Any) -> None:
    with pytest.raises(InvalidRequest):
        arguments_of(given)
    with pytest.raises(InvalidRequest):
        environment_of(given)


@pytest.mark.parametrize(("given", "port"), [(None, None), ("", None), ("80", 80), (443, 443)])
def test_ports(given: Any, port: int | None) -> None:
    assert port_of(given) == port


@pytest.mark.parametrize("given", [0, 65536, "x", True, -1, 1.5, "9" * 30])
def test_what_is_no_port(given: Any) -> None:
    with pytest.raises(InvalidRequest):
        port_of(given)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("python:3.11", ("index.docker.io", "python", "3.11")),
        ("moorage/python:3.11", ("index.docker.io", "moorage/python", "3.11")),
        ("cr.example.org/a/b:1", ("cr.example.org", "a/b", "1")),
        ("localhost:5000/b", ("localhost:5000", "b", "latest")),
        ("cr.example.org/b@sha256:00", ("cr.example.org", "b", "latest")),
    ],
)
def test_names_of_images(image: str, parts: tuple[str, str, str]) -> None:
    assert image_parts(image) == parts


async def test_only_the_key_that_was_handed_out_opens_a_tunnels_end() -> None:
    from manager.compat.backendai import sshd

    session = SimpleNamespace(id="01", status="RUNNING", kernels=())

    class Ask:
        session = {"session_name": "train"}

        async def run(self, action: Any) -> Any:
            return SimpleNamespace(session_info=session)

        async def derived(self, about: str) -> bytes:
            return about.encode().ljust(32, b"\0")

    ask = cast(Any, Ask())
    with tarfile.open(fileobj=io.BytesIO(await sshd.key_archive(ask))) as archive:
        member = archive.extractfile("id_container")
        assert member is not None
        handed_out = asyncssh.import_private_key(member.read())

    async def come(key: asyncssh.SSHKey) -> None:
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)
        serving = asyncio.create_task(sshd._serve(ask, cast(Any, session), handed_out.convert_to_public(), there))
        try:
            async with asyncssh.connect(
                "tunnel", sock=here, username="work", client_keys=[key], known_hosts=None, agent_path=None
            ):
                pass
        finally:
            await serving

    await come(handed_out)
    with pytest.raises(asyncssh.PermissionDenied):
        await come(asyncssh.generate_private_key("ssh-ed25519"))
