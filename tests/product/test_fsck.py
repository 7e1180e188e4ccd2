"""Checking all invariants on the whole product, with real containers."""

from __future__ import annotations

import json

import docker
import moorage

from tests.product.conftest import Installation


def test_a_stray_and_a_tampered_container_are_found(
    installation: Installation, client: moorage.Client, engine: docker.DockerClient, kernel_image: str
) -> None:
    with client.sessions.create(image=kernel_image, cpu=1, mem="256m") as session:
        well = installation.run("admin", "fsck", "--json")
        found = json.loads(well.stdout)
        assert (well.returncode, found["findings"]) == (0, []), well.stdout
        assert len(found["hosts"]) == 1
        [ours] = engine.containers.list(filters={"label": f"moorage.session={session.id}"})
        stray = engine.containers.create(
            kernel_image, name=f"moorage-stray-{session.id}", labels={"moorage.agent": ours.labels["moorage.agent"]}
        )
        try:
            ours.update(mem_limit="512m", memswap_limit="512m")
            wrong = installation.run("admin", "fsck")
        finally:
            stray.remove(force=True)
        assert wrong.returncode == 1
        assert f"docker rm -f {stray.name}" in wrong.stderr + wrong.stdout
        assert "is limited to 1 CPUs and 512 MiB, and holds 1 and 256" in " ".join(wrong.stdout.split())
