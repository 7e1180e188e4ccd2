"""Looks at a device before a kernel gets it and after it has given it back; each look is a record that its owner can read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from agent import gpu_test
from agent.gpu import Gpu, Reading
from agent.gpu_calls import Unanswered
from agent.gpu_health import LEFTOVER_MIB, faults, figures
from agent.gpu_people import Seen
from agent.gpu_terms import Holding
from agent.gpus import Gpus, held_by_nobody

#: The memory of a process that was killed is free a moment later.
_PATIENCE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.2
_CALM_AT_C: Final = 90


class Unfit(Exception):
    """A device is not handed over; the message says which and why."""


async def hand_over(gpus: Gpus, holding: Holding, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Raises Unfit when one of its devices is not fit to be used. What was found is told to the manager either way."""
    refused = [why for uuid in holding.devices if (why := await _before(gpus, uuid, holding, patience_seconds))]
    gpus.publish()
    if refused:
        raise Unfit("; ".join(refused))


async def take_back(gpus: Gpus, holding: Holding, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """After its container is gone. A device that is not as it should be is reported, and offered no more."""
    for uuid in holding.devices:
        await _after(gpus, uuid, holding, patience_seconds)
    gpus.publish()


async def _before(gpus: Gpus, uuid: str, holding: Holding, patience_seconds: float) -> str | None:
    """Why it cannot be had."""
    data: dict[str, Any] = {}
    if (gpu := gpus.device(uuid)) is None:
        wrong = ["the host does not offer it any more"]
    else:
        try:
            gpus.forget_harmless(gpu)
            reading, seen = await _settled(gpus, gpu, holding, patience_seconds)
        except Unanswered as error:
            wrong = [str(error)]
        else:
            wrong = faults(reading, gpus.xids_of(gpu)) or _occupied(gpus, gpu, holding, reading, seen)
            if (
                held_by_nobody(reading) in wrong
            ):  # at once: until it is told of, the session may be given the same one again
                gpus.forgotten_memory(gpu, there=True)
            data = _data(gpus, gpu, reading, seen)
            if warning := _warning(gpus, gpu, holding, reading):
                data["warning"] = warning
        if not wrong and gpus.settings.test:
            test = data["test"] = await gpu_test.run(gpus.settings.test, uuid, gpus.settings.test_seconds)
            if not test["passed"]:
                wrong = [f"its test '{test['name']}' failed: {test.get('output') or test.get('exit_code')}"[:500]]
                gpus.failed_test(gpu, wrong[0])
            else:
                gpus.failed_test(gpu, None)
    name = f"GPU {uuid}" if gpu is None else f"GPU {gpu.index} ({gpu.model}, {uuid})"
    said = f"{name} cannot be used: {'; '.join(wrong)}" if wrong else f"{name} is fit."
    gpus.record("handover", uuid, holding, not wrong, {"message": said, "findings": wrong, **data})
    return said if wrong else None


async def _after(gpus: Gpus, uuid: str, holding: Holding, patience_seconds: float) -> None:
    if (gpu := gpus.device(uuid)) is None:
        return
    data: dict[str, Any] = {}
    try:
        reading, seen = await _settled(gpus, gpu, holding, patience_seconds, after=True)
    except Unanswered as error:
        wrong = [str(error)]
    else:
        wrong = faults(reading, gpus.xids_of(gpu))
        data = _data(gpus, gpu, reading, seen)
        if left := _left_behind(gpus, gpu, holding, reading, seen):
            wrong.append(left)
        gpus.forgotten_memory(gpu, there=bool(left))
    said = f"GPU {gpu.index} ({gpu.model}, {uuid}) " + (
        "is not as it was: " + "; ".join(wrong) if wrong else "is free again."
    )
    gpus.record("release", uuid, holding, not wrong, {"message": said, "findings": wrong, **data})


async def _settled(
    gpus: Gpus, gpu: Gpu, holding: Holding, patience_seconds: float, *, after: bool = False
) -> tuple[Reading, tuple[Seen, ...]]:
    """What it is like when those who go have gone, or patience ends."""
    deadline = asyncio.get_running_loop().time() + patience_seconds
    while True:
        reading, seen = await gpus.look_at(gpu)
        not_yet = _left_behind if after else _occupied
        if (
            not not_yet(gpus, gpu, holding, reading, seen)
            or reading.lost
            or asyncio.get_running_loop().time() >= deadline
        ):
            return reading, seen
        await asyncio.sleep(_AGAIN_SECONDS)


def _occupied(gpus: Gpus, gpu: Gpu, holding: Holding, reading: Reading, seen: Iterable[Seen]) -> list[str]:
    """A whole device is had alone; a share, beside other shares only."""
    others = [one for one in gpus.holdings() if gpu.uuid in one.devices and one.kernel_id != holding.kernel_id]
    if any(not holding.share or not other.share for other in others):
        return [f"it is still held by the kernel {others[0].kernel_id}"]
    if holding.share:
        return []
    if outsiders := gpus.outsiders(gpu.uuid, seen):  # who they are is the administrator's to know
        used = sum(one.process.mem_mib or 0 for one in outsiders)
        return [f"people outside Moorage use it ({used} MiB)"]
    if reading.used_mib > LEFTOVER_MIB:
        return [held_by_nobody(reading)]
    return []


def _left_behind(gpus: Gpus, gpu: Gpu, holding: Holding, reading: Reading, seen: Iterable[Seen]) -> str | None:
    """What its container's end should have freed."""
    own = [one for one in seen if one.owner.kernel_id == holding.kernel_id]
    if own:
        return f"{len(own)} of the session's processes are still on it"
    others = any(gpu.uuid in one.devices for one in gpus.holdings() if one.kernel_id != holding.kernel_id)
    if others or gpus.outsiders(gpu.uuid, seen) or reading.used_mib <= LEFTOVER_MIB:
        return None
    return held_by_nobody(reading)


def _warning(gpus: Gpus, gpu: Gpu, holding: Holding, reading: Reading) -> str | None:
    """What is no reason to refuse it, but good to know."""
    if (free := gpu.memory_mib - reading.used_mib) < holding.devices[gpu.uuid] and holding.share:
        return f"only {free} MiB of its memory are free at the moment: others use more than their shares"
    if reading.temperature_c is not None and reading.temperature_c >= _CALM_AT_C:
        return f"it is hot: {reading.temperature_c} °C"
    return None


def _data(gpus: Gpus, gpu: Gpu, reading: Reading, seen: Iterable[Seen]) -> dict[str, Any]:
    """Owners read this: of other people's processes they are told that there are some, and how much they use."""
    others = [one.process.mem_mib or 0 for one in seen]
    told = {"model": gpu.model, "memory_mib": gpu.memory_mib, **figures(reading, gpus.xids_of(gpu))}
    return {**told, "processes": len(others), "processes_mib": sum(others)} if others else told
