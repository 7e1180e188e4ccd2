"""The same with torch, from the volume that is mounted beside it."""

import sys

sys.path.insert(0, "/home/work/torch/torch")

import torch


class Network:
    async def setup(self):
        torch.set_num_threads(1)
        self.weight = torch.eye(4, dtype=torch.bfloat16) * 2

    async def run(self, prompt, tensor, start_at=0):
        assert tensor.dtype == torch.bfloat16
        for number in range(start_at, 3):
            yield tensor @ self.weight + number
