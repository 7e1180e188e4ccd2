"""Signing in over HTTP: the one question that is asked without a credential."""

from __future__ import annotations

from aiohttp import web

from actions import SignInAction
from manager.rest.exchange import Exchange
from manager.rest.rows import action, finish, gather
from manager.sign_in import sign_in as signed_in


async def sign_in(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    asked: SignInAction = action(exchange.route, values)
    address = exchange.request.remote or "local"
    response = finish(exchange, await signed_in(exchange.door.world, asked, address, exchange.request_id))
    response.headers["Cache-Control"] = "no-store"
    return response
