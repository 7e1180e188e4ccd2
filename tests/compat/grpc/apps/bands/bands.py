"""A plugin of cuvis.ai as its users write them: a node that is fitted, and the data that it is fitted to."""

import torch
from cuvis_ai_core.data.datamodule import BaseCuvisAIDataModule
from cuvis_ai_core.node import Node
from cuvis_ai_schemas.pipeline import PortSpec


class Brightness(Node):
    """The mean of a pixel's bands above what is dark."""

    INPUT_SPECS = {"cube": PortSpec(dtype=torch.float32, shape=(-1, -1, -1, -1))}
    OUTPUT_SPECS = {"brightness": PortSpec(dtype=torch.float32, shape=(-1, -1, -1, 1))}

    def __init__(self, gain=1.0, **more):
        self.gain = gain
        super().__init__(gain=gain, **more)
        self.register_buffer("dark", torch.zeros(()))

    def statistical_initialization(self, input_stream):
        self.dark.copy_(torch.stack([batch["cube"].mean() for batch in input_stream]).mean())
        self._statistically_initialized = True

    def forward(self, cube, **_):
        return {"brightness": self.gain * (cube.mean(-1, keepdim=True) - self.dark)}


class Flats(BaseCuvisAIDataModule):
    """Cubes of one level."""

    DATA_MODULE_NAME = "flats"

    def build_stage_dataset(self, stage):
        return [{"cube": torch.full((2, 2, 3), float(self.params["level"]))} for _ in range(3)]
