"""The proxy role: the door to services in sessions, on an origin of its own. Nothing of the API is served here."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from aiohttp import web

from domain.errors import MoorageError, NotFound, Unauthenticated
from manager.config import ManagerConfig
from repositories.database import Database

log = logging.getLogger("moorage.proxy")


async def serve(database: Database, config: ManagerConfig, stack: AsyncExitStack) -> None:
    """Listen on the proxy's own port until the stack is closed."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def service(request: web.Request) -> web.Response:
        """Deny by default: a service is reached with a ticket, and no action of this version gives one out."""
        error: MoorageError = (
            NotFound("There is no such service.") if request.path.startswith("/proxy/") else Unauthenticated()
        )
        body = {"title": error.code, "status": error.http_status, "detail": error.message, "code": error.code}
        return web.json_response(body, status=error.http_status, content_type="application/problem+json")

    app = web.Application(client_max_size=0)
    app.router.add_get("/healthz", healthz)
    app.router.add_route("*", "/{path:.*}", service)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, config.host, config.proxy_port).start()
    log.info("the proxy listens on port %d", config.proxy_port)
