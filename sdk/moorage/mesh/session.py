"""One client's conversation with a mesh: the best node is asked, and another one when it fails; never twice for an output."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol, cast

from moorage._errors import MoorageError
from moorage.mesh._authorizers import AuthorizerBase
from moorage.mesh.errors import CannotResume, NodeBusy, NodeFailed, NoNodes, SessionClosed, StreamInterrupted
from moorage.mesh.manager import RemoteManager
from moorage.mesh.nodes import Node
from moorage.mesh.protocol import MockProtocol


class StreamProtocol(Protocol):
    """What may be plugged in. With a parameter `start_at`, it can begin at another output than the first."""

    @property
    def call_inference_stream(self) -> Callable[..., AsyncIterator[Any]]: ...


PlugFactory = Callable[[RemoteManager, AuthorizerBase | None], StreamProtocol]
Plug = StreamProtocol | PlugFactory


class Session:
    """Asks one node, and stays with it as long as it does well. `await close()` ends all streams; then it is closed."""

    def __init__(
        self,
        remote_manager: RemoteManager,
        authorizer: AuthorizerBase | None = None,
        *,
        protocol: Plug = MockProtocol,
    ) -> None:
        self._manager = remote_manager
        self._protocol = _plugged(protocol, remote_manager, authorizer)
        self._resumes = "start_at" in inspect.signature(self._protocol.call_inference_stream).parameters
        self._closed = asyncio.Event()
        self.peer: str | None = None  #: the node that was asked last

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def close(self) -> None:
        """Streams that are open end with SessionClosed, and nothing is asked any more."""
        self._closed.set()
        if (close := getattr(self._protocol, "close", None)) is not None:
            done = close()
            if inspect.isawaitable(done):
                await done

    async def run_protocol_task(
        self, prompt: str, tensor: Any = None, max_retries: int = 4
    ) -> AsyncGenerator[Any, None]:
        """Outputs, one after the other, each once. A node that fails is banned for a while and another one asked, at most
        `max_retries` times: before the first output, or from the next one on where the application can do that.

        Raises AuthorizationRefused, RateLimited, ApplicationError, InvalidInput, which no other node would answer better;
        StreamInterrupted, when outputs were given out and it cannot be gone on; NodeFailed or NoNodes in the end;
        SessionClosed.
        """
        outputs, attempt, failure = 0, 0, None
        while True:
            self._check_open()
            try:
                node = await self._choose(again=failure is not None)
                with self._manager.using(node.peer_id):
                    async with aclosing(self._outputs(node, prompt, tensor, outputs)) as stream:
                        async for output in stream:
                            self._check_open()
                            outputs += 1
                            yield output
                            self._check_open()
                self._manager.on_request_success(node)
                return
            except (NodeFailed, NoNodes) as error:
                self._check_open()
                if isinstance(error, NoNodes) and failure is not None:
                    error = NoNodes(f"{error} The last failure: {failure}")
                else:
                    failure = error
                if outputs and not self._resumes:
                    raise StreamInterrupted(self._interrupted(outputs, error), outputs=outputs) from error
                if attempt >= max_retries:
                    raise error from None
            except CannotResume as error:
                raise StreamInterrupted(self._interrupted(outputs, failure or error), outputs=outputs) from failure
            await self._pause(self._manager.get_retry_delay(attempt))
            attempt += 1

    async def _outputs(self, node: Node, prompt: str, tensor: Any, start_at: int) -> AsyncGenerator[Any, None]:
        """Of one node. What it does wrong is remembered and raised as NodeFailed."""
        more = {"start_at": start_at} if start_at else {}
        stream = self._protocol.call_inference_stream(node.peer_id, prompt, tensor, **more)
        if inspect.isawaitable(stream):
            stream = await stream
        self.peer = node.peer_id
        try:
            async for output in stream:
                yield output
        except (NodeFailed, OSError, TimeoutError) as error:
            if self.closed:
                raise SessionClosed from None
            if isinstance(error, NodeBusy):
                self._manager.on_request_busy(node)
            else:
                self._manager.on_request_failure(node)
            self.peer = None
            if isinstance(error, NodeFailed):
                raise
            raise NodeFailed(f"The node {node.name} failed: {error or type(error).__name__}.") from error
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    async def _choose(self, *, again: bool) -> Node:
        """The node of last time while it may be asked, else the best one."""
        if not again:
            await self._manager.ready()
            sequence = self._manager.make_sequence()
        else:
            self._manager.update(wait=False)
            try:
                sequence = self._manager.make_sequence()
            except NoNodes:
                with contextlib.suppress(MoorageError):  # there may be new ones; otherwise what is known has to do
                    await self._manager.update()
                sequence = self._manager.make_sequence()
        return next((node for node in sequence if node.peer_id == self.peer), sequence[0])

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    def _check_open(self) -> None:
        if self.closed:
            raise SessionClosed

    @staticmethod
    def _interrupted(outputs: int, error: BaseException) -> str:
        return f"The stream broke off after {outputs} outputs, and cannot be taken up there: {error}"


def _plugged(protocol: Plug, remote_manager: RemoteManager, authorizer: AuthorizerBase | None) -> StreamProtocol:
    if inspect.isclass(protocol) or not hasattr(protocol, "call_inference_stream"):
        return cast("PlugFactory", protocol)(remote_manager, authorizer)
    return cast("StreamProtocol", protocol)  # it has what makes it one


class SessionManager:
    """Makes sessions, and remembers nothing of them."""

    def __init__(
        self,
        remote_manager: RemoteManager,
        authorizer: AuthorizerBase | None = None,
        *,
        protocol: Plug = MockProtocol,
    ) -> None:
        self._manager = remote_manager
        self._authorizer = authorizer
        self._protocol = protocol

    def session(self) -> AbstractAsyncContextManager[Session]:
        return self._session()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        session = Session(self._manager, self._authorizer, protocol=self._protocol)
        try:
            yield session
        finally:
            await session.close()
