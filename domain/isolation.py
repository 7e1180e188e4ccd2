"""What containers of a resource group may do inside, and where they may connect to."""

from __future__ import annotations

from enum import StrEnum


class Profile(StrEnum):
    """Of everything inside a session's container."""

    #: nobody becomes root, the image is read-only
    HARDENED = "hardened"
    #: sudo and apt work: root inside the container, with few of root's rights
    STANDARD = "standard"


class Egress(StrEnum):
    """To the world outside a session; other sessions, this host and what runs Moorage are closed in any case."""

    NONE = "none"
    OPEN = "open"


def words(profile: str, egress: str, *, many: bool = False) -> str:
    """For people, as the end of a sentence about a container, or about many."""
    inside = "root inside may be had by sudo" if profile == Profile.STANDARD else "nobody becomes root inside"
    reach = "they reach" if many else "it reaches"
    outside = "no network outside" if egress == Egress.NONE else "networks outside"
    return f"the profile {profile}: {inside}; {reach} {outside}"
