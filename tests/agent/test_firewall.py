"""The rules themselves, in a network namespace of their own: written whole, found again, taken away."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest

from agent.cluster import Networks
from agent.containers import Containers
from agent.firewall import Firewall
from agent.link import Links, Teller

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("iptables") or not shutil.which("unshare"),
    reason="packet filters and namespaces need root",
)


def rules(tool: str = "iptables") -> list[str]:
    done = subprocess.run([tool, "-t", "mangle", "-S"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "MOORAGE" in line]


async def story() -> None:
    subprocess.run(["ip", "link", "add", "br-one", "type", "bridge"], check=True)
    firewall = Firewall("ab-cd", closed=("203.0.113.0/24",))
    await firewall.guard("br-one", egress="open", together=False)
    await firewall.guard("br-two", egress="none", together=True)
    await firewall.close_to({"192.0.2.7", "2001:db8::7"})
    written = rules(), rules("ip6tables")
    text = "\n".join(written[0])
    for network in ("169.254.0.0/16", "203.0.113.0/24", "192.0.2.7/32"):
        assert f"-d {network} -i br-one -j DROP" in text
    assert "-i br-one -o br-one -j DROP" in text
    assert "-i br-two -o br-two -j RETURN" in text
    assert "-A MOORAGE-abcd -i br-two -j DROP" in text
    assert await firewall.restore()

    for harm in ("-F MOORAGE-abcd", "-D INPUT -j MOORAGE-abcd-in", "-R MOORAGE-abcd 1 -j ACCEPT"):
        subprocess.run(["iptables", "-t", "mangle", *harm.split()], check=True)
        assert not await firewall.restore()
        assert (rules(), rules("ip6tables")) == written
    assert await firewall.restore()

    # an agent that has gone: its bridges decide
    await Firewall("other").sweep()
    assert rules() == written[0]
    await firewall.release("br-two")
    assert not any("br-two" in line for line in rules())
    subprocess.run(["ip", "link", "del", "br-one"], check=True)
    await Firewall("other").sweep()
    assert rules() == rules("ip6tables") == []
    subprocess.run(["ip", "link", "add", "br-one", "type", "bridge"], check=True)
    with tempfile.TemporaryDirectory(prefix="with a blank-") as folder:
        theirs = Firewall("theirs", Path(folder))
        await theirs.guard("br-one", egress="open", together=False)
        assert await theirs.restore()
        await Firewall("other").sweep()
        assert rules()
    await Firewall("other").sweep()  # its data has gone, whatever goes on at the bridge
    assert rules() == rules("ip6tables") == []
    await firewall.guard("br-one", egress="open", together=False)
    await firewall.remove()
    assert rules() == rules("ip6tables") == []


@needs_root
def test_rules_come_stay_and_go() -> None:
    command = ["unshare", "--net", sys.executable, "-m", "tests.agent.test_firewall"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if "Could not fetch rule set" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no packet filter in a namespace: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-3000:]


async def test_an_agent_that_is_not_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    firewall = Firewall("x")
    assert "does not run as root" in (firewall.trouble or "")
    await firewall.guard("br", egress="open", together=False)  # nothing is tried


class Recorded(Firewall):
    """Only notes what it is to close."""

    def __init__(self) -> None:
        super().__init__("x")
        self.closed_to: set[str] = set()

    async def close_to(self, addresses: Collection[str]) -> None:
        self.closed_to = set(addresses)


async def test_who_runs_moorage_is_closed_to_sessions() -> None:
    engine, firewall = Containers(None, "uid"), Recorded()
    networks = Networks(engine, firewall=firewall)
    links = Links([], ssl.create_default_context(), cast(Teller, None), {})
    links.on_addresses = networks.close_to
    dialled: list[str] = []
    links._dial = dialled.extend  # type: ignore[assignment]
    rows: list[dict[str, Any]] = [
        {"id": "1", "role": "control", "url": "https://192.0.2.1:8471", "closed": ["192.0.2.5", "2001:db8::5"]},
        {"id": "2", "role": "api", "url": "https://localhost:8472"},
    ]
    links._managers_are(rows)
    assert networks._closing is not None
    await networks._closing
    assert firewall.closed_to == {"192.0.2.1", "192.0.2.5", "2001:db8::5"}  # its own loopback is everybody's own
    assert dialled == ["https://192.0.2.1:8471", "https://localhost:8472"]
    engine.close()


if __name__ == "__main__":
    asyncio.run(story())
