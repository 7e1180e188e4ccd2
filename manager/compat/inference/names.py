"""How apps are named by clients of inference.sh: `namespace/name@version:function`, of which only the name has to be there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from domain.errors import InvalidRequest

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_REFERENCE: Final = re.compile(
    rf"(?:(?P<namespace>{_PART})/)?(?P<name>{_PART})(?:@(?P<version>{_PART}))?(?::(?P<function>[A-Za-z_]\w{{0,127}}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class AppReference:
    name: str  #: without the namespace, which says nothing here: an app is its deployer's, or shared
    version: str | None = None
    function: str | None = None


def parse_reference(text: object) -> AppReference:
    """Raises InvalidRequest."""
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidRequest("'app' is a name such as namespace/name@version or name:function.", field="app")
    return AppReference(match["name"], match["version"], match["function"])
