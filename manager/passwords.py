"""Passwords: argon2id in threads, and what wrong ones cost an account and an address."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from domain.errors import TooManySignIns
from repositories.credentials import charge, refund
from repositories.database import Database

#: RFC 9106's second choice, as OWASP and the library have it: 64 MiB, three passes, four lanes; about 50 ms here.
MEMORY_KIB: Final = 64 * 1024
PASSES: Final = 3
LANES: Final = 4
#: So many are hashed at once (64 MiB each), and so many wait for that.
_THREADS: Final = 2
_MOST_WAITING: Final = 32
_MOST_REFUSED: Final = 10_000
#: An account may be wrong 10 times in a row and then once in a minute; an address 30 times, and then every 6 seconds.
ACCOUNT_BURST: Final = 10
ACCOUNT_PRICE: Final = timedelta(seconds=60)
ADDRESS_BURST: Final = 30
ADDRESS_PRICE: Final = timedelta(seconds=6)


class Attempt:
    """One password that is tried."""

    right = False

    def was_right(self) -> None:
        self.right = True


class Passwords:
    """Implements `actions.base.PasswordHashing`. Threads are started with the first password, and end with `close`."""

    def __init__(
        self, database: Database, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, lanes: int = LANES
    ) -> None:
        self._database = database
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        self._waiting = 0
        #: who was refused, and until when that holds whatever the database would say
        self._refused: dict[bytes, datetime] = {}

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")

    @cached_property
    def _nobodys(self) -> str:
        """What is compared for accounts that are not there, so that they take as long."""
        return self._hasher.hash("nobody's password")

    def close(self) -> None:
        if "_threads" in self.__dict__:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        return str(await self._aside(self._hasher.hash, password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Takes as long when there is none."""
        return bool(await self._aside(self._verify, password_hash, password))

    def needs_rehash(self, password_hash: str) -> bool:
        return self._hasher.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        nobodys = self._nobodys  # made at the first check of any, so that it gives nobody away
        try:
            self._hasher.verify(password_hash or nobodys, password)
        except (Argon2Error, InvalidHashError):
            return False
        return password_hash is not None

    async def _aside(self, function: object, *arguments: object) -> object:
        if self._waiting >= _MOST_WAITING:
            raise TooManySignIns("Too many sign in at this moment; try again in a few seconds.", retry_after=3)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)  # type: ignore[arg-type]
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def attempt(
        self, account: str, address: str | None, *, now: datetime | None = None
    ) -> AsyncIterator[Attempt]:
        """One try for an account from an address. Raises TooManySignIns, also for accounts that are not there.

        It is paid for beforehand and given back when it was right, so any number at once cost what they would in turn.
        """
        now = now or datetime.now(UTC)
        debts = [(_key("account", account.lower()), ACCOUNT_PRICE, ACCOUNT_BURST)]
        if address is not None:
            debts.insert(0, (_key("address", address), ADDRESS_PRICE, ADDRESS_BURST))
        for key, _, _ in debts:
            if (until := self._refused.get(key)) is not None and until > now:
                raise _too_many(until, now, first=False)
        async with self._database.reader() as connection:
            charged = await charge(connection, debts, now=now)
        if charged is not None:
            key, until = charged
            if len(self._refused) >= _MOST_REFUSED:
                self._refused.clear()
            self._refused[key] = until
            raise _too_many(until, now, first=True)
        attempt = Attempt()
        yield attempt
        if attempt.right:
            async with self._database.reader() as connection:
                await refund(connection, [(key, price) for key, price, _ in debts])


def _too_many(until: datetime, now: datetime, *, first: bool) -> TooManySignIns:
    """`first`: of those that are refused for the same reason until then; it is the one to be audited."""
    seconds = max(1, round((until - now).total_seconds()))
    error = TooManySignIns(f"Too many wrong passwords; try again in {seconds} s.", retry_after=seconds)
    error.first = first
    return error


def _key(kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{kind} {name}".encode("utf-8", "replace")).digest()
