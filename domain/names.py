"""What a session may be called."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from domain.errors import InvalidName

#: Words that stand where a session's name stands in a REST path.
RESERVED: Final = frozenset({"match", "cluster", "from-template", "transit"})
_NAME: Final = re.compile(r"^\w[\w.-]*\w$")


def check_session_name(name: str) -> str:
    """The name, when it may be given to a session; else `InvalidName` says what is wrong with it."""
    if not 4 <= len(name) <= 64 or not _NAME.fullmatch(name):
        raise InvalidName(name=name[:64].encode("utf-8", "replace").decode())
    if name.lower() in RESERVED:
        raise InvalidName(f"'{name}' is a word of Moorage's own addresses; choose another name.")
    if as_uuid(name) is not None:
        raise InvalidName("A name that looks like an id would hide the session of that id; choose another name.")
    return name


def as_uuid(text: str) -> UUID | None:
    """The id that `text` spells, in any form Python reads; names may not look like one."""
    try:
        return UUID(text)
    except ValueError:
        return None
