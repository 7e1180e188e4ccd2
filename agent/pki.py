"""Certificates: the installation's own authority, the manager's and the agents' certificates, and the token to join with.

`ca.pem` holds every authority that is trusted, the one that signs first (agent/authority.py changes it).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from domain.errors import InvalidRequest

_TOKEN_PREFIX: Final = "moj_"  # noqa: S105 - what every token begins with
#: Of the authority and of managers, whose certificates are files that an administrator changes (docs/trust.md).
_YEARS: Final = 10
#: Agents renew theirs by themselves, when a third of this is left.
AGENT_LIFETIME: Final = timedelta(days=30)
RENEW_WITHIN: Final = AGENT_LIFETIME / 3
#: Clocks of hosts differ; a certificate is valid from a little before it was made.
_BACKDATED: Final = timedelta(minutes=10)


def ensure_authority(folder: Path) -> None:
    """Make the authority and the manager's own certificate, where there are none yet."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "ca.pem").exists():
        key, certificate = new_authority()
        write(folder / "ca.key", key, 0o600)
        write(folder / "ca.pem", certificate, 0o644)
    if not (folder / "manager.pem").exists():
        certify_manager(folder)


def new_authority() -> tuple[bytes, bytes]:
    """Its key and its certificate (both PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    # a name of its own: of two that are trusted, whoever checks finds the right one by it
    name = _name(f"Moorage authority {x509.random_serial_number() % 16**8:08x}")
    made = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), made.public_bytes(serialization.Encoding.PEM)


def certify_manager(folder: Path) -> None:
    """The managers' certificate, by the authority that signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = _signed(folder, _name("manager"), key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH)
    write(folder / "manager.key", _key_pem(key), 0o600)
    write(folder / "manager.pem", made.public_bytes(serialization.Encoding.PEM), 0o644)


def server_context(folder: Path) -> ssl.SSLContext:
    """For the managers' listener: a client's certificate is asked for, and checked by the handler of what needs one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "manager.pem", folder / "manager.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(folder: Path, *, with_certificate: bool = True) -> ssl.SSLContext:
    """For agents: trusts the one authority in `ca.pem`, whatever the managers' addresses are called."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # GPU hosts know managers by address; the authority signs managers and agents only
    context.load_verify_locations(folder / "ca.pem")
    if with_certificate:
        load_identity(context, folder)
    return context


def load_identity(context: ssl.SSLContext, folder: Path) -> None:
    """Show what `folder` holds now on connections from now on, and trust all authorities there; open ones go on."""
    context.load_verify_locations(folder / "ca.pem")
    own = folder / "agent.pem"  # a renewed one comes with its key in the same file, so that both change at once
    context.load_cert_chain(own, None if b"PRIVATE KEY" in own.read_bytes() else folder / "agent.key")


def make_request(folder: Path, agent_id: str) -> bytes:
    """A new key in `agent.key`, and the request (PEM) to certify it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    write(folder / "agent.key", _key_pem(key), 0o600)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(agent_id)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def renewal_request(agent_id: str) -> tuple[bytes, bytes]:
    """A new key, which is written nowhere yet, and the request to certify it (both PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(agent_id)).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def keep_renewed(folder: Path, key_pem: bytes, certificate_pem: bytes) -> None:
    """In one file, so that no crash leaves a key without its certificate. Raises ValueError when they do not fit."""
    made = x509.load_pem_x509_certificate(certificate_pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    if made.public_key() != key.public_key():
        raise ValueError("the certificate is of another key")
    write(folder / "agent.pem", certificate_pem + key_pem, 0o600)
    (folder / "agent.key").unlink(missing_ok=True)


def authorities(folder: Path) -> bytes:
    return (folder / "ca.pem").read_bytes()


def keep_authorities(folder: Path, bundle_pem: bytes) -> bool:
    """What a manager that is trusted already says is to be trusted; whether anything is new. Raises ValueError."""
    if not x509.load_pem_x509_certificates(bundle_pem):
        raise ValueError("no authority at all")
    if bundle_pem == authorities(folder):
        return False
    write(folder / "ca.pem", bundle_pem, 0o644)
    return True


def expires_at(folder: Path) -> datetime:
    """When the agent's own certificate ends."""
    return x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes()).not_valid_after_utc


