"""A host's GPUs as they are told to managers, all of them simulated: who is on them, what is wrong, what changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pynvml
import pytest

from agent.gpu_handover import Unfit, hand_over, take_back
from agent.gpu_terms import GpuSettings, GpuUse, Holding
from agent.gpus import Gpus
from agent.store import StoredKernel
from agent.wire import DeviceCheck, DeviceFact, KernelSpec
from domain.session import KernelState
from tests.mock_gpus import A100, H100, MockGpus

pytestmark = pytest.mark.simulated


class Bed:
    """The host's devices, kernels that hold them, and a clock."""

    def __init__(self, gpus: MockGpus, proc: Path) -> None:
        self.mock = gpus
        self.proc = proc
        self.kernels: list[StoredKernel] = []
        self.time = 1000.0
        self.overused: list[tuple[str, str, bool]] = []
        self.gpus: Gpus

    def begin(self, **settings: object) -> Gpus:
        made = GpuSettings(**{"library": self.mock.library, **settings})  # type: ignore[arg-type]
        self.gpus = Gpus(made, now=lambda: self.time, monotonic=lambda: self.time, boot_no=3, proc=self.proc)
        self.gpus.states = lambda: self.kernels
        self.gpus.overused = lambda *said: self.overused.append(said)
        return self.gpus

    async def facts(self) -> dict[int, DeviceFact]:
        """After a look."""
        await self.gpus.look()
        return {fact.index: fact for fact in self.gpus.facts()}

    def kernel(self, *indices: int, share_mib: int | None = None, container: str | None = None) -> StoredKernel:
        """One that holds these."""
        devices = {f"gpu/{self.mock.uuid(index)}": share_mib or 81000 for index in indices}
        slots = {"cpu": 1000, "mem": 1024, **({"gpu-mem": share_mib} if share_mib else {"gpu": len(indices)})}
        spec = KernelSpec(session_id=str(uuid4()), session_name="s", image="i", slots=slots, devices=devices)
        made = StoredKernel(
            kernel_id=str(uuid4()),
            attempt=1,
            generation=1,
            want="RUN",
            spec=spec,
            observed=KernelState.RUNNING,
            container_id=container,
        )
        self.kernels.append(made)
        return made

    def gone(self, kernel: StoredKernel) -> None:
        kernel.observed = KernelState.GONE

    async def hand_over(self, kernel: StoredKernel, patience_seconds: float = 0.0) -> DeviceCheck:
        """The last record of it; raises Unfit."""
        holding = Holding.of(kernel)
        assert holding is not None
        await hand_over(self.gpus, holding, patience_seconds=patience_seconds)
        return self.gpus.pending_checks()[-1]

    async def take_back(self, kernel: StoredKernel) -> DeviceCheck:
        holding = Holding.of(kernel)
        assert holding is not None
        await take_back(self.gpus, holding, patience_seconds=0.0)
        return self.gpus.pending_checks()[-1]


@pytest.fixture
async def bed(mock_gpus: MockGpus, tmp_path: Path) -> AsyncIterator[Bed]:
    (tmp_path / "proc").mkdir()
    made = Bed(mock_gpus, tmp_path / "proc")
    made.begin()
    yield made
    mock_gpus.system(hang_ms=0)
    await made.gpus.close()


