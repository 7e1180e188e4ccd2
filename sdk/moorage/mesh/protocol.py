"""How a node is asked for a stream: one frame there, frames back; every one checked before it is given out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from moorage._errors import MoorageError
from moorage.mesh._arrays import kind_of, loaded_kind, pack, unpack
from moorage.mesh._authorizers import AuthorizerBase, Refused
from moorage.mesh._tensors import BadFrame, BadTensor, Frame, read_frame
from moorage.mesh.errors import (
    ApplicationError,
    AuthorizationRefused,
    InvalidInput,
    MeshError,
    NodeFailed,
    SignatureInvalid,
    refused,
)
from moorage.mesh.nodes import Connection, read_head, read_json

if TYPE_CHECKING:
    from moorage.mesh.manager import RemoteManager


class MockProtocol:
    """The protocol of tensor streams, under the name that it has where it comes from; nothing about it is a mock.

    Another one may stand in its place (`Session(..., protocol=...)`): an object with `call_inference_stream`, or what makes
    one of (remote_manager, authorizer). It raises NodeFailed, or an OSError, for what another node may do better. Without a
    `start_at` it cannot go on where a stream broke off.
    """

    def __init__(self, remote_manager: RemoteManager, authorizer: AuthorizerBase | None = None) -> None:
        self._manager = remote_manager
        self._authorizer = authorizer
        self._open: set[asyncio.StreamWriter] = set()
        self._closed = False

    async def call_inference_stream(
        self, peer: str, prompt: str, tensor: Any = None, *, start_at: int = 0
    ) -> AsyncGenerator[Any, None]:
        """Outputs from `start_at` on, as tensors of what the input is of."""
        limits = self._manager.config.limits
        kind: str = self._manager.config.tensors
        if kind == "auto":
            kind = kind_of(tensor) or loaded_kind()
        try:
            body = pack(tensor, limits.payload_bytes)
        except BadTensor as error:
            raise InvalidInput(str(error), code=error.code) from None
        request = Frame("request", fields={"prompt": prompt, "start_at": start_at}, body=body)
        async with aclosing(self.rpc_inference_stream(peer, request)) as frames:
            async for frame in frames:
                try:
                    output = unpack(frame.body, kind)
                except BadTensor as error:
                    raise MeshError(f"Output {frame.seq} cannot be given out: {error}") from None
                yield output

    async def rpc_inference_stream(self, peer: str, request: Frame) -> AsyncGenerator[Frame, None]:
        """The frames that carry outputs, each with its signature checked, in their order, without a hole.

        Raises NodeFailed and its kinds, AuthorizationRefused, ApplicationError, InvalidInput, CannotResume.
        """
        config = self._manager.config
        node = self._manager.state.nodes.get(peer)
        if node is not None and node.identity is not None:
            request.fields["peer"] = node.identity
        await self._sign(request)
        try:
            async with asyncio.timeout(config.connect_timeout):
                reader, writer = await self._manager.state.p2p.connect(peer)
        except (MoorageError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise NodeFailed(f"The node {_called(peer)} cannot be reached: {_text(error)}") from None
        self._open.add(writer)
        finished = False
        try:
            if self._closed:
                raise NodeFailed("The session was closed while the node was being reached.")
            await self._ask((reader, writer), request)
            async with aclosing(self._frames(reader, request)) as frames:
                async for frame in frames:
                    if frame.kind == "open":
                        if node is not None:
                            node.learn(frame.fields)
                    else:
                        yield frame
            finished = True
        except (OSError, TimeoutError, asyncio.IncompleteReadError, BadFrame) as error:
            raise NodeFailed(f"The node {_called(peer)} broke off: {_text(error)}") from None
        finally:
            self._open.discard(writer)
            if finished:
                writer.close()
            else:
                writer.transport.abort()  # it stops its work at once

    def close(self) -> None:
        """Streams that are open break off, and so does what is being opened."""
        self._closed = True
        for writer in self._open:
            writer.transport.abort()

    async def _sign(self, request: Frame) -> None:
        if self._authorizer is not None:
            try:
                await self._authorizer.sign_request(request, None)
            except Refused as error:
                raise AuthorizationRefused(str(error)) from None

    async def _ask(self, connection: Connection, request: Frame) -> None:
        """Until the node begins to answer. What it says against the request is raised."""
        reader, writer = connection
        async with asyncio.timeout(self._manager.config.request_timeout):
            parts = request.parts()
            size = sum(len(part) for part in parts)
            head = f"POST /stream HTTP/1.1\r\nHost: node\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            except OSError:
                pass  # it may have refused before it had heard everything, and says why
            answer = await read_head(reader)
            if answer.status != 200:
                raise refused(answer.status, await read_json(reader, answer))

    async def _frames(self, reader: asyncio.StreamReader, request: Frame) -> AsyncGenerator[Frame, None]:
        config = self._manager.config
        begins = wanted = int(request.fields["start_at"])
        opened = False
        while True:
            async with asyncio.timeout(config.request_timeout):
                frame = await read_frame(reader, config.limits)
            if frame is None:
                raise NodeFailed("The node broke off in the middle of a stream.")
            await self._check(frame, request)
            if frame.seq != wanted or opened == (frame.kind == "open"):
                raise NodeFailed(f"The node sent a frame '{frame.kind[:20]}' {frame.seq} where {wanted} was due.")
            opened = True
            match frame.kind:
                case "open":
                    yield frame
                case "tensor" if frame.body is not None:
                    wanted += 1
                    yield frame
                case "end":
                    return
                case "error":
                    raise _error_of(frame, outputs=wanted - begins)
                case _:
                    raise NodeFailed(f"The node sent a frame '{frame.kind[:20]}', which is none of a stream.")

    async def _check(self, frame: Frame, request: Frame) -> None:
        if self._authorizer is None:
            return
        try:
            good = await self._authorizer.validate_response(frame, request)
        except Refused as error:
            raise SignatureInvalid(str(error)) from None
        if not good:
            raise SignatureInvalid(f"Frame {frame.seq} of the answer has no signature that is trusted.")


def _error_of(frame: Frame, *, outputs: int) -> MeshError:
    told = frame.fields
    said = {name: str(told.get(name, "")) for name in ("ename", "evalue", "traceback")}
    message = str(told.get("message") or "The application failed.")
    error = ApplicationError(message, **said)
    error.facts["outputs"] = outputs
    return error


def _called(peer: str) -> str:
    return peer[:40]


def _text(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "It was silent for too long."
    return str(error) or type(error).__name__
