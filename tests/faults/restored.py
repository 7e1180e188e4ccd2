"""An installation is restored from a backup that is older than what has happened since."""

from __future__ import annotations

import subprocess

from bench.installation import MOORAGE
from tests.faults.book import Book
from tests.faults.installation import Installation
from tests.faults.workload import SECONDS, SMALL


async def restored(installation: Installation, book: Book) -> None:
    """Live sessions: one that goes on, one that was restarted, one that was ended, one that was made after the backup."""
    found: list[str] = []
    archive = installation.folder / f"backup-{len(book.faults)}.tar"
    async with installation.client() as client:
        stays, restarts, ends = [
            await client.sessions.create(f"{name}-b", **SMALL) for name in ("stays", "restarts", "ends")
        ]
        run = await stays.executions.start("sleep 3; echo done", mode="batch")
        _cli(installation, "backup", str(archive))
        await restarts.restart(wait=SECONDS)
        await ends.destroy(wait=SECONDS)
        later = await client.sessions.create("later-b", **SMALL)
        await run.wait(timeout=SECONDS)
        ids = {one.name: one.id for one in (stays, restarts, ends, later)}
    containers = _containers(installation)
    _cli(installation, "down", "--data-dir", str(installation.data_dir), plain=True)
    _cli(installation, "restore", str(archive), "--force")
    with book.timed("moorage up after a restore"):
        _up(installation)
    async with installation.client() as client:
        stays = await client.sessions.get(ids["stays-b"])
        ran = await stays.run_code("print('still here')")
        found += [] if ran.stdout == "still here\n" else [f"I7 the session that stays: {ran!r}"]
        done = await stays.executions.get(run.run_id).wait(timeout=SECONDS)
        found += [] if done.stdout == "done\n" else [f"I7 the execution that ended after the backup: {done!r}"]
        for name in ("restarts-b", "ends-b"):
            session = await client.sessions.get(ids[name])
            await session.wait_until("ERROR", "TERMINATED", timeout=SECONDS)
            found += [] if session.info.status_reason else [f"I4 {name} has ended without a reason"]
        left = _containers(installation)
        found += [f"a container was lost: {one}" for one in containers - left]
        strays = [one for one in (await client.fsck()).findings if one.check != "stray_container"]
        found += [f"{one.check}: {one.subject}: {one.detail}" for one in strays]
        await stays.destroy(wait=SECONDS)
    book.fault("restored from a backup that is older than a restart, an end and a creation", found)


def _containers(installation: Installation) -> set[str]:
    return {str(one["Names"][0]) for one in installation.outside.containers() if one["State"] == "running"}


def _cli(installation: Installation, *words: str, plain: bool = False) -> None:
    extra = () if plain else ("--data-dir", str(installation.data_dir))
    done = installation.run(*words, *extra)
    if done.returncode != 0:
        raise RuntimeError(f"moorage {words[0]}: {done.stderr}")


def _up(installation: Installation) -> None:
    words = [MOORAGE, "up", "--data-dir", str(installation.data_dir), "--detach", "--json"]
    subprocess.run(words, stdout=subprocess.PIPE, check=True, env=dict(installation.environ))
