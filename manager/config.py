"""What a manager is told: `manager.toml` in its data dir, the command line over it."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

from manager.compat import FRONTS, unknown
from manager.egress import Egress, networks

FILE_NAME = "manager.toml"


class ConfigError(Exception):
    """The configuration cannot be used; the message says which line and why."""


def default_data_dir() -> Path:
    """`MOORAGE_DATA_DIR`, or a folder of this user's."""
    if given := os.environ.get("MOORAGE_DATA_DIR"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "moorage"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """One manager. Ports left at 0 are chosen by the system, which suits tests and one-machine installations."""

    data_dir: Path
    #: PostgreSQL; for LISTEN it must be a direct connection, or `listen_url` must be one
    database_url: str = ""
    listen_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8470
    #: where agents connect; one port per role that speaks with them
    agent_host: str = "127.0.0.1"
    agent_api_port: int = 0
    agent_control_port: int = 0
    agent_proxy_port: int = 0
    #: where agents bring and fetch files, by connections of their own
    agent_data_port: int = 0
    #: the address that agents are told, when it differs from the one listened on
    advertised_agent_host: str = ""
    proxy_port: int = 0
    #: where browsers reach the proxy, when it is not at its port on `host`; an origin of its own
    proxy_url: str = ""
    #: the SSH gateway; at port 0 there is none. It listens on `host` unless it has one of its own
    ssh_port: int = 0
    ssh_host: str = ""
    #: the address that clients are told, when it is not the one at which they reach the API
    advertised_ssh_host: str = ""
    agent_ssh_port: int = 0
    #: of other systems' protocols, between commas: inference, backendai, grpc (docs/compat.md)
    fronts: str = ""
    #: of the gRPC front; it listens on `host`
    grpc_port: int = 0
    agent_grpc_port: int = 0
    #: of which the gRPC front makes sessions, as the one who asks sees it
    grpc_template: str = "cuvis"
    #: the largest message, and what one user may have in messages at once, in MiB
    grpc_message_mib: int = 300
    grpc_user_mib: int = 1024
    #: for clients that show no credential: ports of 127.0.0.1 and whose each is, PORT=ACCESS_KEY between commas
    grpc_users: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "INFO"
    #: before the API stops taking connections it says for so long that it is going to
    drain_seconds: int = 5
    #: addresses and ranges, between commas, that sessions' callback_url may lead to although they are private
    callback_allow: str = ""
    cluster_pool: str = "10.216.0.0/13"  #: of which every cluster session gets a /24 for its kernels

    @classmethod
    def load(cls, data_dir: Path, **given: Any) -> Self:
        """From the file in `data_dir`, with what was `given` (and is not None) over it. `DATABASE_URL`, or the
        file that `DATABASE_URL_FILE` names, fills an empty one."""
        path = data_dir / FILE_NAME
        try:
            stored = tomllib.loads(path.read_text()) if path.exists() else {}
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        known = {f.name: f.type for f in fields(cls)} | {}
        for name, value in stored.items():
            if name not in known or name == "data_dir":
                raise ConfigError(f"{path} has a setting that does not exist: {name}")
            if type(value).__name__ != known[name]:
                raise ConfigError(f"{path}: {name} must be of type {known[name]}")
        chosen = {**stored, **{name: value for name, value in given.items() if value is not None}}
        made = cls(data_dir=data_dir, **chosen)
        if not made.database_url:
            made = replace(made, database_url=_url_of_environment())
        if bool(made.tls_cert) != bool(made.tls_key):
            raise ConfigError("tls_cert and tls_key belong together; give both or none")
        made.cluster_network()
        made.callback_egress()
        made.front_names()
        made.grpc_user_ports()
        if not 1 <= made.grpc_message_mib <= min(made.grpc_user_mib, 2047):
            raise ConfigError("grpc_message_mib is from 1 to 2047, and no more than grpc_user_mib")
        if not made.tls_cert and not made.listens_on_loopback:
            raise ConfigError(
                f"plain HTTP is spoken on loopback only, and {made.host} is not: give --tls-cert and --tls-key"
            )
        return made

    def front_names(self) -> list[str]:
        names = [name for word in self.fronts.split(",") if (name := word.strip())]
        if wrong := unknown(names):
            raise ConfigError(f"There is no front {wrong[0]}; there are {', '.join(FRONTS)}")
        return names

    def grpc_user_ports(self) -> dict[int, str]:
        found = {}
        for word in self.grpc_users.replace(" ", "").split(","):
            port, _, user = word.partition("=")
            if word and not (port.isdecimal() and 0 < int(port) < 65536 and user):
                raise ConfigError(
                    f"grpc_users is PORT=ACCESS_KEY, several between commas, and '{word[:80]}' is not that"
                )
            if word:
                found[int(port)] = user
        return found

    def callback_egress(self) -> Egress:
        try:
            return Egress(networks(self.callback_allow))
        except ValueError as error:
            raise ConfigError(f"callback_allow is not a list of addresses and ranges: {error}") from None

    def cluster_network(self) -> IPv4Network:
        try:
            pool = IPv4Network(self.cluster_pool)
        except ValueError as error:
            raise ConfigError(f"cluster_pool is not a range of IPv4 addresses: {error}") from None
        if pool.prefixlen > 24 or not pool.is_private:
            raise ConfigError(f"cluster_pool must be private and hold at least one /24, and {pool} is not that")
        return pool

    def save(self) -> None:
        """Write the file, readable by its owner only: the database's password may be in it."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {name: value for name, value in asdict(self).items() if name != "data_dir" and value != ""}
        # JSON's strings and integers are TOML's.
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        path = self.data_dir / FILE_NAME
        partial = path.with_suffix(".new")
        partial.touch(mode=0o600)
        partial.write_text(text)
        partial.replace(path)

    @property
    def listens_on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost") or self.host.startswith("127.")

    @property
    def proxy_endpoint(self) -> str:
        """Of the services of sessions, without a slash at its end."""
        if self.proxy_url:
            return self.proxy_url.rstrip("/")
        scheme = "https" if self.tls_cert else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.proxy_port}"

    @property
    def endpoint(self) -> str:
        scheme = "https" if self.tls_cert else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


def _url_of_environment() -> str:
    if path := os.environ.get("DATABASE_URL_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ConfigError(f"DATABASE_URL_FILE cannot be read: {error}") from None
    return os.environ.get("DATABASE_URL", "")
