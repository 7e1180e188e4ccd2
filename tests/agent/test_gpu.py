"""What the driver's library tells. Simulated by a mock of it; and, where this machine has devices, theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml
import pytest

from agent.gpu import GpuProcess, NoDriver, NoLibrary, Nvml, Reading
from tests.mock_gpus import A100, H100, MockGpus

simulated = pytest.mark.simulated


@pytest.fixture
def nvml(mock_gpus: MockGpus) -> Iterator[Nvml]:
    made = Nvml(mock_gpus.library)
    yield made
    made.close()


@simulated
def test_devices_have_models_memory_nodes_and_closeness(nvml: Nvml, mock_gpus: MockGpus) -> None:
    found = nvml.discover()
    assert [gpu.model for gpu in found.gpus] == [H100] * 4 + [A100] * 4
    assert (found.driver, found.cuda, found.notes) == ("570.86.15-mock", "12.8", ())
    first = found.gpus[0]
    assert (first.uuid, first.memory_mib, first.index, first.numa) == (mock_gpus.uuid(0), 81000, 0, 0)
    close = [first.closeness[mock_gpus.uuid(other)] for other in range(1, 8)]
    assert close == [88, 50, 50, 10, 10, 10, 10]  # four NVLinks, switches, the other node
    assert found.gpus[4].closeness[mock_gpus.uuid(5)] == 50


@simulated
def test_mig_instances_are_devices_in_place_of_their_parent(nvml: Nvml, mock_gpus: MockGpus) -> None:
    mock_gpus.divide(5, "3g.20gb", "1g.5gb")
    mock_gpus.divide(6)
    found = nvml.discover()
    assert len(found.gpus) == 6 + 2
    big, small = (gpu for gpu in found.gpus if gpu.parent is not None)
    assert (big.uuid, big.model, big.profile) == (mock_gpus.mig_uuid(5, 0), f"{A100} MIG 3g.20gb", "3g.20gb")
    assert (small.memory_mib, small.numa, small.parent, small.other_names) == (5120, 1, mock_gpus.uuid(5), ("5:1",))
    assert not any(mock_gpus.uuid(5) in gpu.closeness for gpu in found.gpus)
    assert found.notes == (f"device 6 ({A100}) is in MIG mode and has no instances: it offers nothing",)


@simulated
def test_a_reading_has_what_the_device_tells(nvml: Nvml, mock_gpus: MockGpus) -> None:
    mock_gpus.set(0, used_mib=20_000, busy=75, power_mw=412_500, procs="4711:12000:60,4712:7000:10", throttle=0x44)
    mock_gpus.set(1, power_mw=None, ecc=None, retired=None, busy=None)
    readings = nvml.read(nvml.discover().gpus)
    assert readings[mock_gpus.uuid(0)] == Reading(
        uuid=mock_gpus.uuid(0),
        used_mib=20_000,
        busy=0.75,
        power_watts=412.5,
        temperature_c=35,
        throttle=("power cap", "heat (hardware)"),
        ecc_uncorrected=0,
        retired_pages=0,
        processes=(GpuProcess(4711, 12_000, 0.6), GpuProcess(4712, 7000, 0.1)),
    )
    silent = readings[mock_gpus.uuid(1)]
    assert (silent.power_watts, silent.ecc_uncorrected, silent.retired_pages, silent.busy) == (None,) * 4
    assert silent.used_mib == 4


@simulated
def test_a_device_that_is_lost_says_so_and_the_others_go_on(nvml: Nvml, mock_gpus: MockGpus) -> None:
    gpus = nvml.discover().gpus
    mock_gpus.set(2, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    readings = nvml.read(gpus)
    assert readings[mock_gpus.uuid(2)].lost == "it has fallen off the bus: restart the host"
    assert sum(reading.lost is None for reading in readings.values()) == 7
    found = nvml.discover()
    assert len(found.gpus) == 7
    assert found.notes == ("device 2 does not answer: it has fallen off the bus: restart the host",)


@simulated
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver was updated, .*: restart the host"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded: load it .'modprobe nvidia'., or restart the host"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "needs the device files"),
    ],
)
def test_a_driver_that_cannot_be_used_is_told_of_in_words(
    nvml: Nvml, mock_gpus: MockGpus, code: int, words: str
) -> None:
    mock_gpus.system(init=code)
    with pytest.raises(NoDriver, match=words):
        nvml.discover()
    mock_gpus.system(init=0)
    assert len(nvml.discover().gpus) == 8


def test_a_host_without_the_library_has_no_devices() -> None:
    with pytest.raises(NoLibrary):
        Nvml("/no/such/libnvidia-ml.so.1").discover()


@pytest.mark.real_gpus
def test_devices_of_this_machine() -> None:
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    nvml = Nvml()
    try:
        found = nvml.discover()
    except (NoLibrary, NoDriver) as why:
        pytest.skip(f"this machine has no GPU to test on ({why}); the same was tested on simulated ones")
    assert found.gpus
    assert found.driver
    assert found.cuda
    readings = nvml.read(found.gpus)
    for gpu in found.gpus:
        assert gpu.memory_mib > 1000
        assert gpu.model
        reading = readings[gpu.uuid]
        assert reading.lost is None
        assert 0 <= reading.used_mib <= gpu.memory_mib
    nvml.close()
