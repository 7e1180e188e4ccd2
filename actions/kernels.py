"""The kernels of a session: how many, of what role, image and size, and whether any fleet could hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from actions.device_requests import SHAREABLE, fit_together
from domain.errors import InvalidConfiguration, NoAgents, ResourcesImpossible
from domain.ids import KernelId
from domain.limits import in_words
from domain.placement import GPU_SHARE
from domain.resources import ResourceSlot
from domain.session import ClusterMode, Session
from repositories.clusters import MOST_KERNELS
from repositories.image import Image
from repositories.session import NewKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelGroup:
    """Kernels that are all alike."""

    role: str
    count: int
    image: Image
    slots: ResourceSlot
    environ: Mapping[str, str] = field(default_factory=dict)  #: over the session's


def check_groups(groups: Sequence[KernelGroup]) -> None:
    """Raises InvalidConfiguration for a cluster that cannot be one."""
    main = groups[0].image
    if sum(group.count for group in groups) > MOST_KERNELS:
        raise InvalidConfiguration(f"A session has at most {MOST_KERNELS} kernels.", field="cluster_size")
    for group in groups:
        if group.image.architecture != main.architecture:
            raise InvalidConfiguration(
                f"The image '{group.image.name}' of the role {group.role} is made for {group.image.architecture}, "
                f"but '{main.name}' for {main.architecture}; the kernels of a session share one architecture.",
                field="image",
            )


def kernels_of_groups(
    session: Session,
    groups: Sequence[KernelGroup],
    kernel: Callable[[Session, KernelId], NewKernel],
    new_id: Callable[[], UUID],
) -> list[NewKernel]:
    """The main one first. `kernel` makes one as the session's own parameters say; the group's go over them."""
    base = kernel(session, session.main_kernel_id)
    if sum(group.count for group in groups) == 1 and not base.spec.get("cluster"):
        return [base]
    found = []
    for group in groups:
        for index in range(1, group.count + 1):
            is_main = group.role == "main"
            spec = {
                **base.spec,
                "role": group.role,
                "index": index,
                "image": group.image.name,
                "slots": dict(group.slots),
                "environ": {**base.spec["environ"], **group.environ},
                # the session's work is the main kernel's; the others are there for it
                "startup_command": base.spec["startup_command"] if is_main else None,
                "cluster": str(session.cluster_mode),
            }
            kernel_id = session.main_kernel_id if is_main else KernelId(new_id())
            found.append(NewKernel(id=kernel_id, role=group.role, index=index, slots=group.slots, spec=spec))
    return found


def once_more(known: Sequence[Mapping[str, Any]], new_id: Callable[[], UUID]) -> list[NewKernel]:
    """New kernels like those of an earlier attempt, the main one first; where they were is forgotten."""
    return [
        NewKernel(
            id=KernelId(new_id()),
            role=kernel["role"],
            index=kernel["index"],
            slots=ResourceSlot.from_units(kernel["slots"]),
            spec={k: v for k, v in kernel["spec"].items() if k not in ("devices", "network")},
        )
        for kernel in known
    ]


def total(kernels: Sequence[NewKernel]) -> dict[str, int]:
    """What they hold together."""
    amounts: dict[str, int] = {}
    for kernel in kernels:
        for name, amount in kernel.slots.items():
            amounts[name] = amounts.get(name, 0) + amount
    return amounts


class Hosted(Protocol):
    """An image, or a session of one."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...


def check_possible(
    known: Sequence[tuple[str, Mapping[str, int]]],
    session: Hosted,
    slots: Sequence[ResourceSlot],
    mode: ClusterMode,
    *,
    gpu_model: str | None = None,
) -> None:
    """Refuse what no known fleet could ever hold; without any host yet, the session waits for one.

    Devices are counted as `reported_slots` does: those of the model that is asked for.
    """
    fitting = [free for architecture, free in known if architecture == session.architecture]
    if known and not fitting:
        raise NoAgents(f"No host here has the architecture {session.architecture} that '{session.name}' needs.")
    if not fitting:
        return
    for parts in [list(slots)] if mode is ClusterMode.SINGLE_NODE else [[part] for part in slots]:
        if not any(fit_together(parts, free) for free in fitting):
            _refuse(sum_of(parts), fitting, together=len(parts), gpu_model=gpu_model)
    if mode is ClusterMode.MULTI_NODE and not _first_fit(slots, fitting):
        raise ResourcesImpossible(
            f"All hosts together could never hold these {len(slots)} kernels at once, not even if they were empty; "
            "ask for fewer or smaller ones."
        )


def _refuse(slots: ResourceSlot, fleet: Sequence[Mapping[str, int]], *, together: int, gpu_model: str | None) -> None:
    most = {name: max(_most(free, name, together) for free in fleet) for name in slots}
    over = [name for name, amount in slots.items() if amount > most[name]] or list(slots)
    largest = ResourceSlot.from_units({name: most[name] for name in over}).to_json()
    what = _words(dict(slots.items())) + (f" with GPUs of the model '{gpu_model}'" if gpu_model else "")
    if together > 1:
        what += f", which its {together} kernels need on one host"
    told = "the most that one has is " + _words({name: most[name] for name in over})
    if "gpu" in over and most["gpu"] == 0:
        told = "none has a GPU"
    raise ResourcesImpossible(
        f"No host could ever hold {what}: {told}"
        + ("; ask for less." if together == 1 else "; ask for less, or for cluster_mode multi-node."),
        most={name: largest.get(name, 0) for name in over},
    )


def _words(amounts: Mapping[str, int]) -> str:
    """2 CPUs, 4 GiB of memory and 1 GPU"""
    nouns = {"mem": "{} of memory", GPU_SHARE: "{} of one GPU", "cpu": "{}", "gpu": "{}"}
    said = [nouns.get(name, f"{{}} {name}").format(in_words(name, amount)) for name, amount in amounts.items()]
    return " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))


def _most(free: Mapping[str, int], name: str, together: int) -> int:
    if name != GPU_SHARE:
        return free.get(name, 0)
    sizes = [amount for device, amount in free.items() if device.startswith(SHAREABLE)]
    return sum(sizes) if together > 1 else max(sizes, default=0)


def _first_fit(slots: Sequence[ResourceSlot], fleet: Sequence[Mapping[str, int]]) -> bool:
    """As the scheduler places them, but largest first and on empty hosts."""
    left = [dict(free) for free in fleet]
    shares: list[list[ResourceSlot]] = [[] for _ in fleet]
    for part in sorted(slots, key=lambda part: sorted(part.items()), reverse=True):
        host = next((at for at, free in enumerate(left) if fit_together([*shares[at], part], free)), None)
        if host is None:
            return False
        if GPU_SHARE in part:
            shares[host].append(ResourceSlot.from_units({GPU_SHARE: part[GPU_SHARE]}))
        for name in part.keys() - {GPU_SHARE}:
            left[host][name] -= part[name]
    return True


def sum_of(slots: Sequence[ResourceSlot]) -> ResourceSlot:
    amounts: dict[str, int] = {}
    for part in slots:
        for name, amount in part.items():
            amounts[name] = amounts.get(name, 0) + amount
    return ResourceSlot.from_units(amounts)
