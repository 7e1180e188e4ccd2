"""What an installation has on this machine, judged from outside: by the engine, /proc and the file system, not by Moorage."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import docker

#: What is on its way out may take so long.
_PASSES_SECONDS = 5.0
#: A process may have so many descriptors more than when it was first looked at.
_MORE_FDS = 120


class Outside:
    """Of the installation in this data dir."""

    def __init__(self, data_dir: Path, engine: str) -> None:
        self._data_dir = data_dir
        self._engine = docker.APIClient(base_url=engine, version="auto", timeout=60)
        self._fds: dict[str, int] = {}

    @property
    def uid(self) -> str:
        """By which the agent labels what it makes."""
        database = sqlite3.connect(f"file:{self._data_dir}/agent/agent.db?mode=ro", uri=True)
        with contextlib.closing(database):
            (uid,) = database.execute("SELECT value FROM meta WHERE key = 'uid'").fetchone()
        return str(uid)

    def containers(self) -> list[dict[str, Any]]:
        return list(self._engine.containers(all=True, filters={"label": f"moorage.agent={self.uid}"}))

    def networks(self) -> list[dict[str, Any]]:
        """Of cluster sessions."""
        found = self._engine.networks(filters={"label": f"moorage.agent={self.uid}"})
        return [one for one in found if "moorage.session" in (one["Labels"] or {})]

    def scraps(self) -> list[str]:
        """Images for the moment of a commit."""
        made = self._engine.images(filters={"label": f"moorage.agent={self.uid}"})
        return [tag for one in made for tag in one["RepoTags"] or () if tag.startswith("moorage/scrap:")]

    # -- comparing ---------------------------------------------------------------------------------------------------
    def compare(self, kernels: Collection[str], sessions: Collection[str]) -> list[str]:
        """What is here and should not be, or the other way round, when just these kernels run and nothing is going on."""
        return _passing(lambda: self._compare(kernels, sessions))

    def _compare(self, kernels: Collection[str], sessions: Collection[str]) -> list[str]:
        there = self.containers()
        count = Counter(one["Labels"].get("moorage.kernel", "?") for one in there)
        found = [
            f"I2 a container of kernel {kernel}, which does not run" for kernel in sorted(count.keys() - set(kernels))
        ]
        found += [f"I2 no container of kernel {kernel}, which runs" for kernel in sorted(set(kernels) - count.keys())]
        found += [f"I3 {number} containers of kernel {kernel}" for kernel, number in count.items() if number > 1]
        found += [f"I8 {one['Names'][0]} is {one['State']}" for one in there if one["State"] != "running"]
        networks = {one["Labels"]["moorage.session"]: one["Name"] for one in self.networks()}
        found += [f"I8 the network {name} is left" for of, name in networks.items() if of not in sessions]
        found += [f"I8 the image {tag} is left" for tag in self.scraps()]
        found += [f"I8 {file} is left" for file in sorted((self._data_dir / "agent").glob("commits/*"))]
        return [*found, *self._mounts(), *self._processes()]

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [f"I8 {line.split()[1]} is mounted" for line in lines if str(self._data_dir) in line.split()[1]]

    def _processes(self) -> list[str]:
        """One of each, that holds no more than it held when it was first looked at."""
        found, named = [], Counter[str]()
        for process, name in self.processes():
            named[name] += 1
            with contextlib.suppress(OSError):
                fds = sum(1 for _ in (process / "fd").iterdir())
                first = self._fds.setdefault(name, fds)
                if fds > first + _MORE_FDS:
                    found.append(f"I8 {name} has {fds} descriptors, and had {first}")
        return found + [f"I8 {number} processes {name}" for name, number in named.items() if number > 1]

    def processes(self) -> list[tuple[Path, str]]:
        """All processes of this installation but PostgreSQL's."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(word.startswith(str(self._data_dir)) for word in words) and "postgres" not in words[0]:
                    daemon = next((one for one in ("up", "manager", "agent") if one in words), Path(words[0]).name)
                    found.append((process, f"{daemon} {(process / 'comm').read_text().strip()}"))
        return found

    # -- the end -----------------------------------------------------------------------------------------------------
    def remove_all(self) -> None:
        """Whatever is left, for the next one to begin on an empty machine."""
        for process, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        for container in self.containers():
            with contextlib.suppress(docker.errors.APIError):
                self._engine.remove_container(container["Id"], force=True, v=True)
        for network in self._engine.networks(filters={"label": f"moorage.agent={self.uid}"}):
            with contextlib.suppress(docker.errors.APIError):
                self._engine.remove_network(network["Id"])
        for label in (f"moorage.agent={self.uid}", f"moorage.image.agent={self.uid}"):
            for image in self._engine.images(filters={"label": label}):
                with contextlib.suppress(docker.errors.APIError):
                    self._engine.remove_image(image["Id"], force=True)
        self._engine.close()


def _passing(look: Callable[[], list[str]]) -> list[str]:
    """What is found again and again: what is on its way out is not left over."""
    until = time.monotonic() + _PASSES_SECONDS
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return found
