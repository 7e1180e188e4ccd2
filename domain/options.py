"""What a session may be asked to carry besides its work: labels, ports that are open from the start, a callback."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from domain.errors import InvalidConfiguration, InvalidLabel

MOST_LABELS: Final = 64
MOST_LABEL_VALUE_CHARACTERS: Final = 256
MOST_PREOPEN_PORTS: Final = 32
MOST_URL_CHARACTERS: Final = 2048
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Raises InvalidLabel, which says what is wrong with which."""
    if len(labels) > MOST_LABELS:
        raise InvalidLabel(f"A session has at most {MOST_LABELS} labels, and these are {len(labels)}.")
    for name, value in labels.items():
        check_label_name(name)
        if len(value) > MOST_LABEL_VALUE_CHARACTERS or not value.isprintable() or "," in value:
            raise InvalidLabel(
                f"The value of the label '{name}' is not up to {MOST_LABEL_VALUE_CHARACTERS} printable characters without "
                "a comma."
            )
    return dict(labels)


def check_label_name(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise InvalidLabel(
            f"'{name[:80]}' cannot be the name of a label: it has up to 63 letters, digits, '.', '_', '/' or '-', and "
            "begins and ends with a letter or digit."
        )
    return name


def label_query(text: str) -> tuple[str, str | None]:
    """`k=v`, or `k` alone for any value."""
    name, equals, value = text.partition("=")
    return check_label_name(name), value if equals else None


def change_labels(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Those that are named get their new value, or go when it is None."""
    for name in changes:
        check_label_name(name)
    kept = {name: value for name, value in labels.items() if name not in changes}
    return check_labels({**kept, **{name: value for name, value in changes.items() if value is not None}})


def check_ports(ports: Sequence[int]) -> tuple[int, ...]:
    """In order, each once."""
    if len(ports) > MOST_PREOPEN_PORTS:
        raise InvalidConfiguration(
            f"At most {MOST_PREOPEN_PORTS} ports are opened at the start.", field="preopen_ports"
        )
    for port in ports:
        if not 1 <= port <= 65535:
            raise InvalidConfiguration(f"{port} is no port: they are from 1 to 65535.", field="preopen_ports")
    return tuple(sorted(set(ports)))


def check_callback_url(url: str) -> str:
    """An address that could be called; where it leads is looked at when it is (`manager/egress.py`)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidConfiguration(_NO_URL, field="callback_url") from None
    printable = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not host or not printable or len(url) > MOST_URL_CHARACTERS:
        raise InvalidConfiguration(_NO_URL, field="callback_url")
    if parts.username is not None or parts.password is not None:
        raise InvalidConfiguration(
            "The callback_url must not hold a user or password: what is sent there is signed instead.",
            field="callback_url",
        )
    if parts.fragment:
        raise InvalidConfiguration(
            "The callback_url must not hold a '#': it never reaches a server.", field="callback_url"
        )
    return url


_NO_URL: Final = f"The callback_url must be an http or https address of up to {MOST_URL_CHARACTERS} ASCII characters."
