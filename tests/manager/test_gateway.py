"""The gateway's own keys, its certificates, and its patience with those who guess."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from domain.errors import InvalidSshKey
from domain.ssh import PublicKey
from manager.config import ManagerConfig
from manager.gateway.authority import Authority
from manager.gateway.door import FAILURE_BURST, MOST_STRANGERS, Gateway
from manager.gateway.login import Login

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.of(ManagerConfig(data_dir=tmp_path, ssh_port=2222))


def test_its_keys_are_made_once_and_for_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    again = Authority.of(ManagerConfig(data_dir=tmp_path, ssh_port=2222))
    assert (again.host_key, again.ca_key) == (authority.host_key, authority.ca_key)
    assert authority.host_key != authority.ca_key
    for path in (tmp_path / "pki").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_certificate_says_who_and_which_session_and_for_how_long(authority: Authority, kind: str) -> None:
    key = asyncssh.generate_private_key(kind)
    signed = authority.sign(
        PublicKey.parse(key.export_public_key().decode()),
        identity="moorage KEY 1",
        principals=("access-key=KEY", "session=1"),
        valid_from=NOW,
        valid_until=NOW + timedelta(minutes=5),
    )
    certificate = cast(Any, asyncssh.import_certificate(signed))
    assert certificate.principals == ["access-key=KEY", "session=1"]
    assert certificate.signing_key == asyncssh.import_public_key(authority.ca_key)
    with pytest.raises(ValueError, match="expired"):
        certificate.validate(asyncssh.public_key.CERT_TYPE_USER, None)


def test_what_cannot_be_signed_is_said(authority: Authority) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    blob = PublicKey.parse(key.export_public_key().decode()).blob
    with pytest.raises(InvalidSshKey):
        authority.sign(
            PublicKey(kind="sk-ssh-ed25519@openssh.com", blob=blob, comment=""),
            identity="",
            principals=("a=b",),
            valid_from=NOW,
            valid_until=NOW,
        )


async def test_who_guesses_is_kept_waiting_and_others_are_not(authority: Authority) -> None:
    gateway = Gateway(cast(Any, None), authority)
    assert gateway.admit(Login(gateway), "10.0.0.1") is None
    for _ in range(FAILURE_BURST + 1):
        gateway.failed("10.0.0.1")
    assert "too many wrong keys" in (gateway.admit(Login(gateway), "10.0.0.1") or "")
    assert gateway.admit(Login(gateway), "10.0.0.2") is None


async def test_one_address_does_not_take_all_places(authority: Authority) -> None:
    gateway = Gateway(cast(Any, None), authority)
    refusals = [gateway.admit(Login(gateway), "10.0.0.1") for _ in range(MOST_STRANGERS + 1)]
    assert refusals[:-1] == [None] * MOST_STRANGERS
    assert refusals[-1] is not None
