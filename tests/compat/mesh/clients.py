"""What users of Hypertensor have written, with changed imports; run by the tests, also where torch is installed.

Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

import torch
from moorage.mesh import ClientConfig, RemoteManager, Session, SessionManager, SignatureAuthorizer


async def main(endpoint: str, access_key: str, secret_key: str, secret: str) -> None:
    config = ClientConfig(session="model", endpoint=endpoint, access_key=access_key, secret_key=secret_key)
    remote_manager = RemoteManager(config)
    authorizer = SignatureAuthorizer(secret)
    await remote_manager.wait_for_nodes(2)
    prompt, tensor = "3 0", torch.arange(8, dtype=torch.bfloat16).reshape(2, 4)
    outputs = []

    session = Session(remote_manager, authorizer)
    async for tensor in session.run_protocol_task(prompt, tensor):  # noqa: B020 - as it was written
        outputs.append(tensor)  # noqa: PERF401
    await session.close()

    session_manager = SessionManager(remote_manager, authorizer)
    async with session_manager.session() as session:
        async for tensor in session.run_protocol_task(prompt, outputs[0]):
            outputs.append(tensor)  # noqa: PERF401

    await remote_manager.shutdown()
    told = [[str(one.dtype), list(one.shape), one.to(torch.float32).reshape(-1).tolist()] for one in outputs]
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
