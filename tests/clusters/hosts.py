"""Several hosts on one machine: each a network namespace with an engine of its own, joined by a switch in another."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker

_UP_SECONDS = 30.0


class CannotMakeHosts(Exception):
    """The message says why, in one sentence."""


class Host:
    """A namespace `NAME` with an address, and an engine in it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.engine = f"unix://{folder}/docker.sock"
        self._processes: list[subprocess.Popen[bytes]] = []

    def inside(self, *words: str) -> list[str]:
        """The command in this host's network, everything else as outside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def start_engine(self) -> None:
        """With a /sys of the namespace, on which the engine finds its bridges, and the machine's cgroups in it."""
        cgroups = self.folder / "cgroups"
        cgroups.mkdir(parents=True)
        script = f"""
            mount --make-rprivate / && mount --rbind /sys/fs/cgroup {cgroups} && mount -t sysfs sysfs /sys &&
            mount --rbind {cgroups} /sys/fs/cgroup && umount -l {cgroups} && exec dockerd --live-restore \
                --data-root {self.folder}/root --exec-root {self.folder}/exec --pidfile {self.folder}/docker.pid \
                -H {self.engine} --log-level warn
        """
        self.start("dockerd", "unshare", "-m", "sh", "-c", script)

    def start(self, log: str, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A daemon of this host, ended with it."""
        with (self.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                self.inside(*words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=env or dict(os.environ),
            )
        self._processes.append(process)
        return process

    def wait_for_engine(self) -> docker.DockerClient:
        deadline = time.monotonic() + _UP_SECONDS
        while True:
            try:
                client = docker.DockerClient(base_url=self.engine, timeout=120)
                client.ping()
                return client
            except docker.errors.DockerException as error:
                if time.monotonic() > deadline or self._processes[0].poll() is not None:
                    log = (self.folder / "dockerd.log").read_text(errors="replace")
                    raise CannotMakeHosts(f"no second Docker engine comes up here: {log[-300:]}") from error
            time.sleep(0.05)  # a daemon that starts has no event to wait for

    def close(self) -> None:
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.DockerClient(base_url=self.engine, timeout=60)
            for container in client.containers.list(all=True):
                container.remove(force=True)
            client.close()
        for process in reversed(self._processes):  # nothing of them is to be kept, so none is given time
            process.kill()
            process.wait()
        _kill_containerd(self.folder)


class Hosts:
    """A switch, and hosts at it; this machine is at it too, under `address`."""

    def __init__(self, folder: Path, number: int = 2) -> None:
        tag = f"mt{os.getpid() % 10_000}"
        self.folder = folder
        self._loading: list[subprocess.Popen[bytes]] = []
        self._image = folder / "image.tar"
        self._net = f"10.232.{os.getpid() % 250}"
        self._switch, self._own = f"{tag}s", f"{tag}v"
        self.address = f"{self._net}.254"
        self.hosts = [Host(f"{tag}h{n}", f"{self._net}.{n}", folder / f"h{n}") for n in range(1, number + 1)]

    def open(self) -> None:
        """Raises CannotMakeHosts; what was made until then is for `close`."""
        missing = [
            tool for tool in ("ip", "bridge", "nsenter", "unshare", "dockerd", "iptables") if not shutil.which(tool)
        ]
        if os.geteuid() != 0 or missing:
            why = "it takes root" if os.geteuid() != 0 else f"{', '.join(missing)} cannot be found"
            raise CannotMakeHosts(f"hosts in network namespaces cannot be made here: {why}")
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        _ip("-n", self._switch, "link", "set", "lo", "up")
        # asked for before anything is built on it: kernels without VXLAN say so here
        _ip("-n", self._switch, "link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "br0")
        _ip("link", "add", self._own, "type", "veth", "peer", "name", "own", "netns", self._switch)
        _ip("address", "add", f"{self.address}/24", "dev", self._own)
        _ip("link", "set", self._own, "up")
        _ip("-n", self._switch, "link", "set", "own", "master", "br0", "up")
        for number, host in enumerate(self.hosts):
            self._plug(host, f"p{number}")
            host.folder.mkdir(parents=True)
            host.start_engine()

    def _plug(self, host: Host, port: str) -> None:
        _ip("netns", "add", host.name)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
        _ip("-n", host.name, "link", "set", "lo", "up")

    @property
    def image(self) -> Path:
        """Where the image lies that `start_loading` takes."""
        return self._image

    def start_loading(self) -> None:
        """Give every engine the image, at the same time, while others do other things."""
        for host in self.hosts:
            host.wait_for_engine().close()
            command = ["docker", "-H", host.engine, "load", "-q", "-i", str(self._image)]
            self._loading.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def wait_for_images(self) -> None:
        codes = [process.wait() for process in self._loading]
        self._loading.clear()
        self._image.unlink(missing_ok=True)
        if any(codes):
            raise CannotMakeHosts("the engines of the hosts do not take the image")

    def close(self) -> None:
        for process in self._loading:
            process.kill()
            process.wait()
        with ThreadPoolExecutor(len(self.hosts)) as threads:
            list(threads.map(Host.close, self.hosts))
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        subprocess.run(["ip", "link", "del", self._own], check=False, stderr=subprocess.DEVNULL)
        for name in (self._switch, *(host.name for host in self.hosts)):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMakeHosts(
            f"hosts in network namespaces cannot be made here: 'ip {' '.join(words)}' says {done.stderr.strip()}"
        )


def _kill_containerd(folder: Path) -> None:
    """With live-restore the engine leaves its containerd running."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "exec/containerd/containerd.pid").read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() == "containerd":
            os.kill(pid, signal.SIGKILL)


def quiet(command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]
