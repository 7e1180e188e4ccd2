"""How containers get devices on this engine: by NVIDIA's runtime, or by CDI. And what their processes are told of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.gpu_terms import Holding

AUTO: Final = "auto"
NVIDIA: Final = "nvidia"
CDI: Final = "cdi"
_KIND: Final = "nvidia.com/gpu"
_HOOKS: Final = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
_YAML_NAME: Final = re.compile(
    r"""^\s*-\s*name:\s*["']?([\w.:-]+)["']?\s*$|^\s+name:\s*["']?([\w.:-]+)["']?\s*$""", re.MULTILINE
)
_YAML_KIND: Final = re.compile(r"""^\s*kind:\s*["']?nvidia\.com/gpu["']?\s*$""", re.MULTILINE)
_REMEDY: Final = (
    "install nvidia-container-toolkit on the host, then run 'nvidia-ctk runtime configure --runtime=docker' and restart "
    "the engine; or, with CDI, 'nvidia-ctk cdi generate'"
)
MISSING: Final = f"the container engine hands no GPUs to containers: {_REMEDY}"
DOUBTFUL: Final = f"it does not look as if the container engine could hand GPUs to containers: {_REMEDY}"
#: What an image says of devices counts for nothing: it would open devices that the kernel does not have.
_NEUTRAL: Final = dict.fromkeys(
    (
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_MIG_MONITOR_DEVICES",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_GDS",
        "NVIDIA_MOFED",
        "NVIDIA_NVSWITCH",
        "NVIDIA_GDRCOPY",
    ),
    "",
)
CAPABILITIES: Final = ("compute", "utility")
_REFUSED: Final = re.compile(
    r"could not select device driver|CDI device injection|unresolvable CDI devices|cdi driver", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine is asked for: its driver, and the devices by the names that this driver knows."""

    driver: str
    names: tuple[str, ...]


class NoWay(Exception):
    """The engine hands no devices to containers; the message says what is missing."""


def request(info: Mapping[str, Any], wanted: str, devices: Mapping[str, Sequence[str]]) -> Request:
    """`info`: what the engine says of itself; `devices`: by UUID, other names they have. Raises NoWay."""
    listed = cdi_names(info) if wanted != NVIDIA else frozenset[str]()
    names = {uuid: next((one for one in (uuid, *others) if one in listed), None) for uuid, others in devices.items()}
    if wanted == CDI or (wanted == AUTO and all(names.values()) and not has_runtime(info)):
        if unknown := [uuid for uuid, name in names.items() if name is None]:
            raise NoWay(
                f"no CDI specification of this host names the GPU {unknown[0]}: run 'nvidia-ctk cdi generate' again"
            )
        return Request(CDI, tuple(f"{_KIND}={name}" for name in names.values()))
    # an engine does not say that it found the hook on its PATH: it is asked, and refuses in words that we know
    return Request(NVIDIA, tuple(devices))


def trouble(info: Mapping[str, Any], wanted: str) -> str | None:
    """What an administrator should be told before the first kernel fails."""
    runtime = has_runtime(info) or any(map(shutil.which, _HOOKS))
    listed = bool(cdi_names(info))
    if wanted == CDI and not listed:
        return "gpu_runtime is cdi, and no CDI specification names a GPU that the engine could use: run 'nvidia-ctk cdi generate'"
    return DOUBTFUL if not runtime and (wanted == NVIDIA or not listed) else None


def is_refusal(said: str) -> bool:
    """Whether these words of the engine mean that it cannot hand out devices."""
    return bool(_REFUSED.search(said))


def has_runtime(info: Mapping[str, Any]) -> bool:
    return NVIDIA in (info.get("Runtimes") or {})


def cdi_names(info: Mapping[str, Any]) -> frozenset[str]:
    """Of NVIDIA's devices, as far as this engine can use CDI: what it lists itself, else what its folders hold."""
    found = {
        str(one.get("ID", "")).partition("=")[2]
        for one in info.get("DiscoveredDevices") or ()
        if one.get("Source") == "cdi" and str(one.get("ID", "")).startswith(f"{_KIND}=")
    }
    if found:
        return frozenset(found)
    for folder in info.get("CDISpecDirs") or ():
        for path in sorted(Path(folder).glob("*")):
            if path.suffix in (".json", ".yaml", ".yml"):
                found |= _names_in(path)
    return frozenset(found)


def _names_in(path: Path) -> set[str]:
    try:
        text = path.read_text()
        if path.suffix == ".json":
            spec = json.loads(text)
            return {str(one["name"]) for one in spec["devices"]} if spec["kind"] == _KIND else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    if not _YAML_KIND.search(text):
        return set()
    return {one or other for one, other in _YAML_NAME.findall(text)}


def container_environ(driver: str | None, uuids: Sequence[str]) -> dict[str, str]:
    """For the runtime. Without devices of its own a container sees none, whatever its image says."""
    visible = ",".join(uuids) if uuids and driver == NVIDIA else "void"
    return {**_NEUTRAL, "NVIDIA_VISIBLE_DEVICES": visible, "NVIDIA_DRIVER_CAPABILITIES": ",".join(CAPABILITIES)}


def process_environ(
    holding: Holding | None, image: Mapping[str, str], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """For what runs inside: the image's variables, then `given`, without what is the host's to say."""
    inherited = {name: value for name, value in image.items() if not _is_ours(name)}
    asked = {name: value for name, value in (given or {}).items() if not _is_ours(name) and not name.startswith("LD_")}
    return {**inherited, **asked, **told(holding)}


def told(holding: Holding | None) -> dict[str, str]:
    if holding is None:
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    visible = {"NVIDIA_VISIBLE_DEVICES": ",".join(holding.devices)}
    return {**visible, "MOORAGE_GPU_MEM_MIB": str(sum(holding.devices.values()))} if holding.share else visible


def _is_ours(name: str) -> bool:
    return name.startswith("NVIDIA_") or name in ("CUDA_VISIBLE_DEVICES", "MOORAGE_GPU_MEM_MIB")


def cuda_mismatch(image: Mapping[str, str], cuda: str, driver: str) -> str | None:
    """What a user should know when the image was made for a newer CUDA than the host's driver can."""
    wanted = re.match(r"(\d+)\.(\d+)", image.get("CUDA_VERSION", ""))
    can = re.match(r"(\d+)\.(\d+)", cuda)
    if wanted is None or can is None or tuple(map(int, wanted.groups())) <= tuple(map(int, can.groups())):
        return None
    return (
        f"The image was made for CUDA {wanted[0]}, and the host's NVIDIA driver {driver} can {cuda}: GPU programs may refuse "
        f"to start. Use an image for CUDA {cuda} or older, or ask for a host with a newer driver."
    )
