"""What was done and refused: read, taken away, proved whole."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

from moorage import _wire
from moorage._errors import StreamBroken
from moorage._models import AuditEntry, AuditVerdict
from moorage.aio._transport import Transport


class Audit:
    """`client.audit`"""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(
        self,
        *,
        who: str | None = None,
        owner: str | None = None,
        action: str | None = None,
        target: str | None = None,
        outcome: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AuditEntry]:
        """Newest first. `who` and `owner`: an e-mail address or an access key; `outcome`: ok, or the code of a refusal."""
        asked = _asked(who, owner, action, target, outcome, since, until)
        async with aclosing(self._transport.pages(_wire.path("audit"), limit=limit, **asked)) as items:
            async for item in items:
                yield AuditEntry.from_json(item)

    async def export(
        self,
        *,
        who: str | None = None,
        owner: str | None = None,
        action: str | None = None,
        target: str | None = None,
        outcome: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """All rows, oldest first, with their links; at last {"head": {"seq", "chain"}}, to be kept where nobody who can
        write to the database can write."""
        whole = False
        asked = _asked(who, owner, action, target, outcome, since, until)
        params = _wire.query(**asked)
        async with self._transport.stream("GET", _wire.path("audit", "export"), params=params) as response:
            async for line in response.aiter_lines():
                row: dict[str, Any] = json.loads(line)
                whole = "head" in row
                yield row
        if not whole:
            raise StreamBroken("The export broke off before its head; repeat it.")

    async def verify(self, head: Mapping[str, Any] | None = None) -> AuditVerdict:
        """Walk along the chain; `head`: one that was exported earlier, against which a cut end is found."""
        given = {} if head is None else {"head_seq": head["seq"], "head": head["chain"]}
        params = _wire.query(**given)
        answer = await self._transport.request("GET", _wire.path("audit", "verify"), params=params, hold=3600.0)
        return AuditVerdict.from_json(answer.json())


def _asked(
    who: str | None,
    owner: str | None,
    action: str | None,
    target: str | None,
    outcome: str | None,
    since: datetime | str | None,
    until: datetime | str | None,
) -> dict[str, Any]:
    asked = {"who": who, "owner": owner, "action": action, "target": target, "outcome": outcome}
    return {**asked, "since": _time(since), "until": _time(until)}


def _time(moment: datetime | str | None) -> str | None:
    return moment.astimezone().isoformat() if isinstance(moment, datetime) else moment
