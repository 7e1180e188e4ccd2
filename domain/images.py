"""How images are called: by engines, by registries, by those who own them."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from domain.errors import InvalidImageName

#: Images that engines would look for there, when the name says nothing else.
DEFAULT_REGISTRY: Final = "docker.io"
_TITLE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_PATH: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_title(title: str) -> str:
    """What a snapshot may be called. Raises InvalidImageName."""
    if not _TITLE.fullmatch(title):
        raise InvalidImageName(
            f"'{title[:80]}' cannot be a snapshot's name: it has 1 to 128 letters, digits, '_', '-' or '.', and begins with "
            "a letter, a digit or '_'."
        )
    return title


def snapshot_reference(owner_id: UUID, title: str) -> str:
    """By which engines know a user's snapshot: no two users' names meet."""
    return f"moorage/snapshot-{owner_id.hex}:{title}"


def registry_of(name: str) -> str:
    """The registry that an engine fetches an image from."""
    first, slash, _ = name.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DEFAULT_REGISTRY


def check_reference(name: str) -> str:
    """An image's whole name in a registry, HOST/REPOSITORY:TAG; the tag is `latest` when left out. Raises InvalidImageName."""
    host, slash, rest = name.partition("/")
    repository, _, tag = rest.partition(":")
    tag = tag or "latest"
    if not slash or registry_of(name) != host or not _HOST.fullmatch(host):
        raise InvalidImageName(
            f"'{name[:120]}' names no registry: an image is pushed to HOST/REPOSITORY:TAG, such as registry.example.org/team/tool:1."
        )
    if not _PATH.fullmatch(repository) or not _TAG.fullmatch(tag) or len(name) > 400:
        raise InvalidImageName(
            f"'{name[:120]}' cannot be an image's name: a repository is lower-case letters, digits, '.', '_', '-' and '/', "
            "a tag at most 128 letters, digits, '_', '-' or '.'."
        )
    return f"{host}/{repository}:{tag}"


def check_registry(host: str) -> str:
    """Raises InvalidImageName."""
    if not _HOST.fullmatch(host):
        raise InvalidImageName(
            f"'{host[:80]}' is no registry's address: give its host, and the port if it has one, such as registry.example.org:5000."
        )
    return host
