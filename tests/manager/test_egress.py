"""Where users may send the manager, and where they may not."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from manager.config import ConfigError, ManagerConfig
from manager.egress import Egress, Forbidden, is_own, networks

FORBIDDEN = {
    "127.0.0.1": "loopback",
    "127.9.9.9": "loopback",
    "0.0.0.0": "loopback",
    "::1": "loopback",
    "::": "loopback",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "private",
    "fd00::1": "private",
    "224.0.0.1": "multicast",
    "240.0.0.1": "private",
    "255.255.255.255": "private",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "2002:7f00:1::": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
}


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_is_not_the_world_is_refused(address: str) -> None:
    said = Egress().refusal(address)
    assert said is not None
    assert FORBIDDEN[address] in said


def test_the_world_is_not() -> None:
    assert Egress().refusal("93.184.215.14") is None
    assert Egress().refusal("2606:4700::1111") is None


def test_hosts_of_this_installation_are_refused_wherever_they_are() -> None:
    assert "this installation" in (Egress().refusal("93.184.215.14", {"93.184.215.14"}) or "")
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("93.184.215.14"))


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "localhost", "[::1]".strip("[]")])
async def test_other_spellings_of_loopback_are_refused_too(host: str) -> None:
    with pytest.raises(Forbidden, match="loopback"):
        await Egress().resolve(host, 80)


async def test_an_administrator_may_allow_what_is_private() -> None:
    allowed = Egress(networks("127.0.0.0/8, 10.1.0.0/16"))
    assert await allowed.resolve("127.0.0.1", 80) == "127.0.0.1"
    assert allowed.refusal("10.1.255.1") is None
    assert allowed.refusal("::ffff:10.1.2.3") is None
    assert allowed.refusal("10.2.0.1") == "private or reserved"


async def test_a_host_that_nobody_knows_is_said_to_be_that() -> None:
    with pytest.raises(Forbidden, match="not known"):
        await Egress().resolve("no-such-host.invalid", 80)


def test_a_list_that_is_none_is_refused_at_the_start(tmp_path: object) -> None:
    from pathlib import Path

    with pytest.raises(ConfigError, match="callback_allow"):
        ManagerConfig.load(Path(str(tmp_path)), callback_allow="10.0.0.0/99")