@pytest.fixture
def outsider(bed: Bed) -> int:
    """The pid of somebody who is no session's: of this test."""
    (bed.proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    return os.getpid()


async def test_devices_are_told_with_all_that_is_known_of_them(bed: Bed) -> None:
    facts = await bed.facts()
    first, mock = facts[0], bed.mock
    assert (first.name, first.model, first.memory_mib, first.offered_mib) == (f"gpu/{mock.uuid(0)}", H100, 81000, 81000)
    assert (first.numa, first.driver, first.cuda, first.simulated) == (0, "570.86.15-mock", "12.8", True)
    assert first.links[f"gpu/{mock.uuid(1)}"] == 88
    assert (first.healthy, first.reason, first.shared_only, first.whole_only) == (True, None, None, False)
    assert bed.gpus.resources() == {f"gpu/{mock.uuid(n)}": 81000 if n < 4 else 40401 for n in range(8)}
    assert bed.gpus.info() == {"driver": "570.86.15-mock", "cuda": "12.8", "trouble": []}


async def test_only_what_the_administrator_offers_is_offered_and_a_part_is_kept(bed: Bed) -> None:
    bed.mock.divide(7, "1g.5gb")
    bed.begin(offered=("0", bed.mock.uuid(5), bed.mock.mig_uuid(7, 0)), reserve_mib=1000)
    facts = await bed.facts()
    assert {index: fact.offered_mib for index, fact in facts.items()} == {0: 80000, 5: 39401, 7: 4120}
    assert list(facts[5].links) == [f"gpu/{bed.mock.uuid(0)}"]  # the others are in nobody's list
    assert (facts[7].whole_only, facts[7].profile, facts[7].parent) == (True, "1g.5gb", f"gpu/{bed.mock.uuid(7)}")


async def test_what_changes_is_told_once_and_until_it_is_taken(bed: Bed) -> None:
    gpus = bed.gpus
    await bed.facts()
    first = gpus.pending()
    assert first is not None
    assert (first.boot_no, first.seq, len(first.devices), first.resources) == (3, 1, 8, gpus.resources())
    gpus.acknowledged(first)
    bed.mock.set(0, temperature=60, power_mw=300_000, used_mib=100)
    await gpus.look()
    assert gpus.pending() is None
    bed.mock.set(1, ecc=2)
    await gpus.look()
    second = gpus.pending()
    assert second is not None
    assert second.seq == 2
    assert gpus.pending() == second
    gpus.acknowledged(first)
    assert gpus.pending() == second


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ecc": 1}, "its memory failed once in a way that could not be corrected: reset it"),
        ({"remap_pending": 1}, "parts of its memory are to be replaced at the next reset: reset it"),
        ({"retired_pending": 1}, "parts of its memory are to be replaced at the next reset: reset it"),
        ({"remap_failure": 1}, "rows of its memory failed and could not be replaced: have it exchanged"),
        ({"lost": pynvml.NVML_ERROR_GPU_IS_LOST}, "it has fallen off the bus: restart the host"),
    ],
)
async def test_a_device_with_a_fault_is_bad_until_it_is_mended(bed: Bed, wrong: dict[str, int], reason: str) -> None:
    await bed.facts()
    bed.mock.set(3, **wrong)
    facts = await bed.facts()
    assert [index for index, fact in facts.items() if not fact.healthy] == [3]
    assert facts[3].reason == reason
    bed.mock.set(3, **dict.fromkeys(wrong, 0))
    assert (await bed.facts())[3].healthy


async def test_pages_that_were_replaced_long_ago_are_no_fault(bed: Bed) -> None:
    bed.mock.set(3, retired=12)
    assert (await bed.facts())[3].healthy
    assert (await bed.hand_over(bed.kernel(3))).data["retired_pages"] == 12


async def test_the_drivers_own_errors_count_but_not_those_of_programs(bed: Bed) -> None:
    kernel = bed.kernel(1)
    await bed.facts()
    bed.gpus.news.clear()
    bed.mock.xid(1, 31)
    bed.mock.xid(2, 79)
    await asyncio.wait_for(bed.gpus.news.wait(), 10)
    facts = {fact.index: fact for fact in bed.gpus.facts()}
    assert facts[2].reason == "the driver reported it has fallen off the bus (XID 79): reset it, then restart the agent"
    assert facts[1].healthy
    released = await bed.take_back(kernel)
    assert (released.passed, released.data["xid"]) == (True, [31])
    bed.gone(kernel)
    assert "xid" not in (await bed.hand_over(bed.kernel(1))).data


async def test_a_device_that_the_driver_forgets_stays_in_the_list_as_lost(bed: Bed) -> None:
    await bed.facts()
    bed.mock.system(count=7)
    bed.time += 100
    facts = await bed.facts()
    assert (facts[7].healthy, facts[7].reason) == (False, "the driver does not list it any more")
    assert facts[6].healthy


async def test_dividing_a_device_replaces_it(bed: Bed) -> None:
    await bed.facts()
    bed.mock.divide(4, "3g.20gb", "3g.20gb")
    bed.time += 100
    await bed.gpus.look()
    names = {fact.name for fact in bed.gpus.facts()}
    assert len(names) == 9
    assert f"gpu/{bed.mock.uuid(4)}" not in names
    assert f"gpu/{bed.mock.mig_uuid(4, 1)}" in names


