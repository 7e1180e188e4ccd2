"""Agents as a model: production's decisions on what was asked, and every report they ever made, to be told in any order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from agent.intent import Intent, Step, Stored, decide
from agent.wire import Fact, exit_record
from domain.ids import AgentId
from domain.session import KernelState, Want
from repositories.kernels import Intent as Asked

#: What may come next of a kernel that shall run.
_NEXT = {
    KernelState.PREPARING: (KernelState.RUNNING, KernelState.PULLING, KernelState.FAILED),
    KernelState.PULLING: (KernelState.RUNNING, KernelState.PREPARING, KernelState.FAILED),
    KernelState.RUNNING: (KernelState.EXITED,),
}


@dataclass
class Kernel:
    intent: Intent
    observed: KernelState
    exit: dict[str, Any] | None = None


@dataclass
class Host:
    """One agent. `said` holds all of its reports; which of them arrive, when and how often is others' affair."""

    name: AgentId
    boot_no: int = 1
    seq: int = 0
    kernels: dict[str, Kernel] = field(default_factory=dict)
    said: list[Fact] = field(default_factory=list)

    def take_on(self, asked: Asked) -> None:
        known = self.kernels.get(str(asked.kernel_id))
        request = Intent(asked.attempt, asked.generation, asked.want)
        step = decide(Stored(known.intent, known.observed) if known else None, request)
        if step in (Step.START, Step.REPLACE):
            self.kernels[str(asked.kernel_id)] = Kernel(request, KernelState.PREPARING)
        elif step is Step.TOMBSTONE:
            self.kernels[str(asked.kernel_id)] = Kernel(request, KernelState.GONE)
        elif known is not None and step in (Step.REMOVE, Step.KEEP):
            known.intent = request
        self.tell(str(asked.kernel_id))

    def can_go_on(self) -> list[str]:
        return [key for key, kernel in self.kernels.items() if self._next(kernel)]

    def on_their_way(self) -> list[str]:
        """Up or down; what runs, runs."""
        return [key for key in self.can_go_on() if self._is_on_its_way(self.kernels[key])]

    @staticmethod
    def _is_on_its_way(kernel: Kernel) -> bool:
        return kernel.intent.want is Want.GONE or kernel.observed is not KernelState.RUNNING

    def go_on(self, key: str, lot: int, *, finished: bool) -> None:
        """Something happens in a kernel: one of what may come next."""
        kernel = self.kernels[key]
        following = self._next(kernel)
        kernel.observed = following[lot % len(following)]
        if kernel.observed is KernelState.EXITED:
            kernel.exit = exit_record("finished" if finished else "killed", "so it is", exit_code=0, finished=finished)
        elif kernel.observed is KernelState.FAILED:
            kernel.exit = exit_record("create_failed", "so it is")
        self.tell(key)

    def tell(self, key: str) -> None:
        kernel = self.kernels[key]
        self.seq += 1
        self.said.append(
            Fact(
                kernel_id=key, attempt=kernel.intent.attempt, generation=kernel.intent.generation,
                observed=kernel.observed, exit=kernel.exit, boot_no=self.boot_no, seq=self.seq,
            )
        )  # fmt: skip

    def restart(self) -> list[Fact]:
        """A new start numbers its reports anew; its inventory is part of its hello."""
        self.boot_no, self.seq = self.boot_no + 1, 0
        first = len(self.said)
        for key in self.kernels:
            self.tell(key)
        return self.said[first:]

    def lie(self, lot: int) -> Fact:
        """A report of a kernel that is another host's, or of an intent that nobody has had."""
        fact = self.said[lot % len(self.said)]
        return replace(fact, generation=fact.generation + 5) if lot % 2 else fact

    @staticmethod
    def _next(kernel: Kernel) -> tuple[KernelState, ...]:
        if kernel.intent.want is Want.GONE:
            return () if kernel.observed is KernelState.GONE else (KernelState.GONE,)
        return _NEXT.get(kernel.observed, ())
