"""Where the server is and who is asking: arguments, then the environment, then the configuration file."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from moorage._errors import NotConfigured


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that is needed to talk to one server as one user."""

    endpoint: str
    access_key: str = ""
    secret_key: str = ""
    #: a PEM file whose certificates are trusted, instead of the system's
    ca: str | None = None
    #: SHA-256 of the server's certificate, for self-signed ones: only that certificate is trusted
    fingerprint: str | None = None
    #: a token, which goes before the keys
    token: str = ""

    @property
    def authorization(self) -> str:
        if self.token:
            return f"Bearer {self.token}"
        return f"Bearer {self.access_key}.{self.secret_key}" if self.access_key else ""

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is this machine, which no proxy can stand in front of."""
        host = urlsplit(self.endpoint).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    def __repr__(self) -> str:
        return f"Config(endpoint={self.endpoint!r}, access_key={self.access_key!r})"


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`$MOORAGE_CONFIG`, or `~/.config/moorage/config.toml`."""
    if given := environ.get("MOORAGE_CONFIG"):
        return Path(given).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "moorage" / "config.toml"


def load_config(
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The first of arguments, environment and file that names each setting. Who names keys or a token, means these.

    Raises `NotConfigured` when there is no endpoint. Settings of the file that belong to its own server (keys, CA,
    fingerprint) are not sent to another endpoint that was named elsewhere.
    """
    path = Path(config) if config is not None else config_path(environ)
    stored = _read(path, must_exist=config is not None)
    named = endpoint or environ.get("MOORAGE_ENDPOINT")
    where = named or stored.get("endpoint")
    if not where:
        raise NotConfigured
    where = _checked(where)
    if named and where != stored.get("endpoint", "").rstrip("/"):
        stored = {}
    return Config(
        endpoint=where,
        access_key=access_key or environ.get("MOORAGE_ACCESS_KEY") or stored.get("access_key", ""),
        secret_key=secret_key or environ.get("MOORAGE_SECRET_KEY") or stored.get("secret_key", ""),
        ca=str(ca) if ca else environ.get("MOORAGE_CA") or stored.get("ca"),
        fingerprint=fingerprint or environ.get("MOORAGE_FINGERPRINT") or stored.get("fingerprint"),
        token=token or ("" if access_key else _token(environ, stored)),
    )


def save_config(
    *,
    endpoint: str,
    access_key: str,
    secret_key: str,
    ca: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Write the configuration file, readable by its owner only, and whole or not at all."""
    path = Path(config) if config is not None else config_path(environ)
    named = {"endpoint": endpoint, "access_key": access_key, "secret_key": secret_key}
    named |= {"ca": str(ca)} if ca else {}
    named |= {"fingerprint": fingerprint} if fingerprint else {}
    _write(path, named)
    return path


def _write(path: Path, named: Mapping[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in named.items())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def save_sign_in(
    endpoint: str,
    token: str | None,
    expires_at: datetime | None = None,
    *,
    ca: str | None = None,
    fingerprint: str | None = None,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Put a token into the configuration file, beside the keys that are there, or with None take it out again.

    Raises `NotConfigured` when the file is of another server.
    """
    path = Path(config) if config is not None else config_path(environ)
    stored = _read(path, must_exist=False)
    if stored.get("endpoint", endpoint).rstrip("/") != endpoint:
        raise NotConfigured(
            f"The configuration file {path} is of {stored['endpoint']}; name another file with --config, or MOORAGE_CONFIG."
        )
    named = {name: value for name, value in stored.items() if name not in _SIGN_IN} | {"endpoint": endpoint}
    named |= {name: value for name, value in (("ca", ca), ("fingerprint", fingerprint)) if value}
    if token is not None:
        named |= {"token": token, "token_expires_at": expires_at.isoformat() if expires_at else ""}
    _write(path, named)
    return path


_SIGN_IN = ("token", "token_expires_at")


def _token(environ: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """Keys in the environment go before a token in the file, and any keys before one that has expired."""
    if named := environ.get("MOORAGE_TOKEN"):
        return named
    if environ.get("MOORAGE_ACCESS_KEY"):
        return ""
    try:
        ended = datetime.fromisoformat(stored.get("token_expires_at", "")) <= datetime.now(UTC)
    except ValueError:
        ended = False
    return "" if ended and stored.get("access_key") else stored.get("token", "")


def _read(path: Path, *, must_exist: bool) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise NotConfigured(f"There is no configuration file {path}.") from None
        return {}
    except PermissionError:
        raise NotConfigured(f"You may not read the configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise NotConfigured(f"The configuration file {path} cannot be read: {problem}.") from None
    return {name: value for name, value in content.items() if isinstance(value, str)}


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotConfigured(f"The endpoint '{endpoint}' is no address; write it like http://127.0.0.1:8080.")
    return endpoint.rstrip("/")
