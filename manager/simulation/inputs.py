"""The files that `moorage simulate` is given."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from domain.errors import InvalidSimulation
from domain.simulation import fleet as fleets
from domain.simulation import policy as policies
from domain.simulation.fleet import Fleet
from domain.simulation.policy import Policy

#: Larger ones are no descriptions.
_MOST_BYTES = 4 * 1024 * 1024


def read_fleet(path: Path) -> Fleet:
    return fleets.described(_document(path), path.stem)


def example_fleet() -> Fleet:
    return fleets.described(tomllib.loads(fleets.EXAMPLE), "example")


def read_policy(said: str) -> Policy:
    """A file, a known name, or settings between commas."""
    if said.endswith((".toml", ".json")):
        return policies.described(_document(Path(said)), Path(said).stem)
    return policies.said(said)


def _document(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InvalidSimulation(f"{path} is larger than a description may be.")
    try:
        text = content.decode()
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSimulation(f"{path} cannot be read: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidSimulation(f"{path} has to be a table.")
    return document
