"""What the replicas serve: tensors that grow, one for each word of the prompt and more."""

import asyncio
from collections.abc import AsyncIterator

from moorage_tensors import Tensor


class Model:
    """Its outputs depend on nothing but its input, so they can be made again on another node."""

    repeatable = True

    async def run(self, prompt: str, tensor: Tensor) -> AsyncIterator[Tensor]:
        count, pause = prompt.split()
        for number in range(int(count)):
            data = bytes((byte + number) % 256 for byte in tensor.data)
            yield Tensor(tensor.dtype, tensor.shape, data)
            await asyncio.sleep(float(pause))
