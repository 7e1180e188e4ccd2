"""Another certificate authority in place of the present one, in three steps between which nobody is left out.

`begin`: it is trusted beside the present one. `switch`: it signs, and the present one is still trusted. `finish`: it is the
only one. After each, the files go to all managers, which are started anew one by one; agents hear of it as they connect.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent import pki
from domain.errors import Conflict

_NEXT_KEY, _NEXT = "ca-next.key", "ca-next.pem"


def begin(folder: Path) -> None:
    """Raises Conflict when a change is under way already."""
    if len(certificates(folder)) > 1 or (folder / _NEXT_KEY).exists():
        raise Conflict("A change of the authority is under way; 'moorage manager authority' says how far it is.")
    keep_secret(folder)
    key, certificate = pki.new_authority()
    pki.write(folder / _NEXT_KEY, key, 0o600)
    pki.write(folder / _NEXT, certificate, 0o644)
    pki.write(folder / "ca.pem", pki.authorities(folder).rstrip() + b"\n" + certificate, 0o644)


def switch(folder: Path) -> None:
    """Raises Conflict when nothing was begun."""
    if not (folder / _NEXT_KEY).exists():
        raise Conflict("There is no next authority; 'moorage manager authority begin' makes one.")
    present = certificates(folder)[0]
    following = (folder / _NEXT).read_bytes()
    pki.write(folder / "ca.key", (folder / _NEXT_KEY).read_bytes(), 0o600)
    pki.write(folder / "ca.pem", following + present.public_bytes(Encoding.PEM), 0o644)
    pki.certify_manager(folder)
    (folder / _NEXT_KEY).unlink()
    (folder / _NEXT).unlink()


def finish(folder: Path) -> None:
    """Raises Conflict while the next one does not sign yet."""
    if (folder / _NEXT_KEY).exists() or len(certificates(folder)) < 2:
        raise Conflict("No authority is on its way out; 'moorage manager authority' says how far a change is.")
    pki.write(folder / "ca.pem", certificates(folder)[0].public_bytes(Encoding.PEM), 0o644)


def state(folder: Path) -> tuple[str, str]:
    """How far a change is (settled, begun, switched), and what comes next."""
    then = "Once all managers were started anew and all hosts have connected since:"
    if (folder / _NEXT_KEY).exists():
        known = "the next authority is trusted beside the present one."
        return "begun", f"{known} {then} 'moorage manager authority switch'."
    if len(certificates(folder)) > 1:
        known = "the new authority signs, the former one is still trusted."
        return "switched", f"{known} {then} 'moorage manager authority finish'."
    return "settled", f"one authority, until {certificates(folder)[0].not_valid_after_utc:%Y-%m-%d}."


def certificates(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pki.authorities(folder))


def keep_secret(folder: Path) -> None:
    """What is sealed in the database is sealed with a key that was derived from the first authority's: that stays."""
    if not (folder / "vault.key").exists():
        pki.write(folder / "vault.key", (folder / "ca.key").read_bytes(), 0o600)