async def test_people_outside_are_seen_and_subtracted(bed: Bed, outsider: int) -> None:
    bed.mock.set(0, procs=f"{outsider}:10000:50", used_mib=10_004)
    bed.mock.set(1, procs=f"{outsider}:100:0", used_mib=104)
    facts = await bed.facts()
    assert facts[0].healthy
    assert (facts[0].outside_mib, facts[0].offered_mib) == (10_240, 81_000 - 10_240)
    assert facts[0].shared_only is not None
    assert f"(pid {outsider}, " in facts[0].shared_only
    assert facts[0].shared_only.startswith("used by people outside Moorage: ")
    assert (facts[1].shared_only, facts[1].offered_mib) == (None, 81_000)  # a desktop, say
    with pytest.raises(Unfit, match=r"GPU 0 .* cannot be used: people outside Moorage use it \(10000 MiB\)") as refused:
        await bed.hand_over(bed.kernel(0))
    assert str(outsider) not in str(refused.value)  # who they are is the administrator's to know
    bed.gone(bed.kernels[0])
    shared = await bed.hand_over(bed.kernel(0, share_mib=20_000))
    assert shared.passed
    assert (shared.data["processes"], shared.data["processes_mib"]) == (1, 10_000)
    assert str(outsider) not in str(shared.data)


async def test_a_driver_that_hangs_makes_all_devices_bad_and_holds_nobody_up(bed: Bed) -> None:
    await bed.facts()
    bed.gpus._calls.seconds = 0.2
    kernel = bed.kernel(0)
    bed.mock.system(hang_ms=400)
    facts = await bed.facts()
    assert {fact.reason for fact in facts.values()} == {"NVIDIA's driver has not answered for 0.2 s"}
    assert bed.gpus.use(kernel) == GpuUse()
    with pytest.raises(Unfit, match="does not answer"):
        await bed.hand_over(kernel)
    bed.mock.system(hang_ms=0)
    bed.gpus._calls.seconds = 10.0
    await asyncio.to_thread(bed.gpus._calls.idle.wait, 10.0)
    assert (await bed.facts())[0].healthy


async def test_a_host_without_devices_says_so_once_and_is_no_error() -> None:
    gpus = Gpus(GpuSettings(library="/no/such/libnvidia-ml.so.1"))
    await gpus.open()
    await asyncio.wait_for(gpus.run(), 5)
    assert (gpus.facts(), gpus.resources(), gpus.info(), gpus.pending()) == ([], {}, {}, None)
    await gpus.close()


