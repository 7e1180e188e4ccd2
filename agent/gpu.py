"""What NVIDIA's driver tells of its devices, through its own library (NVML). Every call may block: see `agent.gpu_calls`.

Nothing is decided here: what makes a device unfit is `agent.gpu_health`'s affair, who may have it `agent.gpus`'.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pynvml

_MIB: Final = 1 << 20
_MOST_NVLINKS: Final = 18
#: How close two devices are whose paths meet here; the constants of NVML_TOPOLOGY.
_CLOSENESS: Final = {0: 80, 10: 60, 20: 50, 30: 40, 40: 20, 50: 10}
_THROTTLE: Final = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
#: A device that answers so is gone until its host is restarted, or it is reset.
LOST: Final = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "it has fallen off the bus: restart the host",
    pynvml.NVML_ERROR_RESET_REQUIRED: "it has to be reset before it can be used again",
    pynvml.NVML_ERROR_IRQ_ISSUE: "its interrupts do not arrive: restart the host",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "the driver cannot reach it",
    pynvml.NVML_ERROR_NOT_FOUND: "the driver does not list it any more",
    pynvml.NVML_ERROR_UNKNOWN: "the driver answers with an error that it does not explain",
}
_NO_DRIVER: Final = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's driver is installed, but its kernel module is not loaded: "
    "load it ('modprobe nvidia'), or restart the host",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated, and the old kernel module still runs: "
    "restart the host (or reload the module nvidia)",
    pynvml.NVML_ERROR_NO_PERMISSION: "the agent may not talk to NVIDIA's driver: it needs the device files /dev/nvidia*",
}
#: What is not taken for "it does not tell": nothing more can be learned of the device, or of any.
_FATAL: Final = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_UNINITIALIZED,
    *_NO_DRIVER,
)


class NoLibrary(Exception):
    """The host has no library of NVIDIA's: it has no devices either."""


