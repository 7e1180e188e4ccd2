"""What is said about GPUs inside the agent: settings, what a kernel holds of them, what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.store import StoredKernel
from domain.placement import DEVICE, GPU_SHARE
from domain.session import KernelState


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """What the host's administrator says of them; as in `agent.config`."""

    offered: tuple[str, ...] | None = None  #: UUIDs or numbers; None: all
    reserve_mib: int = 0  #: of each device, kept for others
    library: str = ""  #: NVML's path; empty: where the loader finds it
    test: str = ""  #: before a device is handed over: torch, or a command
    test_seconds: float = 60.0
    end_overuse: bool = False  #: a kernel that uses more than its share is ended, not only reported
    overuse_seconds: float = 30.0
    tolerate_mib: int = 256  #: that people outside may use before a device counts as theirs: a desktop's, for instance
    look_seconds: float = 5.0


#: Nothing is offered, and nothing is looked at.
NO_GPUS: Final = GpuSettings(offered=())


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of several devices together."""

    devices: int = 0  #: that answered
    busy: float = 0.0  #: 1.0: one device at work all the time
    mem_bytes: int = 0
    power_watts: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a kernel has of the host's devices."""

    kernel_id: str
    session_id: str
    attempt: int
    container_id: str | None
    devices: Mapping[str, int]  #: MiB by UUID
    share: bool  #: of one device; otherwise all of them whole

    @classmethod
    def of(cls, state: StoredKernel) -> Holding | None:
        """None when it holds nothing, or nothing any more."""
        spec = state.spec
        if spec is None or state.observed == KernelState.GONE:
            return None
        devices = {name[len(DEVICE) :]: mib for name, mib in spec.devices.items() if name.startswith(DEVICE)}
        if not devices:
            return None
        return cls(
            kernel_id=state.kernel_id,
            session_id=spec.session_id,
            attempt=state.attempt,
            container_id=state.container_id,
            devices=devices,
            share=GPU_SHARE in spec.slots,
        )
