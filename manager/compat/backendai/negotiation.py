"""What the client asks before anything else: which version is spoken here."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from manager.compat.backendai.ask import Ask
from manager.compat.backendai.table import Route

#: The newest that the client of 23.09 speaks; it takes the older one of its own and this.
VERSION: Final = "v7.20230615"
MANAGER: Final = "23.09.10"


async def versions(ask: Ask) -> web.StreamResponse:
    return ask.answer({"version": VERSION, "manager": MANAGER})


async def announcement(ask: Ask) -> web.StreamResponse:
    """Asked by each command; nobody announces anything."""
    return ask.answer({"enabled": False, "message": ""})


ROUTES: Final = (
    Route("GET", "/", versions, public=True),
    Route("GET", "/manager/announcement", announcement),
)
