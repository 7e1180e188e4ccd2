"""Limits on what may be held at once: who may have how much more, with what this plan has placed already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from domain.placement import Blocked, Limit, Scope
from domain.scheduler.words import amount_words, unit


class Quotas:
    def __init__(self, limits: Iterable[Limit]) -> None:
        self._of: dict[Scope, list[_Account]] = {}
        for limit in sorted(limits, key=lambda limit: (limit.scope, limit.name, limit.max_amount)):
            self._of.setdefault(limit.scope, []).append(_Account(limit))
        self._bound: dict[tuple[Scope, ...], list[_Account]] = {}

    def accounts(self, scopes: tuple[Scope, ...]) -> list[_Account]:
        """Of everybody whose limits bind, in the order in which they are checked."""
        if (found := self._bound.get(scopes)) is None:
            found = self._bound[scopes] = [account for scope in scopes for account in self._of.get(scope, ())]
        return found


class _Account:
    __slots__ = ("held", "limit", "name", "room")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.name = limit.name
        self.held = limit.held
        self.room = limit.max_amount - limit.held


def exceeded(accounts: Iterable[_Account], asked: Mapping[str, int]) -> Blocked | None:
    """The first limit for which this is too much."""
    for account in accounts:
        amount = asked.get(account.name, 0)
        if amount > account.room and amount > 0:
            return Blocked(code="quota", detail=_sentence(account, amount))
    return None


def charge(accounts: Iterable[_Account], asked: Mapping[str, int]) -> None:
    for account in accounts:
        amount = asked.get(account.name, 0)
        account.held += amount
        account.room -= amount


def _sentence(account: _Account, amount: int) -> str:
    limit, name = account.limit, account.name
    kind, which = limit.scope
    most, held, asked = (amount_words(name, number) for number in (limit.max_amount, account.held, amount))
    return f"{kind} {limit.of or which} may hold {most} {unit(name, limit.max_amount)} at once and holds {held}; this asks for {asked}"
