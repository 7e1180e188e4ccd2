"""GPUs that a mock of NVIDIA's library makes up, changed by tests while somebody looks at them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml_mock.c"
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB"


class MockGpus:
    """Eight: four H100 on NUMA node 0, of which 0 and 1, and 2 and 3, are joined by NVLinks; four A100 on node 1."""

    def __init__(self, state: Path, library: Path) -> None:
        self.state = state
        self.library = str(library)
        self._values: dict[str, object] = {"driver": "570.86.15-mock", "cuda": 12080, "count": 8}
        for index in range(8):
            model, mib, node = (H100, 81559, 0) if index < 4 else (A100, 40960, 1)
            self._gpu(index, uuid=self.uuid(index), name=model, memory_mib=mib, reserved_mib=559, used_mib=4, numa=node)
            self._gpu(
                index, busy=0, power_mw=70_000, temperature=35, ecc=0, retired=0, remap_pending=0, remap_failure=0
            )
            self._gpu(index, mig=0, throttle=0)
            for other in range(index + 1, 8):
                self._values[f"topo.{index}.{other}"] = 50 if (index < 4) != (other < 4) else 20
        for one, other in ((0, 1), (2, 3)):
            self._gpu(one, links=",".join([str(other)] * 4))
            self._gpu(other, links=",".join([str(one)] * 4))
        self._write()

    @staticmethod
    def uuid(index: int) -> str:
        return f"GPU-0000000{index}-1111-2222-3333-444455556666"

    @staticmethod
    def mig_uuid(index: int, number: int) -> str:
        return f"MIG-0000000{index}-1111-2222-3333-44445555666{number}"

    def set(self, index: int, **values: object) -> None:
        """`used_mib=…, procs="PID:MIB:BUSY,…", lost=15`, …: see the source of the mock. None takes it away."""
        self._gpu(index, **values)
        self._write()

    def system(self, **values: object) -> None:
        """`count`, `driver`, `init`, `hang_ms`, …"""
        self._values |= values
        self._write()

    def xid(self, index: int, number: int) -> None:
        """The driver reports an error."""
        before = self._values.get("events")
        self.system(events=f"{before},{index}:{number}" if before else f"{index}:{number}")

    def divide(self, index: int, *profiles: str) -> None:
        """Into MIG instances; each has as much memory as its name says."""
        self._gpu(index, mig=1, migs=len(profiles))
        for number, profile in enumerate(profiles):
            name = f"{self._values[f'{index}.name']} MIG {profile}"
            mib = int(profile.partition(".")[2].removesuffix("gb")) * 1024
            values = {"uuid": self.mig_uuid(index, number), "name": name, "memory_mib": mib, "used_mib": 2}
            self._gpu(index, **{f"mig.{number}.{key}": value for key, value in values.items()})
        self._write()

    def _gpu(self, index: int, **values: object) -> None:
        self._values |= {f"{index}.{name}": value for name, value in values.items()}

    def _write(self) -> None:
        lines = [f"{name}={value}\n" for name, value in self._values.items() if value is not None]
        partial = self.state.with_suffix(".new")
        partial.write_text("".join(lines))
        partial.replace(self.state)


@pytest.fixture(scope="session")
def nvml_library() -> Iterator[Path]:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("the mock of NVIDIA's library is C: install a compiler (gcc)")
    folder = Path(tempfile.mkdtemp(prefix="moorage-nvml-", dir="/var/tmp"))
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    yield library
    shutil.rmtree(folder)


@pytest.fixture
def mock_gpus(tmp_path: Path, nvml_library: Path) -> Iterator[MockGpus]:
    """Simulated devices; in this process the library finds them, and in every one that it starts."""
    before = os.environ.get("MOCK_NVML")
    state = tmp_path / "gpus"
    os.environ["MOCK_NVML"] = str(state)
    yield MockGpus(state, nvml_library)
    os.environ.pop("MOCK_NVML")
    if before is not None:
        os.environ["MOCK_NVML"] = before
