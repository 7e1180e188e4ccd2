"""How containers are given devices, by what the engine says of itself; and what their processes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.gpu_request import (
    DOUBTFUL,
    NoWay,
    Request,
    cdi_names,
    container_environ,
    cuda_mismatch,
    is_refusal,
    process_environ,
    request,
    trouble,
)
from agent.gpu_terms import Holding

DEVICES = {"GPU-a": ("0",), "MIG-b": ("1:0",)}
RUNTIME: dict[str, Any] = {"Runtimes": {"nvidia": {}, "runc": {}}}
PLAIN: dict[str, Any] = {"Runtimes": {"runc": {}}, "CDISpecDirs": None}
YAML = """cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: "1:0"
  containerEdits: {}
- name: all
containerEdits:
  hooks:
  - hookName: createContainer
"""


@pytest.fixture
def by_files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "nvidia.yaml").write_text(YAML)
    (tmp_path / "other.json").write_text(json.dumps({"kind": "other.com/net", "devices": [{"name": "GPU-a"}]}))
    (tmp_path / "broken.json").write_text("{")
    return {"Runtimes": {"runc": {}}, "CDISpecDirs": [str(tmp_path), "/no/such/folder"]}


def test_nvidias_runtime_takes_uuids() -> None:
    assert request(RUNTIME, "auto", DEVICES) == Request("nvidia", ("GPU-a", "MIG-b"))
    # an engine that found the hook on its PATH does not say so: it is asked
    assert request(PLAIN, "auto", DEVICES) == Request("nvidia", ("GPU-a", "MIG-b"))


def test_cdi_takes_the_names_of_its_specification(by_files: dict[str, Any]) -> None:
    assert cdi_names(by_files) == {"0", "1:0", "all"}
    assert request(by_files, "auto", DEVICES) == Request("cdi", ("nvidia.com/gpu=0", "nvidia.com/gpu=1:0"))
    assert request({**RUNTIME, "CDISpecDirs": by_files["CDISpecDirs"]}, "auto", DEVICES).driver == "nvidia"
    assert request({**RUNTIME, "CDISpecDirs": by_files["CDISpecDirs"]}, "cdi", DEVICES).driver == "cdi"


def test_cdi_by_what_the_engine_lists_prefers_uuids() -> None:
    listed = [{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"} for name in ("0", "GPU-a", "MIG-b", "all")]
    info = {**PLAIN, "DiscoveredDevices": [*listed, {"Source": "cdi", "ID": "other.com/net=GPU-a"}]}
    assert request(info, "auto", DEVICES).names == ("nvidia.com/gpu=GPU-a", "nvidia.com/gpu=MIG-b")


def test_a_device_that_no_specification_names_is_refused(by_files: dict[str, Any]) -> None:
    with pytest.raises(NoWay, match="names the GPU GPU-z: run 'nvidia-ctk cdi generate' again"):
        request(by_files, "cdi", {"GPU-z": ("9",)})


def test_an_engine_that_cannot_is_told_of_beforehand(by_files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.gpu_request.shutil.which", lambda _name: None)
    assert trouble(PLAIN, "auto") == DOUBTFUL
    assert trouble(RUNTIME, "auto") is None
    assert trouble(by_files, "auto") is None
    assert "no CDI specification" in (trouble(RUNTIME, "cdi") or "")
    assert trouble(by_files, "nvidia") == DOUBTFUL


def test_the_engines_refusals_are_known() -> None:
    assert is_refusal('could not select device driver "nvidia" with capabilities: [[gpu]]')
    assert is_refusal("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=0")
    assert not is_refusal("no such image")


def test_a_container_sees_its_devices_and_none_otherwise() -> None:
    assert container_environ(None, [])["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert container_environ("nvidia", ["GPU-a", "MIG-b"])["NVIDIA_VISIBLE_DEVICES"] == "GPU-a,MIG-b"
    by_cdi = container_environ("cdi", ["GPU-a"])
    assert by_cdi["NVIDIA_VISIBLE_DEVICES"] == "void"  # the runtime's own way would add devices to CDI's
    assert by_cdi["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert by_cdi["NVIDIA_MIG_CONFIG_DEVICES"] == ""


def test_neither_image_nor_user_say_what_is_visible() -> None:
    image = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "all",
        "NVIDIA_REQUIRE_CUDA": "cuda>=12.8",
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_HOME": "/usr/local/cuda",
    }
    user = {"LD_PRELOAD": "x.so", "NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "7", "A": "1"}
    kept = {"PATH": "/bin", "LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "CUDA_HOME": "/usr/local/cuda", "A": "1"}
    assert process_environ(None, image, user) == {**kept, "NVIDIA_VISIBLE_DEVICES": "void"}
    holding = Holding(kernel_id="k", session_id="s", attempt=1, container_id=None, devices={"GPU-a": 20480}, share=True)
    forged = {**user, "MOORAGE_GPU_MEM_MIB": "99999"}
    shared = {"NVIDIA_VISIBLE_DEVICES": "GPU-a", "MOORAGE_GPU_MEM_MIB": "20480"}
    assert process_environ(holding, image, forged) == {**kept, **shared}


@pytest.mark.parametrize(
    ("image", "driver", "differs"),
    [
        ("12.8.1", "12.4", True),
        ("13.0.0", "12.9", True),
        ("12.4.0", "12.4", False),
        ("11.8", "12.4", False),
        ("", "12.4", False),
    ],
)
def test_an_image_for_a_newer_cuda_is_told_of(image: str, driver: str, differs: bool) -> None:
    said = cuda_mismatch({"CUDA_VERSION": image}, driver, "550.54")
    assert (said is not None) == differs
    if said:
        assert f"for CUDA {'.'.join(image.split('.')[:2])}, and the host's NVIDIA driver 550.54 can {driver}" in said
