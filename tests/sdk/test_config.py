"""Where the server is, who is asking, and which certificate is trusted."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import moorage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from moorage import errors
from moorage.config import load_config, save_config, save_sign_in

FILE = """
endpoint = "http://127.0.0.1:1000"
access_key = "from file"
secret_key = "secret of file"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "here.toml"
    path.write_text(FILE)
    return path


def test_arguments_come_before_environment_before_file(file: Path) -> None:
    environ = {"MOORAGE_CONFIG": str(file)}
    assert load_config(environ=environ).access_key == "from file"
    environ["MOORAGE_ACCESS_KEY"] = "from environment"
    assert load_config(environ=environ).access_key == "from environment"
    assert load_config(environ=environ, access_key="from argument").access_key == "from argument"


def test_the_keys_of_the_file_go_to_its_own_server_only(file: Path) -> None:
    environ = {"MOORAGE_CONFIG": str(file), "MOORAGE_ENDPOINT": "http://127.0.0.1:2000"}
    assert load_config(environ=environ).authorization == ""
    environ["MOORAGE_ENDPOINT"] = "http://127.0.0.1:1000/"
    assert load_config(environ=environ).authorization == "Bearer from file.secret of file"


def test_who_names_keys_or_a_token_means_these(file: Path) -> None:
    environ = {"MOORAGE_CONFIG": str(file)}
    save_sign_in("http://127.0.0.1:1000", "signed in", datetime.now(UTC) + timedelta(hours=1), environ=environ)
    assert load_config(environ=environ).authorization == "Bearer signed in"
    assert load_config(environ=environ, access_key="k", secret_key="s").authorization == "Bearer k.s"
    assert load_config(environ=environ, token="t").authorization == "Bearer t"
    keys = {**environ, "MOORAGE_ACCESS_KEY": "k", "MOORAGE_SECRET_KEY": "s"}
    assert load_config(environ=keys).authorization == "Bearer k.s"
    assert load_config(environ={**keys, "MOORAGE_TOKEN": "e"}).authorization == "Bearer e"
    assert load_config(environ={**environ, "MOORAGE_ENDPOINT": "http://127.0.0.1:2000"}).authorization == ""


def test_a_sign_in_that_has_ended_does_not_hide_the_keys(file: Path) -> None:
    environ = {"MOORAGE_CONFIG": str(file)}
    save_sign_in("http://127.0.0.1:1000", "late", datetime.now(UTC) - timedelta(seconds=1), environ=environ)
    assert load_config(environ=environ).authorization == "Bearer from file.secret of file"
    save_sign_in("http://127.0.0.1:1000", None, environ=environ)
    assert "token" not in file.read_text()
    assert load_config(environ=environ).access_key == "from file"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_sign_in_does_not_take_over_the_file_of_another_server(file: Path) -> None:
    with pytest.raises(errors.NotConfigured, match="name another file"):
        save_sign_in("http://127.0.0.1:2000", "t", config=file)
    assert file.read_text() == FILE


def test_what_was_saved_is_found_again_and_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    for secret in ("first", 'sécret "quoted" \\'):
        save_config(endpoint="https://h:1", access_key="a", secret_key=secret, fingerprint="f" * 64, config=path)
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    found = load_config(config=path, environ={})
    assert (found.endpoint, found.secret_key, found.fingerprint) == ("https://h:1", 'sécret "quoted" \\', "f" * 64)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:80", "ftp://x", "http://", "nonsense"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(errors.NotConfigured, match="no address"):
        load_config(endpoint=endpoint, environ={})


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("endpoint = ")
    with pytest.raises(errors.NotConfigured, match=r"broken\.toml"):
        load_config(config=tmp_path / "broken.toml", environ={})
    with pytest.raises(errors.NotConfigured, match="no configuration file"):
        load_config(config=tmp_path / "missing.toml", environ={})


def test_secrets_do_not_show() -> None:
    with moorage.Client("http://127.0.0.1:1", "key", "very secret") as client:
        assert "very secret" not in f"{client!r} {client.config!r}"


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        body = b'{"access_key": "ada"}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def self_signed(folder: Path) -> tuple[Path, Path, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "moorage")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, secret, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Endpoint and fingerprint of a server with a self-signed certificate for another name."""
    pem, key, fingerprint = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    server = HTTPServer(("127.0.0.1", 0), Hello)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", fingerprint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_pinned_certificate_is_trusted_whatever_its_name(secured: tuple[str, str]) -> None:
    endpoint, fingerprint = secured
    colons = ":".join(fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
    for pin in (fingerprint, colons, f"sha256:{fingerprint}"):
        with moorage.Client(endpoint, "a", "b", fingerprint=pin) as client:
            assert client.whoami().access_key == "ada"


def test_another_certificate_is_not(secured: tuple[str, str]) -> None:
    endpoint, fingerprint = secured
    with (
        moorage.Client(endpoint, "a", "b", fingerprint="0" * 64) as client,
        pytest.raises(errors.Unreachable, match=fingerprint),
    ):
        client.whoami()


def test_an_unknown_certificate_says_how_to_trust_it(secured: tuple[str, str]) -> None:
    with (
        moorage.Client(secured[0], "a", "b") as client,
        pytest.raises(errors.Unreachable, match="MOORAGE_FINGERPRINT"),
    ):
        client.whoami()
