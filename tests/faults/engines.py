"""A container engine of our own, to be killed, stopped and started again: with its own network, mounts and data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import docker

_UP_SECONDS = 40.0


class PrivateEngine:
    """`open` and `close`; never in the network of the machine's own engine, which it would break."""

    def __init__(self, folder: Path, *, live_restore: bool = True) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.live_restore = live_restore
        self._name = f"mfe{os.getpid() % 10_000}"
        self._holder: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    # -- its life ----------------------------------------------------------------------------------------------------------
    def open(self, image: str, source: str) -> None:
        """With this image of the other engine."""
        shutil.rmtree(self.folder, ignore_errors=True)
        cgroups = self.folder / "cgroups"
        cgroups.mkdir(parents=True)
        subprocess.run(["ip", "netns", "add", self._name], check=True)
        # who holds its network and mounts while there is no daemon
        script = f"""
            mount --make-rprivate / && mount --rbind /sys/fs/cgroup {cgroups} && mount -t sysfs sysfs /sys &&
            mount --rbind {cgroups} /sys/fs/cgroup && umount -l {cgroups} && ip link set lo up &&
            touch {self.folder}/held && exec sleep infinity
        """
        self._holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._name}", "unshare", "-m", "sh", "-c", script], start_new_session=True
        )
        _until(lambda: (self.folder / "held").exists(), "its network and mounts are not there")
        self.start()
        saving = subprocess.Popen(["docker", "-H", source, "save", image], stdout=subprocess.PIPE)
        subprocess.run(
            ["docker", "-H", self.host, "load", "-q"], stdin=saving.stdout, check=True, stdout=subprocess.DEVNULL
        )
        saving.wait()

    def close(self) -> None:
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.DockerClient(base_url=self.host, timeout=60)
            for container in client.containers.list(all=True):
                container.remove(force=True)
            client.close()
        self.kill(containerd=True)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        subprocess.run(["ip", "netns", "del", self._name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', str(self.folder)], check=False)

    # -- its daemon ----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Returns when it answers."""
        assert self._holder is not None
        containerd = self.folder / "exec/containerd"
        if not _runs(containerd / "containerd.pid"):
            for stale in [*containerd.glob("*.pid"), *containerd.glob("*.sock*")]:
                stale.unlink()
        if not _runs(self.folder / "docker.pid"):
            (self.folder / "docker.pid").unlink(missing_ok=True)
        words = ["dockerd", "--data-root", str(self.folder / "root"), "--exec-root", str(self.folder / "exec")]
        words += ["--pidfile", str(self.folder / "docker.pid"), "-H", self.host, "--log-level", "warn"]
        words += ["--live-restore"] if self.live_restore else []
        with (self.folder / "dockerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["nsenter", "-t", str(self._holder.pid), "-n", "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _until(self.answers, f"no engine comes up; see {self.folder}/dockerd.log")

    def answers(self) -> bool:
        try:
            client = docker.APIClient(base_url=self.host, version="auto", timeout=5)
            client.close()
        except docker.errors.DockerException:
            return False
        return True

    @property
    def pid(self) -> int:
        return int((self.folder / "docker.pid").read_text())

    def kill(self, number: int = signal.SIGKILL, *, containerd: bool = False) -> None:
        """Returns when it has ended."""
        pids = [self.folder / "docker.pid"] + ([self.folder / "exec/containerd/containerd.pid"] if containerd else [])
        for file in pids:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), number)
        if self._daemon is not None:
            self._daemon.wait(60)
            self._daemon = None
        # it takes its containerd with it, a moment later: who starts within that moment waits for one that is gone
        with contextlib.suppress(RuntimeError):
            _until(lambda: not _runs(self.folder / "exec/containerd/containerd.pid"), "it goes on", seconds=3.0)

    def stop_answering(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def answer_again(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def _runs(pid_file: Path) -> bool:
    try:
        return Path(f"/proc/{int(pid_file.read_text())}").exists()
    except (OSError, ValueError):
        return False


def _until(true: Callable[[], bool], otherwise: str, *, seconds: float = _UP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)
