"""A process whose background work has failed must not go on as if it worked."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from manager.daemon import _go_on


async def test_failed_work_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        async with asyncio.timeout(5), AsyncExitStack() as stack:
            with pytest.raises(ZeroDivisionError):
                async with stack:
                    _go_on(fail(), "control", stack)
                    await stopped.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert "control has failed; this process ends" in caplog.text


async def test_work_that_is_let_go_of_ends_nothing() -> None:
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        _go_on(asyncio.Event().wait(), "control", stack)  # type: ignore[arg-type]
