"""An app on the real BaseApp of the inferencesh package: its models go in and out, its functions are called by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.runner_link import RunnerConfig
from tests.compat.environments import client_python
from tests.runner.apps import MAIN, Apps
from tests.runner.conftest import folder, started

__all__ = ["folder"]
pytestmark = pytest.mark.compat

APP = """
from typing import AsyncGenerator
from inferencesh import BaseApp, BaseAppInput, BaseAppOutput, BaseAppSetup, File
from pydantic import Field

class AppInput(BaseAppInput):
    prompt: str = Field(description="what to say")
    times: int = 1

class AppOutput(BaseAppOutput):
    text: str
    image: File

class AppSetup(BaseAppSetup):
    greeting: str = "good day"

class App(BaseApp):
    async def setup(self, config: AppSetup):
        self.greeting = config.greeting

    async def run(self, input_data: AppInput) -> AppOutput:
        with open("/tmp/image.txt", "w") as image:
            image.write("x")
        return AppOutput(text=" ".join([self.greeting, input_data.prompt] * input_data.times), image=File(path=image.name))

    async def stream(self, input_data: AppInput) -> AsyncGenerator[AppOutput, None]:
        for word in input_data.prompt.split():
            yield {"word": word}

    async def unload(self):
        pass
"""


async def test_an_app_on_the_real_base_class(folder: Path) -> None:
    python = client_python("inference")
    config = RunnerConfig(environ={"PATH": os.environ["PATH"]}, python=str(python))
    async with started(folder, config) as kernel:
        await kernel.link.execute(MAIN, mode="serve", code="")
        apps = Apps(kernel)
        loaded = await apps.load(APP, entry="app:App", options={"greeting": "hello"})
        assert loaded.results == [{"output": {"functions": ["run", "stream"]}}], loaded.stderr
        output = await apps.output("run", {"prompt": "you", "times": 2})
        assert output["text"] == "hello you hello you"
        assert output["image"]["path"] == "/tmp/image.txt"
        streamed = await apps.call("stream", {"prompt": "a b"})
        assert streamed.results == [{"partial": {"word": "a"}}, {"partial": {"word": "b"}}, {"output": {"word": "b"}}]
        refused = await apps.call("run", {"times": 2})
        assert refused.error["code"] == "input_invalid"
        assert "prompt" in refused.error["evalue"]
