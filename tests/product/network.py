"""Programs that run in the network namespace of a container with all of root's rights there: more than any session has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

PORT: Final = 7123
_COMMON: Final = """
import fcntl, json, select, socket, struct, sys, time
from pathlib import Path

def with_ipv6(device="eth0"):
    conf = Path("/proc/sys/net/ipv6/conf") / device
    (conf / "accept_dad").write_text("0")
    (conf / "disable_ipv6").write_text("0")
    for _ in range(200):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            words = line.split()
            if words[5] == device and words[3] == "20":
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
        time.sleep(0.01)
    raise SystemExit("no link-local address")

def listen(port):
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    return tcp, udp
"""
_VICTIM: Final = (
    _COMMON
    + """
device, port = sys.argv[1], int(sys.argv[2])
own = with_ipv6(device) if device else ""
tcp, udp = listen(port)
print(json.dumps(own), flush=True)
while True:
    for ready in select.select([tcp, udp, sys.stdin], [], [])[0]:
        if ready is sys.stdin:
            raise SystemExit
        if ready is tcp:
            tcp.accept()[0].close()
            print("tcp", flush=True)
        else:
            print("udp", udp.recvfrom(100)[0].decode(), flush=True)
"""
)
_ATTACKER: Final = (
    _COMMON
    + """
said = json.loads(sys.argv[1])
own, reached = with_ipv6(), {}

def tcp(name, family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(0.4)
        try:
            s.connect(address)
            reached[name] = True
        except ConnectionRefusedError:
            reached[name] = True  # somebody has answered
        except OSError:
            reached[name] = False

def udp(family, address, text):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(text.encode(), address)
        except OSError:
            pass

def arp(name, target):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    s.bind(("eth0", 0))
    mac = Path("/sys/class/net/eth0/address")
    request = struct.pack("256s", b"eth0")
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mac = fcntl.ioctl(plain, 0x8927, request)[18:24]
    mine = fcntl.ioctl(plain, 0x8915, request)[20:24]
    s.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + mine + bytes(6)
        + socket.inet_aton(target))
    end, reached[name] = time.monotonic() + 0.4, False
    while (left := end - time.monotonic()) > 0 and select.select([s], [], [], left)[0]:
        frame = s.recv(100)
        if frame[20:22] == b"\\x00\\x02" and frame[28:32] == socket.inet_aton(target):
            reached[name] = True
            return

for name, target in said.get("arp", {}).items():
    arp(name, target)
for name, (target, port) in said.get("tcp", {}).items():
    if ":" in target:
        scope = socket.if_nametoindex("eth0") if target.startswith("fe80") else 0
        tcp(name, socket.AF_INET6, (target, port, 0, scope))
        udp(socket.AF_INET6, (target, port, 0, scope), name)
    else:
        tcp(name, socket.AF_INET, (target, port))
        udp(socket.AF_INET, (target, port), name)
print(json.dumps(reached))
"""
)


def attack(pid: int, *, tcp: Mapping[str, tuple[str, int]], arp: Mapping[str, str] | None = None) -> dict[str, bool]:
    """From the namespace of this process, to each of these; a datagram goes to each of `tcp` as well."""
    said = json.dumps({"tcp": dict(tcp), "arp": dict(arp or {})})
    command = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", _ATTACKER, said]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, bool] = json.loads(done.stdout)
    return answer


class Victim:
    """Listens on every address of a namespace, TCP and UDP, and notes who comes."""

    def __init__(self, where: list[str], device: str, port: int) -> None:
        command = [*where, sys.executable, "-c", _VICTIM, device, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.link_local: str = json.loads(self._process.stdout.readline())

    def visitors(self) -> list[str]:
        """All that came, until now; nobody else is let in from here on."""
        out, _ = self._process.communicate()
        return out.splitlines()


@contextmanager
def victim(pid: int | None = None, *, where: list[str] | None = None, port: int = PORT) -> Iterator[Victim]:
    """In the namespace of this process; or, without one, on this host."""
    made = Victim(where or (["nsenter", "-t", str(pid), "-n"] if pid else []), "eth0" if pid else "", port)
    try:
        yield made
    finally:
        made.visitors()


class World:
    """What is outside: a namespace behind this host with an ordinary address, and a metadata service's."""

    ordinary, metadata, closed = "198.51.100.2", "169.254.169.254", "198.51.100.77"

    def __init__(self) -> None:
        self.name = f"mw{uuid4().hex[:6]}"

    def __enter__(self) -> World:
        here, there = f"{self.name}h", f"{self.name}w"
        inside = f"ip -n {self.name}"
        for line in (
            f"ip netns add {self.name}",
            f"ip link add {here} type veth peer name {there} netns {self.name}",
            f"ip address add 198.51.100.1/24 dev {here}",
            f"ip link set {here} up",
            f"{inside} address add {self.ordinary}/24 dev {there}",
            f"{inside} address add {self.closed}/24 dev {there}",
            f"{inside} address add {self.metadata}/32 dev {there}",
            f"{inside} link set {there} up",
            f"{inside} link set lo up",
            f"{inside} route add default via 198.51.100.1",
            f"ip route add {self.metadata}/32 via {self.ordinary}",
        ):
            subprocess.run(line.split(), check=True, capture_output=True)
        return self

    def __exit__(self, *_: Any) -> None:
        subprocess.run(["ip", "route", "del", f"{self.metadata}/32"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    @property
    def where(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]
