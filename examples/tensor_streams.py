"""A generator of tensors on two replicas, and a stream from the one that answers faster. Needs no torch."""

import asyncio
import struct

from moorage import aio
from moorage.mesh import ClientConfig, RemoteManager, SessionManager, Tensor

APP = """
import struct

from moorage_tensors import Tensor

class Doubler:
    repeatable = True  # after a failure another replica goes on where the stream broke off

    async def run(self, prompt, tensor):
        values = tensor.data.cast("f").tolist()
        for _ in range(int(prompt)):
            values = [2 * value for value in values]
            yield Tensor("F32", tensor.shape, struct.pack(f"<{len(values)}f", *values))
"""


async def main() -> None:
    async with aio.Client() as client:
        volume = await client.volumes.create("doubler")
        await volume.files.write("app.py", APP)
        arguments = ["app:Doubler", "--path", "/home/work/doubler"]
        serves = {"name": "tensor-stream", "kind": "tensor-stream", "arguments": arguments}
        async with client.sessions.create(
            session_type="inference", serves=serves, cluster_size=2, cpu=0.2, mem="128m", mounts=["doubler"]
        ) as served:
            async with RemoteManager(ClientConfig(session=served.name, client=client)) as nodes:
                await nodes.wait_for_nodes(2)
                async with SessionManager(nodes).session() as session:
                    tensor = Tensor("F32", [3], struct.pack("<3f", 1, 2, 3))
                    async for output in session.run_protocol_task("4", tensor):
                        print(output, output.data.cast("f").tolist())
        await volume.delete()


if __name__ == "__main__":
    asyncio.run(main())
