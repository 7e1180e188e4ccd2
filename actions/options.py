"""What a session carries besides its work, as it is asked for at the creation and changed later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from actions.base import Reading
from domain.errors import InvalidConfiguration
from domain.options import check_callback_url, check_labels, check_ports
from domain.session import DEFAULT_LEASE_SECONDS, OnAgentLost, Session


class Optioned(Protocol):
    """The fields of a creation that are checked here."""

    @property
    def labels(self) -> Mapping[str, str] | None: ...
    @property
    def preopen_ports(self) -> Sequence[int]: ...
    @property
    def callback_url(self) -> str | None: ...
    @property
    def idle_timeout(self) -> float | None: ...
    @property
    def on_agent_lost(self) -> OnAgentLost: ...
    @property
    def agent_lease(self) -> float | None: ...


async def checked_options(call: Reading, asked: Optioned) -> dict[str, Any]:
    """Fields of the session to be. Raises what is wrong with them."""
    return {
        "labels": check_labels(asked.labels or {}),
        "preopen_ports": check_ports(asked.preopen_ports),
        "callback_url": None if asked.callback_url is None else await checked_callback(call, asked.callback_url),
        "idle_timeout_seconds": asked.idle_timeout,
        "on_agent_lost": asked.on_agent_lost,
        "agent_lease_seconds": _checked_lease(asked),
    }


def _checked_lease(asked: Optioned) -> float | None:
    if asked.on_agent_lost is OnAgentLost.REPLACE:
        return asked.agent_lease or DEFAULT_LEASE_SECONDS
    if asked.agent_lease is not None:
        raise InvalidConfiguration(
            "Only a session that is replaced when its host is lost has agent_lease; pass on_agent_lost='replace' as well.",
            field="agent_lease",
        )
    return None


async def checked_callback(call: Reading, url: str, session: Session | None = None) -> str:
    """Nobody could trust what is not signed, so its owner has a secret first."""
    checked = check_callback_url(url)
    if not await call.db.webhooks.has_secret(call.owner.user_id if session is None else session.user_id):
        raise InvalidConfiguration(
            "A callback_url is told what happens by signed requests, and you have no secret to sign with yet: "
            "'moorage webhook secret' makes one.",
            field="callback_url",
        )
    return checked
