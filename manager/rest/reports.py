"""Rows that are not one JSON answer: usage as CSV, the audit as JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from aiohttp import web

from actions.audit import AuditExport
from domain.errors import InvalidRequest, MoorageError
from manager.rest.exchange import Exchange
from manager.rest.json import dumps
from manager.rest.rows import action, finish, gather
from repositories.usage import UsageRow

COLUMNS = ("name", "sessions", "cpu_hours", "mem_gib_hours", "gpu_hours")


async def usage(exchange: Exchange) -> web.StreamResponse:
    """With `?format=csv` a table for spreadsheets; the total is left to them."""
    values, _, _ = await gather(exchange)
    form = exchange.query_value("format") or "json"
    if form not in ("json", "csv"):
        raise InvalidRequest(f"A format is json or csv, not '{form[:40]}'.", field="format")
    result = await exchange.run(action(exchange.route, values))
    if form == "json":
        return finish(exchange, result)
    return web.Response(text=as_csv(result.rows), content_type="text/csv", charset="utf-8")


async def audit_export(exchange: Exchange) -> web.StreamResponse:
    """A line for each row, oldest first, and at last one for the head: a file without it is not whole."""
    values, _, _ = await gather(exchange)
    export: AuditExport = await exchange.run(action(exchange.route, values))
    headers = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = await exchange.begin(200, headers)
    try:
        async for page in export.pages:
            await exchange.write(response, b"".join(dumps(row) + b"\n" for row in page))
    except MoorageError:
        exchange.cut()
        raise ConnectionResetError("the database went away in the middle") from None
    head = {"head": {"seq": export.head.seq, "chain": export.head.chain.hex()}}
    await exchange.write(response, dumps(head) + b"\n")
    return response


def as_csv(rows: Sequence[UsageRow]) -> str:
    """Names come from others: a spreadsheet must not take one for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        name = f"'{row.name}" if row.name.startswith(("=", "+", "-", "@", "\t", "\r")) else row.name
        hours = (f"{value:.6f}" for value in (row.cpu_hours, row.mem_gib_hours, row.gpu_hours))
        writer.writerow([name, row.sessions, *hours])
    return text.getvalue()
