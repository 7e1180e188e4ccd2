"""Whom to trust: the system's authorities, a CA of one's own, or exactly one certificate."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from urllib.parse import urlsplit

from moorage._errors import NotConfigured, Unreachable
from moorage.config import Config


def tls_context(config: Config) -> ssl.SSLContext:
    """A context for the configured server; with a fingerprint, only the certificate that has it is trusted."""
    if config.fingerprint:
        return _pinned(config.endpoint, config.fingerprint)
    if config.ca:
        try:
            return ssl.create_default_context(cafile=config.ca)
        except (OSError, ssl.SSLError) as problem:
            raise NotConfigured(f"The CA file {config.ca} cannot be used: {problem}.") from None
    return ssl.create_default_context()


def _pinned(endpoint: str, fingerprint: str) -> ssl.SSLContext:
    """Fetch the certificate, compare it, and trust it alone; so what later connections meet is compared as well."""
    certificate = _certificate_of(endpoint)
    wanted = fingerprint.lower().removeprefix("sha256:").replace(":", "")
    found = hashlib.sha256(certificate).hexdigest()
    if not hmac.compare_digest(found, wanted):
        raise Unreachable(
            f"The certificate of {endpoint} is not the pinned one (its SHA-256 is {found}); "
            "if the server's certificate was changed on purpose, update the fingerprint."
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is known
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
    return context


def _certificate_of(endpoint: str) -> bytes:
    parts = urlsplit(endpoint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over this connection
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""
    except OSError as problem:
        raise Unreachable(f"Nothing answers at {endpoint} ({problem}); is the server up ('moorage status')?") from None
