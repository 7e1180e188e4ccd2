"""Dependency graphs, in the form that is asked for."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from actions.graph import DependencyGraph
from manager.rest.exchange import Exchange
from manager.rest.rows import action, gather

SVG: Final = "image/svg+xml"
DOT: Final = "text/vnd.graphviz"


async def dependency_graph(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    asked = action(exchange.route, values)
    result: DependencyGraph = await exchange.run(asked)
    if asked.format == "json":
        return exchange.answer(result.graph)
    text, media = (result.svg, SVG) if asked.format == "svg" else (result.dot, DOT)
    headers = {
        "Content-Type": f"{media}; charset=utf-8",
        "Cache-Control": "no-store",
        # names in it are users' own, whatever a browser makes of the rest
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    }
    return web.Response(body=text.encode(), headers=headers)
