"""What `agent.toml` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig, ConfigError
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
