"""The agent in memory keeps to the contract, so that what is tried against it means something."""

from __future__ import annotations

from uuid import UUID

import pytest

from agent.wire import Fact
from tests.agent.contract import Contract, Subject
from tests.agent.fake import HOST, FakeAgent, Run


class FakeBed:
    def __init__(self) -> None:
        self.agent = FakeAgent()
        self.agent_id = HOST
        self.image = "python"

    async def answered(self, fact: Fact) -> None:
        pass

    async def fact(self, kernel_id: UUID, *states: str, attempt: int = 1) -> Fact:
        fact = self.agent.kernels[kernel_id].fact
        assert fact.observed in states
        return fact

    def will_ask(self, prompt: str) -> None:
        run = Run(status="waiting_input").say("input_request", {"prompt": prompt, "password": False})
        self.agent.script.append(run)

    def will_sleep(self) -> None:
        self.agent.script.append(Run())


@pytest.fixture
def fresh() -> Subject:
    return Subject(FakeBed())


@pytest.fixture
async def subject(fresh: Subject) -> Subject:
    await fresh.up()
    return fresh


class TestFakeAgent(Contract):
    pass
