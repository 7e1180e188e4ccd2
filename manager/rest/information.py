"""Rows with a turn of their own: creations that are waited for, logs, tokens for hosts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from actions.explain import DryRunAction
from actions.lifecycle import CreatedSession
from actions.views import SessionData
from domain.session import ANSWERING, FINAL
from manager.rest import answers
from manager.rest.exchange import OWNER, Exchange
from manager.rest.rows import action, finish, gather
from manager.rest.streams import permitted, watched


async def create(exchange: Exchange) -> web.StreamResponse:
    """With `?wait=` the session is answered as it is when it runs, has ended, or the time is over.

    With `?dry_run=true` nothing is created: the answer says what would be. The Idempotency-Key stays unused.
    """
    values, wait_seconds, _ = await gather(exchange)
    asked = action(exchange.route, values)
    if exchange.flag("dry_run"):
        owner = values.get(OWNER)
        return exchange.answer(await exchange.run(DryRunAction(creation=asked, owner_access_key=owner)))
    result: CreatedSession = await exchange.run(asked)
    if wait_seconds:
        service = exchange.door.world.service
        async with permitted(exchange):
            session = await service.wait_for_session(
                result.session_data.id, lambda s: s.status in ANSWERING | FINAL, wait_seconds
            )
        result = replace(result, session_data=SessionData.of(session))
    return finish(exchange, result)


async def agent_token(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    result = await exchange.run(action(exchange.route, values))
    make = exchange.door.join_token
    whole = result.secret if make is None or result.secret is None else make(result.secret)
    return exchange.answer(answers.join_token(result, whole), 201)


async def logs(exchange: Exchange) -> web.StreamResponse:
    values, _, _ = await gather(exchange)
    stream = await exchange.run(action(exchange.route, values))
    chunks: AsyncGenerator[bytes] = stream.chunks()
    async with aclosing(chunks):
        if not stream.follow:
            first = await anext(chunks, b"")  # what is wrong shows before the answer has begun
            response = await exchange.begin(200, _HEADERS)
            async with permitted(exchange):
                await exchange.write(response, first)
                async for chunk in chunks:
                    await exchange.write(response, chunk)
                await response.write_eof()
            return response
        response = await exchange.begin(200, _HEADERS)
        async with watched(exchange) as watch:
            async for chunk in chunks:
                await exchange.write(response, chunk)
            await response.write_eof()
    if watch.reason == "closing":
        await response.write_eof()
    elif watch.reason is not None:
        exchange.cut()
    return response


_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
