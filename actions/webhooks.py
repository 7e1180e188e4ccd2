"""Webhooks: the secret that they are signed with, and what became of each."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from actions.base import (
    Effect,
    Reading,
    Result,
    Rules,
    ScopeAction,
    SessionAction,
    Work,
    action,
    any_user,
    may_look,
)
from domain.errors import InvalidRequest
from domain.session import Session
from repositories.webhook import Delivery, secret_about


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret(Result):
    """With what a user's webhooks are signed."""

    created_at: datetime
    secret: str | None = None  #: only in the answer to its creation


@action(Rules(allow=any_user, effect=Effect.DATABASE, secrets=frozenset({"secret"})))
class CreateWebhookSecretAction(ScopeAction[Work, WebhookSecret]):
    """Make the secret that one's webhooks are signed with, in place of the one before. It is shown once."""

    async def run(self, call: Work, /) -> WebhookSecret:
        secret = f"mwh_{secrets.token_urlsafe(32)}"
        await call.db.webhooks.set_secret(call.by.user_id, call.seal(secret, secret_about(call.by.user_id)))
        return WebhookSecret(created_at=call.now, secret=secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryData:
    """One event for a session's callback_url."""

    id: UUID
    type: str  #: session.running, ...
    url: str
    status: str  #: queued, delivered, failed
    tries: int
    next_try_at: datetime | None
    http_status: int | None  #: of the last try
    error: str | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, d: Delivery) -> DeliveryData:
        return cls(
            id=d.id,
            type=d.type,
            url=d.url,
            status=d.status,
            tries=d.tries,
            next_try_at=d.next_try_at if d.status == "queued" else None,
            http_status=d.http_status,
            error=d.error,
            created_at=d.created_at,
            finished_at=d.finished_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliveries(Result):
    items: list[DeliveryData]
    next_cursor: str | None


@action(Rules(allow=may_look, effect=Effect.READ))
class ListDeliveriesAction(SessionAction[Reading, Deliveries]):
    """What was sent to a session's callback_url, the newest first: when, how often, and what the receiver said."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    async def run(self, call: Reading, session: Session, /) -> Deliveries:
        before = None if self.cursor is None else _sequence(self.cursor)
        found = await call.db.webhooks.deliveries(session.id, before=before, limit=self.limit)
        more = len(found) == self.limit
        return Deliveries(
            items=[DeliveryData.of(delivery) for delivery in found],
            next_cursor=str(found[-1].event_seq) if more else None,
        )


def _sequence(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise InvalidRequest("The cursor is not one that a list has given; begin again without it.", field="cursor")
    return int(cursor)
