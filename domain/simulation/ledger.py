"""What users hold and held in the simulation, for the fair-share formula of `domain.placement.Share`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from domain.placement import DEVICE, Share

KINDS = ("cpu", "mem", "gpu")


def by_kind(amounts: Mapping[str, int], capacity: Mapping[str, int]) -> dict[str, float]:
    """What a kernel takes of a host, as kinds: half of a device's memory is half a device."""
    kinds = {"cpu": float(amounts.get("cpu", 0)), "mem": float(amounts.get("mem", 0)), "gpu": 0.0}
    for name, amount in amounts.items():
        if name.startswith(DEVICE):
            kinds["gpu"] += amount / capacity[name]
    return kinds


@dataclass(slots=True)
class _Account:
    at_ms: int
    held: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    past: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))


class Ledger:
    """Of one resource group. Exact at any time: between changes, what is held is constant, and the mean has a closed form."""

    def __init__(self, group: str, half_life_seconds: float, weights: Mapping[UUID, float]) -> None:
        self._group = group
        self._half_life_ms = half_life_seconds * 1000.0
        self._weights = weights
        self._accounts: dict[UUID, _Account] = {}

    def change(self, user: UUID, kinds: Mapping[str, float], sign: int, at_ms: int) -> None:
        """Hold more (1) or less (-1)."""
        account = self._accounts.get(user)
        if account is None:
            account = self._accounts[user] = _Account(at_ms)
        self._bring_up(account, at_ms)
        for name, amount in kinds.items():
            account.held[name] += sign * amount

    def shares(self, users: Iterable[UUID], at_ms: int) -> list[Share]:
        """Of those who have ever held something, or whose weight is not 1."""
        found = []
        for user in users:
            account = self._accounts.get(user)
            weight = self._weights.get(user, 1.0)
            if account is None:
                if weight != 1.0:
                    found.append(Share(resource_group=self._group, user_id=user, weight=weight))
                continue
            self._bring_up(account, at_ms)
            found.append(
                Share(
                    resource_group=self._group,
                    user_id=user,
                    held=dict(account.held),
                    past=dict(account.past),
                    weight=weight,
                )
            )
        return found

    def _bring_up(self, account: _Account, at_ms: int) -> None:
        """d past / dt = ln 2 / half-life * (held - past)"""
        if at_ms == account.at_ms:
            return
        kept = 2.0 ** (-(at_ms - account.at_ms) / self._half_life_ms)
        for name, held in account.held.items():
            account.past[name] = account.past[name] * kept + held * (1.0 - kept)
        account.at_ms = at_ms
