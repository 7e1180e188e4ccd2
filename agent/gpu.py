"""How busy NVIDIA's devices are, as their driver's own library tells it. Hosts without one have no devices, and that is no error."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

log = logging.getLogger("moorage.agent.gpu")
_LIBRARY: Final = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of several devices together."""

    devices: int = 0  #: that answered
    busy: float = 0.0  #: 1.0: one device at work all the time
    mem_bytes: int = 0


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpus:
    """Opened at the first question about a device. Figures are of whole devices, whoever shares them."""

    def __init__(self, library: str = _LIBRARY) -> None:
        self._library = library
        self._nvml: Any = None
        self._closed = False
        self._handles: dict[str, ctypes.c_void_p] = {}

    def read(self, uuids: Sequence[str]) -> GpuUse:
        if not uuids or not self._open():
            return GpuUse()
        devices, busy, used = 0, 0.0, 0
        for uuid in uuids:
            if (handle := self._handle(uuid)) is None:
                continue
            rates, memory = _Utilization(), _Memory()
            if self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) == 0:
                devices += 1
                busy += min(rates.gpu, 100) / 100
            if self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                used += memory.used
        return GpuUse(devices, busy, used)

    def _open(self) -> bool:
        if self._nvml is None and not self._closed:
            try:
                nvml = ctypes.CDLL(self._library)
                if (code := nvml.nvmlInit_v2()) != 0:
                    raise OSError(f"nvmlInit answers {code}")
            except (OSError, AttributeError) as error:
                log.warning("the use of GPUs cannot be told: %s", error)
                self._closed = True
            else:
                self._nvml = nvml
        return self._nvml is not None

    def _handle(self, uuid: str) -> ctypes.c_void_p | None:
        if uuid not in self._handles:
            handle = ctypes.c_void_p()
            if self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
                return None
            self._handles[uuid] = handle
        return self._handles[uuid]
