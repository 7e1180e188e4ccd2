"""The audit: who did what to whose, read by page, taken away as a file, and proved whole. Reading it is on record, too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from actions.base import Effect, Reading, Remote, Result, Rules, ScopeAction, action, superadmin_or_monitor
from domain.errors import InvalidRange, InvalidRequest
from domain.principal import Principal, TokenScope
from repositories import audit_reading
from repositories.audit_proof import Head, verify_audit
from repositories.audit_reading import Wanted

Text = Annotated[str, Field(min_length=1, max_length=500)] | None
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    seq: int  #: its place in the chain
    at: datetime
    user: str | None  #: the e-mail address of who asked, as far as the account is there
    user_id: UUID | None
    access_key: str | None  #: with which it was asked; agent:NAME for a host
    owner: str | None  #: on whose behalf, or on whose session, when that is another
    owner_access_key: str | None
    action: str
    target: str | None
    outcome: str  #: ok, or the code of the refusal
    request_id: str | None
    repeats: int  #: the same again within a minute is written once

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> AuditEntry:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage(Result):
    items: list[AuditEntry]
    next_cursor: str | None = None


@action(Rules(allow=superadmin_or_monitor, effect=Effect.READ))
class ListAuditAction(ScopeAction[Reading, AuditPage]):
    """What was done and refused, newest first. It is there a moment after it was done, and for as long as it is kept."""

    who: Text = None  #: an e-mail address, an access key, or agent:NAME
    owner: Text = None  #: on whose behalf, or whose session: an e-mail address or an access key
    of_action: Text = None
    of_target: Text = None
    outcome: Text = None  #: ok, or the code of a refusal
    since: datetime | None = None
    until: datetime | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=_PAGE)] = 100

    def looks_at_others(self, by: Principal) -> bool:
        return True

    async def run(self, call: Reading, /) -> AuditPage:
        found = await audit_reading.newest(
            call.db.connection, _wanted(self), before=_decoded(self.cursor), limit=self.limit
        )
        items = [AuditEntry.of(row) for row in found]
        return AuditPage(items=items, next_cursor=str(items[-1].seq) if len(items) == self.limit else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditExport(Result):
    """Rows in pages, oldest first, up to a head that vouches for all of them."""

    head: Head
    pages: AsyncIterator[list[dict[str, Any]]]


@action(Rules(allow=superadmin_or_monitor, effect=Effect.AGENT, deadline_seconds=60.0, scope=TokenScope.READ))
class ExportAuditAction(ScopeAction[Remote, AuditExport]):
    """The audit as JSON lines, oldest first; the last line is the head of the chain, to be kept elsewhere."""

    who: Text = None
    owner: Text = None
    of_action: Text = None
    of_target: Text = None
    outcome: Text = None
    since: datetime | None = None
    until: datetime | None = None

    async def run(self, call: Remote, /) -> AuditExport:
        async with call.service.reading(call) as reading:
            head = await audit_reading.head_of(reading.db.connection)
        return AuditExport(head=head, pages=self._pages(call, head))

    async def _pages(self, call: Remote, head: Head) -> AsyncIterator[list[dict[str, Any]]]:
        """Each by a statement of its own: a slow reader holds up nobody."""
        after, wanted = 0, _wanted(self)
        while True:
            async with call.service.reading(call) as reading:
                rows = await audit_reading.following(
                    reading.db.connection, wanted, after=after, upto=head.seq, limit=_PAGE
                )
            if not rows:
                return
            yield [{**dict(row), "chain": row["chain"].hex()} for row in rows]
            after = rows[-1]["seq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict(Result):
    """Whether the audit is whole, and what that says."""

    whole: bool
    rows: int  #: that were proved
    since: int  #: the walk began after this row; what came before was forgotten by age
    broken_at: int | None  #: the first row that is missing, moved or changed
    why: str | None
    keyed: bool  #: links need a key that the database does not hold: without it they cannot be made anew
    seq: int  #: of the head
    head: str  #: the last link, in hexadecimal
    head_checked: bool  #: against one that was exported earlier


@action(Rules(allow=superadmin_or_monitor, effect=Effect.AGENT, deadline_seconds=3600.0, scope=TokenScope.READ))
class VerifyAuditAction(ScopeAction[Remote, AuditVerdict]):
    """Walk along the chain of the audit, and say whether a row was changed, moved or removed; with an exported head, also
    whether its end was cut off."""

    head_seq: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    head: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] | None = None

    async def run(self, call: Remote, /) -> AuditVerdict:
        if (self.head is None) != (self.head_seq is None):
            raise InvalidRequest(
                "An exported head is its number and its link: give both head_seq and head.", field="head"
            )
        given = None
        if self.head is not None and self.head_seq is not None:
            given = Head(seq=self.head_seq, chain=bytes.fromhex(self.head))
        seal = call.service.seal
        async with (
            call.service.reading(call) as reading,
            reading.db.connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            verdict = await verify_audit(
                reading.db.connection,
                key=seal.key if seal else None,
                kept=seal.kept if seal else None,
                head=given,
            )
        return AuditVerdict(
            whole=verdict.broken_at is None,
            rows=verdict.rows,
            since=verdict.since,
            broken_at=verdict.broken_at,
            why=verdict.why,
            keyed=seal is not None and verdict.keyed_since is not None,
            seq=verdict.last_seq,
            head=verdict.head.hex(),
            head_checked=given is not None and given.seq >= verdict.since,
        )


def _wanted(asked: ListAuditAction | ExportAuditAction) -> Wanted:
    for name, at in (("since", asked.since), ("until", asked.until)):
        if at is not None and at.tzinfo is None:
            raise InvalidRange("A time needs its zone: 2026-03-01T00:00:00Z.", field=name)
    return Wanted(
        who=asked.who,
        owner=asked.owner,
        action=asked.of_action,
        target=asked.of_target,
        outcome=asked.outcome,
        since=asked.since,
        until=asked.until,
    )


def _decoded(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19 and int(cursor)):
        raise InvalidRequest("The cursor is not one that a list has given; begin again without it.", field="cursor")
    return int(cursor)