async def test_a_driver_that_was_updated_is_told_of_in_words(bed: Bed) -> None:
    bed.mock.system(init=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    await bed.gpus.look()
    assert bed.gpus.facts() == []
    [said] = bed.gpus.info()["trouble"]
    assert said.startswith("the NVIDIA driver was updated")
    bed.mock.system(init=0)
    assert len(await bed.facts()) == 8
    assert bed.gpus.info()["trouble"] == []


# -- handing over ------------------------------------------------------------------------------------------------------
async def test_a_fit_device_is_handed_over_with_a_record_of_it(bed: Bed) -> None:
    await bed.facts()
    kernel = bed.kernel(0, 1)
    check = await bed.hand_over(kernel)
    assert [one.device for one in bed.gpus.pending_checks()] == [f"gpu/{bed.mock.uuid(n)}" for n in (0, 1)]
    assert (check.phase, check.passed, check.kernel_id, check.at) == ("handover", True, kernel.kernel_id, 1000.0)
    assert kernel.spec is not None
    assert check.session_id == kernel.spec.session_id
    assert check.data["message"] == f"GPU 1 ({H100}, {bed.mock.uuid(1)}) is fit."
    assert {name: check.data[name] for name in ("temperature_c", "ecc_uncorrected", "model", "memory_used_mib")} == {
        "temperature_c": 35,
        "ecc_uncorrected": 0,
        "model": H100,
        "memory_used_mib": 4,
    }
    assert check.data["simulated"]
    bed.gpus.checks_acknowledged([check])
    assert len(bed.gpus.pending_checks()) == 1


async def test_a_bad_device_is_not_handed_over_and_is_told_of(bed: Bed) -> None:
    await bed.facts()
    bed.mock.set(1, ecc=3)
    with pytest.raises(Unfit, match=r"GPU 1 .* cannot be used: its memory failed 3 times"):
        await bed.hand_over(bed.kernel(0, 1))
    assert [check.passed for check in bed.gpus.pending_checks()] == [True, False]
    told = bed.gpus.pending()
    assert told is not None
    assert [device["name"] for device in told.devices if not device["healthy"]] == [f"gpu/{bed.mock.uuid(1)}"]


async def test_memory_that_nobody_holds_is_told_of_as_soon_as_it_is_refused(bed: Bed) -> None:
    await bed.facts()
    bed.mock.set(0, used_mib=50_000)
    with pytest.raises(Unfit, match="held, by nobody"):
        await bed.hand_over(bed.kernel(0))
    told = bed.gpus.pending()
    assert told is not None
    assert [device["name"] for device in told.devices if not device["healthy"]] == [f"gpu/{bed.mock.uuid(0)}"]


async def test_a_device_that_is_not_there_is_not_handed_over(bed: Bed) -> None:
    await bed.facts()
    bed.mock.system(count=8)
    with pytest.raises(Unfit, match="the host does not offer it any more"):
        bed.gpus._gpus.clear()
        await bed.hand_over(bed.kernel(0))


async def test_no_device_gets_into_two_hands(bed: Bed) -> None:
    await bed.facts()
    first = bed.kernel(0)
    await bed.hand_over(first)
    with pytest.raises(Unfit, match=f"still held by the kernel {first.kernel_id}"):
        await bed.hand_over(bed.kernel(0, share_mib=1000))
    bed.kernels.pop()
    bed.gone(first)
    one, other = bed.kernel(0, share_mib=1000), bed.kernel(0, share_mib=1000)
    assert (await bed.hand_over(one)).passed
    assert (await bed.hand_over(other)).passed


async def test_memory_that_is_still_being_freed_is_waited_for(bed: Bed) -> None:
    await bed.facts()
    bed.mock.set(0, used_mib=50_000)
    handing = asyncio.create_task(bed.hand_over(bed.kernel(0), patience_seconds=30.0))
    await asyncio.wait({handing}, timeout=0.3)
    assert not handing.done()
    bed.mock.set(0, used_mib=4)
    assert (await handing).passed


async def test_memory_that_nobody_holds_makes_a_device_bad(bed: Bed) -> None:
    kernel = bed.kernel(0)
    await bed.facts()
    bed.mock.set(0, used_mib=50_000)
    check = await bed.take_back(kernel)
    assert (check.phase, check.passed) == ("release", False)
    assert check.data["message"].endswith("50000 MiB of its memory are held, by nobody who can be seen: reset it")
    bed.gone(kernel)
    assert "held, by nobody" in ((await bed.facts())[0].reason or "")
    bed.mock.set(0, used_mib=4)
    assert (await bed.facts())[0].healthy


async def test_memory_that_is_left_over_for_a_moment_is_no_fault(bed: Bed) -> None:
    bed.mock.set(0, used_mib=50_000)
    assert (await bed.facts())[0].healthy
    bed.time += 20
    assert not (await bed.facts())[0].healthy


async def test_errors_of_the_memory_are_seen_when_it_is_given_back(bed: Bed) -> None:
    kernel = bed.kernel(0)
    await bed.facts()
    assert (await bed.take_back(kernel)).passed
    bed.mock.set(0, ecc=1)
    check = await bed.take_back(kernel)
    assert (check.passed, check.data["ecc_uncorrected"]) == (False, 1)


async def test_an_administrators_test_decides(bed: Bed) -> None:
    bed.begin(test=f'echo saw "$MOORAGE_GPU"; test "$CUDA_VISIBLE_DEVICES" = {bed.mock.uuid(0)}')
    await bed.facts()
    passed = await bed.hand_over(bed.kernel(0))
    assert passed.data["test"]["output"] == f"saw {bed.mock.uuid(0)}"
    with pytest.raises(Unfit, match=f"its test '.*' failed: saw {bed.mock.uuid(1)}"):
        await bed.hand_over(bed.kernel(1))
    facts = await bed.facts()
    assert [index for index, fact in facts.items() if not fact.healthy] == [1]


async def test_a_test_that_does_not_end_is_ended(bed: Bed) -> None:
    bed.begin(test="sleep 60 & sleep 60", test_seconds=0.3)
    await bed.facts()
    with pytest.raises(Unfit, match=r"did not end within 0\.3 s"):
        await bed.hand_over(bed.kernel(0))


async def test_torch_that_is_not_there_is_no_fault_of_the_device(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.gpu_test._TORCH_TEST", "raise SystemExit(77)")
    bed.begin(test="torch")
    await bed.facts()
    assert "not installed" in (await bed.hand_over(bed.kernel(0))).data["test"]["skipped"]


# -- shares ------------------------------------------------------------------------------------------------------------
CONTAINER = "c" * 64


@pytest.fixture
def session_process(bed: Bed) -> int:
    """A process that is in a session's container, as its cgroup says."""
    folder = bed.proc / "4242"
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text(f"4:memory:/docker/{CONTAINER}\n0::/system.slice/docker-{CONTAINER}.scope\n")
    (folder / "comm").write_text("python\n")
    return 4242


async def test_who_uses_more_than_its_share_is_reported_once(bed: Bed, session_process: int) -> None:
    bed.begin(overuse_seconds=30.0)
    kernel = bed.kernel(0, share_mib=10_000, container=CONTAINER)
    bed.mock.set(0, procs=f"{session_process}:10400:0", used_mib=10_404)
    await bed.facts()
    bed.mock.set(0, procs=f"{session_process}:20000:0", used_mib=20_004)
    for seconds in (0, 10, 15):
        bed.time += seconds
        await bed.facts()
    assert not bed.overused
    for _ in range(3):
        bed.time += 10
        await bed.facts()
    said = "The session uses 20000 MiB of a GPU of which it has 10000 MiB, for 35 s now: use less, or ask for a larger share."
    assert bed.overused == [(kernel.kernel_id, said, False)]
    [check] = bed.gpus.pending_checks()
    assert (check.phase, check.passed, check.data["used_mib"], check.data["ended"]) == ("watch", False, 20_000, False)
    assert (await bed.facts())[0].shared_only is None  # a session is no outsider
    bed.mock.set(0, procs=f"{session_process}:9000:0", used_mib=9_004)
    await bed.facts()
    assert [one.passed for one in bed.gpus.pending_checks()] == [False, True]


async def test_use_of_a_share_is_what_its_own_processes_use(bed: Bed, session_process: int, outsider: int) -> None:
    kernel = bed.kernel(0, share_mib=10_000, container=CONTAINER)
    procs = f"{session_process}:5000:20,{outsider}:15000:60"
    bed.mock.set(0, procs=procs, used_mib=20_000, busy=80, power_mw=400_000)
    await bed.facts()
    assert bed.gpus.use(kernel) == GpuUse(devices=1, busy=0.2, mem_bytes=5000 << 20, power_watts=100.0)


async def test_use_of_whole_devices_is_theirs(bed: Bed) -> None:
    kernel = bed.kernel(0, 1)
    bed.mock.set(0, used_mib=20_000, busy=80, power_mw=400_000)
    bed.mock.set(1, used_mib=10_000, busy=40, power_mw=100_000)
    await bed.facts()
    use = bed.gpus.use(kernel)
    assert (use.devices, round(use.busy, 6), use.mem_bytes, use.power_watts) == (2, 1.2, 30_000 << 20, 500.0)
    assert bed.gpus.use(bed.kernel()) == GpuUse()


async def test_a_device_that_does_not_say_how_busy_it_is_does_not_look_idle(bed: Bed) -> None:
    bed.mock.divide(7, "3g.20gb")
    kernel = bed.kernel(7)
    assert kernel.spec is not None
    kernel.spec.devices.clear()
    kernel.spec.devices[f"gpu/{bed.mock.mig_uuid(7, 0)}"] = 20480
    await bed.facts()
    assert bed.gpus.use(kernel) == GpuUse(devices=0, mem_bytes=2 << 20)


async def test_a100s_and_h100s_are_both_there(bed: Bed) -> None:
    models = [fact.model for fact in (await bed.facts()).values()]
    assert (models.count(H100), models.count(A100)) == (4, 4)


@pytest.mark.real_gpus
async def test_a_device_of_this_machine_is_handed_over_and_taken_back() -> None:
    """As far as no fault is needed, the same as above."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    gpus = Gpus(GpuSettings())
    await gpus.open()
    try:
        if not (free := [fact for fact in gpus.facts() if fact.healthy and not fact.shared_only]):
            pytest.skip("this machine has no free GPU to test on; the same was tested on simulated ones")
        devices = {free[0].name.removeprefix("gpu/"): free[0].memory_mib}
        holding = Holding(kernel_id="k", session_id="s", attempt=1, container_id="c" * 64, devices=devices, share=False)
        await hand_over(gpus, holding)
        await take_back(gpus, holding)
        assert [(one.phase, one.passed) for one in gpus.pending_checks()] == [("handover", True), ("release", True)]
        assert not free[0].simulated
    finally:
        await gpus.close()
