"""What `agent.toml` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig, ConfigError
from agent.containers import Containers, remapped
from agent.gpu_terms import GpuSettings

BASE = 'agent_id = "gpu-1"\nmanagers = ["https://10.0.0.1:8471"]\n'


def load(folder: Path, text: str) -> AgentConfig:
    (folder / "agent.toml").write_text(text)
    return AgentConfig.load(folder)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    config = AgentConfig(
        data_dir=tmp_path,
        agent_id="gpu-1",
        managers=("https://10.0.0.1:8471",),
        cpu=8.0,
        mem="16g",
        reserve="cpu=1,mem=2g",
        mounts=((Path("/srv/data"), "/data"),),
        runtime="runsc",
        dns=("192.0.2.53",),
        closed=("192.0.2.0/24", "2001:db8::/32"),
    )
    config.save()
    assert AgentConfig.load(tmp_path) == config
    assert config.resources() == {"cpu": 7000, "mem": 14 * 1024}


def test_everything_of_the_host_is_offered_unless_told_otherwise(tmp_path: Path) -> None:
    offered = load(tmp_path, BASE).resources()
    assert offered["cpu"] >= 1000
    assert offered["mem"] > 256


def test_all_gpus_are_offered_unless_told_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, BASE).gpu_settings() == GpuSettings()
    assert load(tmp_path, BASE + 'gpus = "none"').gpu_settings().offered == ()
    chosen = load(
        tmp_path,
        BASE
        + """
        gpus = [0, "GPU-1234"]
        gpu_reserve = 2048
        gpu_check = "torch"
        gpu_overuse = "end"
        gpu_overuse_seconds = 5
        sample_seconds = 2
        """,
    )
    assert chosen.gpu_settings() == GpuSettings(
        offered=("0", "GPU-1234"),
        reserve_mib=2048,
        test="torch",
        end_overuse=True,
        overuse_seconds=5,
        look_seconds=2,
    )
    chosen.save()
    assert AgentConfig.load(tmp_path) == chosen


def test_managers_are_remembered(tmp_path: Path) -> None:
    config = load(tmp_path, BASE)
    config.remember_managers(["https://10.0.0.2:1", "https://10.0.0.1:8471"])
    assert config.known_managers() == ["https://10.0.0.1:8471", "https://10.0.0.2:1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "agent_id = ",
        BASE + "colour = 1",
        BASE + 'mem = "much"',
        BASE + 'direct = "8443"',
        BASE + 'reserve = "gpu"',
        BASE + 'gpus = "some"',
        BASE + "gpus = 3",
        BASE + 'gpu_runtime = "docker"',
        BASE + 'gpu_overuse = "kill"',
        BASE + "gpu_reserve = -1",
        BASE + 'gpu_reserve = "1g"',
        BASE + "gpu_check_seconds = 0",
        BASE + 'gpu_library = "libnvidia-ml.so.1"',
        BASE.replace("gpu-1", "../x"),
        BASE + '[[mounts]]\nsource = "here"\ntarget = "/data"',
        BASE + '[[mounts]]\nsource = "/srv"\ntarget = "/moorage/rt"',
    ],
)
def test_nonsense_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        load(tmp_path, text)


def test_a_host_that_has_not_joined_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="moorage agent join"):
        AgentConfig.load(tmp_path)


def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    for line in (
        'closed = ["everything"]',
        'closed = ["192.0.2.7/24"]',
        'dns = ["a.example.org"]',
        'dns = ["10.0.0.0/8"]',
    ):
        with pytest.raises(ConfigError, match="is not complete or wrong"):
            load(tmp_path, BASE + line)


def test_a_runtime_that_the_engine_does_not_know() -> None:
    engine = Containers(None, "uid", runtime="runsc")
    engine._info = {"Runtimes": {"runc": {}, "kata": {}}}
    assert engine.runtime_trouble() == (
        "The engine knows no runtime 'runsc', only kata, runc: install it, name it in the engine's daemon.json and restart "
        "the engine, or take 'runtime' out of agent.toml."
    )
    engine._info = {"Runtimes": {"runsc": {}}}
    assert engine.runtime_trouble() is None
    engine.close()


def test_where_the_ids_of_a_remapped_engine_begin() -> None:
    info = {"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/231072.231073"}
    assert (remapped(info), remapped({**info, "SecurityOptions": []})) == ((231072, 231073), None)
