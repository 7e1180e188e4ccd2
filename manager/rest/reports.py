"""Rows about use that are not one JSON answer: usage as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from aiohttp import web

from domain.errors import InvalidRequest
from manager.rest.exchange import Exchange
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
