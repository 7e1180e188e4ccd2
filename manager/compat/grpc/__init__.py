"""The gRPC front: `cuvis_ai.v1.CuvisAIService` as its clients know it, each session a container of Moorage's.

It has a process and a listener of its own, and passes messages on as they are: `serve` until the stack is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manager.config import ManagerConfig
    from manager.world import World

log = logging.getLogger("moorage.grpc")


async def serve(world: World, config: ManagerConfig, stack: AsyncExitStack) -> int:
    """Listen where the configuration says; the port."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from manager.compat.grpc.door import GrpcDoor

    door = GrpcDoor(world, config)
    stack.push_async_callback(door.close)
    host = f"[{config.host}]" if ":" in config.host else config.host
    key, certificate = b"", b""
    if config.tls_cert:
        key, certificate = await asyncio.gather(
            asyncio.to_thread(Path(config.tls_key).read_bytes), asyncio.to_thread(Path(config.tls_cert).read_bytes)
        )
    port = await door.listen(f"{host}:{config.grpc_port}", key=key, certificate=certificate)
    log.info("the gRPC front listens on port %d%s", port, " with TLS" if certificate else "")
    for own, user in config.grpc_user_ports().items():
        await door.listen(f"127.0.0.1:{own}", user=user)
        log.warning("whoever reaches port %d of loopback is %s to the gRPC front, without a credential", own, user)
    return port
