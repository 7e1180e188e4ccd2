"""What is written beside every change: the answer under its idempotency key, and the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from domain.errors import IdempotencyMismatch, RequestInProgress
from repositories.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    at: datetime
    user_id: UUID | None
    access_key: str | None
    owner_access_key: str | None
    action: str
    target: str | None
    outcome: str  #: ok, or an error's code
    request_id: str | None
    repeats: int = 1


async def claim_key(
    connection: Connection, user_id: UUID, key: str, *, action: str, request_hash: bytes, now: datetime
) -> Mapping[str, Any] | None:
    """None when the key is new and now belongs to this transaction; else the stored answer `{"answer": ...}`.

    A concurrent holder of the same key is waited for on the unique index, at most the lock timeout: it commits and its
    answer is returned, or it dies and this transaction becomes the first. Raises RequestInProgress, IdempotencyMismatch.
    """
    await connection.execute("SET LOCAL lock_timeout = '2s'")
    mine = await connection.fetchval(
        """
        INSERT INTO idempotency_keys (user_id, key, action, request_hash, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING RETURNING true
        """,
        user_id,
        key,
        action,
        request_hash,
        now,
    )
    if mine:
        return None
    row = await connection.fetchrow(
        "SELECT action, request_hash, answer FROM idempotency_keys WHERE user_id = $1 AND key = $2", user_id, key
    )
    if row is None:
        raise RequestInProgress
    if row["action"] != action or row["request_hash"] != request_hash:
        raise IdempotencyMismatch
    return {"answer": row["answer"]}


async def store_answer(connection: Connection, user_id: UUID, key: str, answer: Any) -> None:
    await connection.execute(
        "UPDATE idempotency_keys SET answer = $3 WHERE user_id = $1 AND key = $2", user_id, key, answer
    )


async def keep_answer(
    connection: Connection, user_id: UUID, key: str, action: str, answer: Any, *, now: datetime
) -> None:
    """Of an action whose effect is on a host, in the transaction that says that it is done."""
    await connection.execute(
        """
        INSERT INTO idempotency_keys (user_id, key, action, request_hash, created_at, answer) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING
        """,
        user_id,
        key,
        action,
        b"",
        now,
        answer,
    )


async def answer_of(connection: Connection, user_id: UUID, key: str, action: str) -> Any:
    """What `keep_answer` has kept; None when that was nothing."""
    return await connection.fetchval(
        "SELECT answer FROM idempotency_keys WHERE user_id = $1 AND key = $2 AND action = $3", user_id, key, action
    )


async def write_audit(connection: Connection, record: AuditRecord) -> None:
    await connection.execute(
        """
        INSERT INTO audit (at, user_id, access_key, owner_access_key, action, target, outcome, request_id, repeats)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        record.at,
        record.user_id,
        record.access_key,
        record.owner_access_key,
        record.action,
        record.target,
        record.outcome,
        record.request_id,
        record.repeats,
    )