class NoDriver(Exception):
    """The library is there, and the driver does not answer it; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A device, or a MIG instance of one. What does not change while the driver runs."""

    uuid: str
    model: str
    memory_mib: int  #: that programs can have
    index: int
    numa: int | None = None
    closeness: Mapping[str, int] = field(default_factory=dict)  #: of other devices, 0 to 100, by UUID
    parent: str | None = None  #: of a MIG instance
    profile: str | None = None
    instance: int | None = None  #: of a MIG instance: its number on its parent

    @property
    def other_names(self) -> tuple[str, ...]:
        """What a container runtime may call it as well."""
        return (str(self.index),) if self.instance is None else (f"{self.index}:{self.instance}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What discovery saw."""

    gpus: tuple[Gpu, ...]
    driver: str
    cuda: str
    notes: tuple[str, ...] = ()  #: for administrators


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    mem_mib: int | None  #: None: the driver does not say
    busy: float | None = None  #: 1.0: the whole device


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One device at one moment. None: it does not tell."""

    uuid: str
    lost: str | None = None  #: it does not answer, in words; everything else means nothing then
    used_mib: int = 0
    busy: float | None = None  #: 1.0: all the time
    power_watts: float | None = None
    temperature_c: int | None = None
    throttle: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None  #: since the driver was loaded
    retired_pages: int | None = None
    reset_pending: bool = False  #: pages or rows are replaced at the next reset
    remap_failed: bool = False
    processes: tuple[GpuProcess, ...] = ()


class Nvml:
    """The library, opened by `open`. `library`: a path, for hosts (and tests) where the loader does not find it."""

    def __init__(self, library: str = "") -> None:
        self._library = library
        self._opened = False

    def open(self) -> None:
        """Raises NoLibrary and NoDriver. May be called again."""
        if self._opened:
            return
        try:
            if self._library and getattr(pynvml.nvmlLib, "_name", None) != self._library:
                pynvml.nvmlLib = ctypes.CDLL(self._library)
                pynvml._nvmlGetFunctionPointer_cache.clear()
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_FunctionNotFound, OSError) as error:
            raise NoLibrary(str(error)) from None
        except pynvml.NVMLError as error:
            raise NoDriver(_said(error)) from None
        self._opened = True

    def close(self) -> None:
        if self._opened:
            self._opened = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def discover(self) -> Found:
        """Every device, MIG instances in place of the devices that are divided. Raises NoLibrary, NoDriver."""
        self.open()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.close()
            raise NoDriver(_said(error)) from None
        handles: list[tuple[int, Any]] = []
        notes = []
        for index in range(count):
            try:
                handles.append((index, pynvml.nvmlDeviceGetHandleByIndex(index)))
            except pynvml.NVMLError as error:
                notes.append(f"device {index} does not answer: {_said(error)}")
        gpus: list[Gpu] = []
        for index, handle in handles:
            try:
                whole = self._gpu(index, handle, handles)
                divided = (_ask(pynvml.nvmlDeviceGetMigMode, handle) or [0])[0]
                instances = list(_instances(whole, handle)) if divided else []
            except pynvml.NVMLError as error:
                notes.append(f"device {index} does not answer: {_said(error)}")
                continue
            if divided and not instances:
                notes.append(f"device {index} ({whole.model}) is in MIG mode and has no instances: it offers nothing")
            gpus += instances if divided else [whole]
        offered = {gpu.uuid for gpu in gpus}
        gpus = [replace(gpu, closeness={u: c for u, c in gpu.closeness.items() if u in offered}) for gpu in gpus]
        driver = str(_ask(pynvml.nvmlSystemGetDriverVersion) or "")
        cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion) or 0
        return Found(
            gpus=tuple(gpus),
            driver=driver,
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
            notes=tuple(notes),
        )

    def read(self, gpus: Iterable[Gpu]) -> dict[str, Reading]:
        """Each as it is now; one that does not answer says so in its reading."""
        return {gpu.uuid: _read(gpu) for gpu in gpus}

    def _gpu(self, index: int, handle: Any, others: Iterable[tuple[int, Any]]) -> Gpu:
        return Gpu(
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            model=pynvml.nvmlDeviceGetName(handle),
            memory_mib=_memory(handle)[0],
            index=index,
            numa=_numa(handle),
            closeness={
                pynvml.nvmlDeviceGetUUID(other): close
                for number, other in others
                if number != index and (close := _closeness(handle, other))
            },
        )


def _instances(gpu: Gpu, handle: Any) -> Iterable[Gpu]:
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        if (mig := _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)) is None:
            continue
        name = str(_ask(pynvml.nvmlDeviceGetName, mig) or "")
        memory = _memory(mig)[0]
        profile = re.search(r"\b\d+[cg]\.(?:\d+[cg]\.)?\d+gb(?:\+\S+)?", name)
        yield Gpu(
            uuid=pynvml.nvmlDeviceGetUUID(mig),
            model=name if "MIG" in name else f"{gpu.model} MIG {name}".rstrip(),
            memory_mib=memory,
            index=gpu.index,
            numa=gpu.numa,
            parent=gpu.uuid,
            profile=profile[0] if profile else None,
            instance=number,
        )


def _read(gpu: Gpu) -> Reading:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        board = handle if gpu.parent is None else pynvml.nvmlDeviceGetHandleByUUID(gpu.parent)
        used = _memory(handle)[1]
        rows = _ask(pynvml.nvmlDeviceGetRemappedRows, board) or (0, 0, 0, 0)
        retired = [
            _ask(pynvml.nvmlDeviceGetRetiredPages, board, cause)
            for cause in (
                pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
                pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
            )
        ]
        reasons = _ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, board) or 0
        busy = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle) if gpu.parent is None else None
        return Reading(
            uuid=gpu.uuid,
            used_mib=used,
            busy=None if busy is None else min(busy.gpu, 100) / 100,
            power_watts=None if power is None else power / 1000,
            temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, board, pynvml.NVML_TEMPERATURE_GPU),
            throttle=tuple(word for bit, word in _THROTTLE.items() if reasons & bit),
            ecc_uncorrected=_ask(
                pynvml.nvmlDeviceGetTotalEccErrors,
                board,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            retired_pages=sum(map(len, filter(None, retired))) if any(one is not None for one in retired) else None,
            reset_pending=bool(rows[2] or _ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, board)),
            remap_failed=bool(rows[3]),
            processes=_processes(handle),
        )
    except pynvml.NVMLError as error:
        return Reading(uuid=gpu.uuid, lost=_said(error))


def _processes(handle: Any) -> tuple[GpuProcess, ...]:
    shares = {use.pid: use.smUtil / 100 for use in _ask(pynvml.nvmlDeviceGetProcessUtilization, handle, 0) or ()}
    there: dict[int, int | None] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3):
        for one in _ask(ask, handle) or ():
            there[one.pid] = None if one.usedGpuMemory is None else one.usedGpuMemory // _MIB
    return tuple(GpuProcess(pid, mem, shares.get(pid)) for pid, mem in sorted(there.items()))


def _memory(handle: Any) -> tuple[int, int]:
    """MiB that programs can have, and what they have; what the driver keeps for itself is in neither."""
    info = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if info is None:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return info.total // _MIB, info.used // _MIB
    return (info.total - info.reserved) // _MIB, info.used // _MIB


def _closeness(one: Any, other: Any) -> int:
    """NVLinks first, 80 and 2 for each; then by where the ways over PCIe meet."""
    try:
        if (links := _nvlinks(one, other)) > 0:
            return min(100, 80 + 2 * links)
        level = _ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    except pynvml.NVMLError:  # the other one is lost
        return 0
    return _CLOSENESS.get(level, 0) if level is not None else 0


def _nvlinks(one: Any, other: Any) -> int:
    """Links that end at the other, or at a switch that joins all of them."""
    end = _ask(pynvml.nvmlDeviceGetPciInfo, other)
    number = 0
    for link in range(_MOST_NVLINKS):
        if not _ask(pynvml.nvmlDeviceGetNvLinkState, one, link):
            continue
        switch = _ask(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, one, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
        remote = _ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, one, link)
        number += switch or (remote is not None and end is not None and remote.busId == end.busId)
    return number


def _numa(handle: Any) -> int | None:
    """Newer drivers tell; for others, Linux does."""
    if (node := _ask(pynvml.nvmlDeviceGetNumaNodeId, handle)) is not None:
        return int(node)
    if (pci := _ask(pynvml.nvmlDeviceGetPciInfo, handle)) is None:
        return None
    bus = pci.busId.decode() if isinstance(pci.busId, bytes) else str(pci.busId)
    with contextlib.suppress(OSError, ValueError):
        node = int(Path(f"/sys/bus/pci/devices/{bus[-12:].lower()}/numa_node").read_text())
        return node if node >= 0 else None
    return None


def _ask(question: Callable[..., Any], *words: Any) -> Any:
    """None where the device or the driver cannot tell. What means that the device is lost is raised."""
    try:
        return question(*words)
    except pynvml.NVMLError as error:
        if error.value in _FATAL and error.value != pynvml.NVML_ERROR_NO_PERMISSION:
            raise
        return None


def _said(error: pynvml.NVMLError) -> str:
    return _NO_DRIVER.get(error.value) or LOST.get(error.value) or f"NVIDIA's driver says: {error}"
