"""LISTEN and NOTIFY on a connection of its own. Wake-ups only: the tables are the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from domain.errors import InvalidConfiguration
from repositories.database import translated

#: PostgreSQL takes payloads below 8,000 bytes.
MAX_PAYLOAD_BYTES: Final = 7900
SELF_TEST_SECONDS: Final = 5.0


class Listener:
    """One direct connection that hears a channel. When it has `ended`, open another."""

    def __init__(self, connection: asyncpg.Connection[Any], channel: str) -> None:
        self._connection = connection
        self._channel = channel

    @property
    def ended(self) -> bool:
        return self._connection.is_closed()

    @classmethod
    async def open(
        cls, dsn: str, channel: str, on_payload: Callable[[str], None], on_ended: Callable[[], None], *, token: str
    ) -> Listener:
        """Connect, listen, and hear oneself say `token`; only then is it known that this is no pooler's connection."""
        heard = asyncio.Event()

        def receive(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            if payload == token:
                heard.set()
            else:
                on_payload(str(payload))

        with translated():
            connection = await asyncpg.connect(
                dsn, timeout=5, command_timeout=5, server_settings={"application_name": "moorage herald"}
            )
            listener = cls(connection, channel)
            connection.add_termination_listener(lambda _connection: on_ended())
            try:
                await connection.add_listener(channel, receive)
                await listener.notify(token)
                await asyncio.wait_for(heard.wait(), SELF_TEST_SECONDS)
            except TimeoutError:
                connection.terminate()
                raise InvalidConfiguration(
                    "The database delivers no notifications to the manager: its address must be PostgreSQL's own, "
                    "not that of a pooler in transaction mode. Set listen_dsn."
                ) from None
            except BaseException:
                connection.terminate()
                raise
        return listener

    async def notify(self, payload: str) -> None:
        with translated():
            await self._connection.execute("SELECT pg_notify($1, $2)", self._channel, payload)

    async def close(self) -> None:
        """Takes its leave where the server still answers, and is gone in any case."""
        try:
            await self._connection.close(timeout=1)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()
