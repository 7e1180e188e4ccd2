"""One call passed on to the service of a session and back, message by message; what is in the messages is not looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio

from manager.compat.grpc.budget import OverBudget, Share
from manager.compat.grpc.links import Link
from manager.compat.grpc.methods import Method

#: Ours, the connection's, or of this hop.
_NOT_PASSED_ON: Final = frozenset({"authorization", "user-agent", "te", "content-type", "grpc-accept-encoding"})
TOO_MUCH: Final = (
    "Your messages take up more memory here than one user may have at once; ask again when others are done."
)
CUT: Final = "The connection to the session's server was closed while it was asked; ask again."
Metadata = Sequence[tuple[str, str | bytes]]


class Refused(Exception):
    """How a call ends, when it does not end well."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = trailing


class Message:
    """One that is handed on: whoever takes it has the only reference, so that its memory is free when it was sent."""

    def __init__(self, data: bytes) -> None:
        self._data = [data]

    @property
    def data(self) -> bytes:
        return self._data[0]

    def take(self) -> bytes:
        return self._data.pop()


async def relay(context: Any, method: Method, message: Message, held: Held, link: Link) -> None:
    """Raises Refused with what the service says, or with why nothing was heard of it."""
    ask = link.channel.stream_stream(method.path)
    seconds = context.time_remaining()
    asked = ask(timeout=seconds, metadata=_passed_on(context.invocation_metadata() or ()))
    try:
        await asked.write(message.take())
        await asked.done_writing()
        held.release()  # it is on its way
        while (answer := await asked.read()) is not grpc.aio.EOF:
            held.take(len(answer))
            link.read(len(answer))
            await context.write(answer)
            answer = None
            held.release()
            if not method.streams:
                break
        context.set_trailing_metadata(_passed_on(await asked.trailing_metadata() or ()))
        code = await asked.code()
        if code is not grpc.StatusCode.OK:
            raise await _refused(asked, code, link)
    except grpc.aio.AioRpcError as error:
        raise await _refused(asked, error.code(), link) from None
    except grpc.aio.UsageError:  # it ended before all was written
        raise await _refused(asked, await asked.code(), link) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # The link was closed. gRPC says so by the same exception, and would leave its caller without an answer for ever.
        raise Refused(grpc.StatusCode.UNAVAILABLE, CUT) from None
    finally:
        asked.cancel()


class Held:
    """What one call holds of its user's share."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.most = 0  #: that a message of it had
        self._amount = 0

    async def reserve(self, amount: int) -> None:
        await self.share.reserve(amount)
        self._amount += amount

    def take(self, amount: int) -> None:
        self.share.take(amount)
        self._amount += amount
        self.most = max(self.most, amount)

    def keep(self, amount: int) -> None:
        """So much of it, and no more."""
        self.share.release(self._amount - amount)
        self._amount = amount
        self.most = max(self.most, amount)

    def release(self) -> None:
        self.keep(0)


async def _refused(asked: Any, code: grpc.StatusCode, link: Link) -> Refused:
    if link.over:
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MUCH)
    details = str(await asked.details() or "")
    if link.refused is not None:
        details = f"The session's server cannot be reached at the moment ({link.refused}); ask again."
        code = grpc.StatusCode.UNAVAILABLE
    elif code is grpc.StatusCode.UNAVAILABLE and link.broken:
        details = "The session's server went away while it was asked; it may have run out of memory."
    return Refused(code, details, _passed_on(await asked.trailing_metadata() or ()))


def _passed_on(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [
        (name, value)
        for name, value in metadata
        if name not in _NOT_PASSED_ON and not name.startswith((":", "grpc-", "moorage-"))
    ]


__all__ = ["Held", "OverBudget", "Refused", "relay"]
