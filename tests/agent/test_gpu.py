"""How busy devices are. NVIDIA's library is simulated here: what cannot exist on every machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.gpu import Gpus, GpuUse


class Nvml:
    """Two devices, as the library tells of them."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.devices = {b"GPU-1": (75, 4 << 30), b"GPU-2": (25, 1 << 30)}
        self._names = sorted(self.devices)

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        self.asked.append(uuid)
        if uuid not in self.devices:
            return 6
        handle._obj.value = self._names.index(uuid) + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu = self.devices[self._names[handle.value - 1]][0]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.used = self.devices[self._names[handle.value - 1]][1]
        return 0


@pytest.fixture
def gpus() -> Gpus:
    made = Gpus()
    made._nvml = Nvml()
    return made


def test_devices_are_summed(gpus: Gpus) -> None:
    assert gpus.read(["GPU-1", "GPU-2"]) == GpuUse(devices=2, busy=1.0, mem_bytes=5 << 30)
    assert gpus.read(["GPU-2"]) == GpuUse(devices=1, busy=0.25, mem_bytes=1 << 30)


def test_a_device_that_is_not_there_tells_nothing(gpus: Gpus) -> None:
    assert gpus.read(["GPU-9"]) == GpuUse()


def test_handles_are_asked_for_once(gpus: Gpus) -> None:
    for _ in range(3):
        gpus.read(["GPU-1"])
    assert gpus._nvml.asked == [b"GPU-1"]


def test_a_host_without_the_library_has_no_figures() -> None:
    gpus = Gpus("libno-such-thing.so.1")
    assert gpus.read(["GPU-1"]) == GpuUse()
    assert gpus.read([]) == GpuUse()


def test_a_library_that_does_not_open_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(nvmlInit_v2=lambda: 9)
    monkeypatch.setattr("ctypes.CDLL", lambda _name: broken)
    assert Gpus().read(["GPU-1"]) == GpuUse()