def is_of_signing_authority(folder: Path) -> bool:
    """Whether the agent's certificate was signed by the first authority of the list, not by one on its way out."""
    own = x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes())
    try:
        own.verify_directly_issued_by(x509.load_pem_x509_certificate(authorities(folder)))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def ends_at(certificate_der: bytes) -> datetime:
    return x509.load_der_x509_certificate(certificate_der).not_valid_after_utc


def sign_request(
    folder: Path, request_pem: bytes, agent_id: str, *, lifetime: timedelta = AGENT_LIFETIME
) -> tuple[bytes, str]:
    """The certificate (PEM) of an agent, and its fingerprint. Raises InvalidRequest for what is no such request."""
    try:
        request = x509.load_pem_x509_csr(request_pem)
        if not request.is_signature_valid or not isinstance(request.public_key(), ec.EllipticCurvePublicKey):
            raise InvalidSignature
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        raise InvalidRequest("This is not a valid request for a certificate.") from None
    subject, key = _name(agent_id), request.public_key()
    made = _signed(folder, subject, key, ExtendedKeyUsageOID.CLIENT_AUTH, lifetime=lifetime)  # type: ignore[arg-type]
    return made.public_bytes(serialization.Encoding.PEM), fingerprint(made.public_bytes(serialization.Encoding.DER))


def fingerprint(certificate_der: bytes) -> str:
    return hashlib.sha256(certificate_der).hexdigest()


def common_name(certificate_der: bytes) -> str:
    """Whom a certificate names."""
    return str(
        x509.load_der_x509_certificate(certificate_der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    )


def make_direct(folder: Path, address: str) -> tuple[str, Path]:
    """A certificate of its own for the agent's listener, as PEM, and the file that holds it with its key.

    Not the authority's: what that signs as a server is a manager to every agent. Who asks for a direct address is told this
    one by a manager, and trusts nothing else there.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Moorage direct files")
    try:
        known: x509.GeneralName = x509.IPAddress(ip_address(address))
    except ValueError:
        known = x509.DNSName(address)
    made = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([known]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate = made.public_bytes(serialization.Encoding.PEM)
    write(folder / "direct.pem", certificate + _key_pem(key), 0o600)
    return certificate.decode(), folder / "direct.pem"


# -- join tokens -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """What a host needs to join: where, whom to trust there, and the secret that is good for one time."""

    url: str
    authority_sha256: str
    secret: str


def join_token(url: str, authority_pem: bytes, secret: str) -> str:
    fields = [url, hashlib.sha256(authority_pem.strip()).hexdigest(), secret]
    return _TOKEN_PREFIX + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


def parse_join_token(text: str) -> JoinToken:
    """Raises InvalidRequest."""
    try:
        body = text.strip().removeprefix(_TOKEN_PREFIX)
        url, authority, secret = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if not text.strip().startswith(_TOKEN_PREFIX) or not all(isinstance(s, str) for s in (url, authority, secret)):
            raise ValueError
    except ValueError:
        raise InvalidRequest("This is not a join token; 'moorage admin agent token' makes one.") from None
    return JoinToken(url=url, authority_sha256=authority, secret=secret)


def trust(folder: Path, authority_pem: bytes, token: JoinToken) -> None:
    """Keep the authority that a manager has shown, when it is the one that the token names. Raises InvalidRequest."""
    if hashlib.sha256(authority_pem.strip()).hexdigest() != token.authority_sha256:
        raise InvalidRequest("The manager at this address is not the one that made the token.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(folder / "ca.pem", authority_pem, 0o644)


def keep_certificate(folder: Path, certificate_pem: bytes) -> None:
    write(folder / "agent.pem", certificate_pem, 0o644)


# -- pieces ------------------------------------------------------------------------------------------------------------
def _signed(
    folder: Path,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    purpose: x509.ObjectIdentifier,
    *,
    lifetime: timedelta = timedelta(days=365 * _YEARS),
) -> x509.Certificate:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return (
        _builder(subject, authority.subject, public_key, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    lifetime: timedelta = timedelta(days=365 * _YEARS),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(path: Path, content: bytes, mode: int) -> None:
    """A file, whole or not at all, and never readable by more than `mode` says."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
