"""Whether what is asked of devices can ever be given: their model, shares of them, and how many a host has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from domain.errors import GpuModelUnknown, GpuNotShared, InvalidConfiguration, ResourcesImpossible
from domain.placement import GPU, GPU_SHARE, Constraints
from domain.resources import ResourceSlot
from domain.scheduler.devices import is_of_model
from repositories.database import Connection
from repositories.device_list import Offer, offers_of

#: prefix of what can be shared of a device, among the slots of a host that is empty
SHAREABLE = f"{GPU_SHARE}/"


async def check_devices(
    connection: Connection, group: str, constraints: Constraints, slots: Sequence[ResourceSlot]
) -> None:
    """Raises what is wrong with the model or the shares that these kernels of one session ask for.

    Without any device in the group, the session waits for one, as it waits for a host.
    """
    model = constraints.gpu_model
    share = max((part.get(GPU_SHARE, 0) for part in slots), default=0)
    if not share and not any(part.get(GPU) for part in slots):
        if model is not None:
            raise InvalidConfiguration(
                "gpu_model says which GPUs are meant; ask for some with gpu or gpu-mem, or leave it out.",
                field="gpu_model",
            )
        return
    offers, shares = await offers_of(connection, group)
    fitting = [offer for offer in offers if is_of_model(offer.model, model)]
    if offers and not fitting:
        names = sorted({offer.model for offer in offers})
        raise GpuModelUnknown(
            f"The resource group '{group}' has no GPU of the model '{model}'; it has {_and(names)}.",
            resource_group=group,
            models=names,
        )
    if share:
        _check_share(share, fitting, group, shares, model)


def _check_share(share: int, fitting: Sequence[Offer], group: str, shares: bool, model: str | None) -> None:
    if not shares:
        raise GpuNotShared(
            f"The resource group '{group}' does not share devices; ask for a whole one with gpu=1, or for a group that does.",
            resource_group=group,
        )
    sizes = [offer.offered_mib for offer in fitting if not offer.whole_only]
    named = f" of the model '{model}'" if model else ""
    if fitting and not sizes:
        raise GpuNotShared(
            f"The devices{named} of the resource group '{group}' are handed out whole only; ask for gpu=1.",
            resource_group=group,
        )
    if sizes and share > max(sizes):
        raise ResourcesImpossible(
            f"A share is of one device, and the largest{named} of the resource group '{group}' has {max(sizes)} MiB; ask for "
            f"at most gpu-mem={max(sizes)}, or for whole devices.",
            most={GPU_SHARE: max(sizes)},
        )


def fit_together(parts: Sequence[ResourceSlot], free: Mapping[str, int]) -> bool:
    """Whether an empty host has enough for all of these kernels: of shares no more than that it is not out of question."""
    for name in {name for part in parts for name in part} - {GPU_SHARE}:
        if sum(part.get(name, 0) for part in parts) > free.get(name, 0):
            return False
    shares = [part[GPU_SHARE] for part in parts if GPU_SHARE in part]
    whole = sum(part.get(GPU, 0) for part in parts)
    sizes = sorted((amount for name, amount in free.items() if name.startswith(SHAREABLE)), reverse=True)
    left = sizes[: free.get(GPU, 0) - whole]  # at best, the whole ones are those that are small, or not shared at all
    return not shares or (bool(left) and max(shares) <= left[0] and sum(shares) <= sum(left))


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
