"""Why a session waits, and what it would start with."""

from domain.explain.states import Told, elsewhere, hosts_of, not_yet
from domain.explain.values import (
    Away,
    Before,
    Ending,
    Explanation,
    Held,
    HostCount,
    HostReport,
    LimitChange,
    Missing,
    Surroundings,
    Way,
)
from domain.explain.waiting import explain, plans_for

__all__ = [
    "Away",
    "Before",
    "Ending",
    "Explanation",
    "Held",
    "HostCount",
    "HostReport",
    "LimitChange",
    "Missing",
    "Surroundings",
    "Told",
    "Way",
    "elsewhere",
    "explain",
    "hosts_of",
    "not_yet",
    "plans_for",
]
