"""A session's store: strict, small, whole, and the same for everybody who asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.runner_link import RunnerConfig, RunnerError
from runner import moorage_session
from runner.moorage_session import MAX_KEYS, Context, State, StateBusy, StateDamaged, StateFull
from tests.runner.conftest import Kernel


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path), patience=0.05)


def test_what_is_set_is_read_as_a_copy(state: State, tmp_path: Path) -> None:
    assert (state.get("best"), state.get("best", 0), state.exists("best"), "best" in state) == (None, 0, False, False)
    layers = {"sizes": [64, 32], "name": "größer 🌊", "rate": 1e-3, "on": True, "off": None}
    state["best"] = layers
    layers["sizes"] = []
    state.get("best")["sizes"].append(1)
    assert state["best"]["sizes"] == [64, 32]
    again = State(str(tmp_path))
    assert (dict(again), len(again), again.exists("best")) == ({"best": state["best"]}, 1, True)
    assert again.delete("best")
    assert not again.delete("best")
    assert list(state) == []  # seen here too
    with pytest.raises(KeyError):
        del state["best"]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("-inf"),
        [{"a": float("inf")}],
        "a\0b",
        {"a\0": 1},
        "\ud800",
        {1: 2},
        {None: 2},
        2**63,
        {1, 2},
        b"bytes",
        object(),
        10**400,
    ],
)
def test_what_is_not_json_is_refused(state: State, value: Any) -> None:
    with pytest.raises(TypeError):
        state.set("x", value)
    assert not state.exists("x")


def test_it_refuses_what_refers_to_itself(state: State) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="levels"):
        state.set("x", loop)


@pytest.mark.parametrize("key", ["", "a" * 129])
def test_names_have_a_length(state: State, key: str) -> None:
    with pytest.raises(StateFull):
        state[key] = 1
    with pytest.raises(TypeError):
        state[7] = 1  # type: ignore[index]


def test_it_is_small(state: State) -> None:
    with pytest.raises(StateFull, match="64 KiB"):
        state["x"] = "ä" * 33_000
    for number in range(16):
        state[str(number)] = "x" * 64_000
    with pytest.raises(StateFull, match="1 MiB"):
        state["17"] = "x" * 64_000
    assert len(state) == 16
    state["0"] = 1  # something smaller goes on


def test_it_has_few_names(state: State, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(dict.fromkeys(map(str, range(MAX_KEYS)), 1)))
    state["0"] = 2
    with pytest.raises(StateFull, match="1000 names"):
        state["one more"] = 1


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(part: int) -> None:
        mine = State(str(tmp_path))
        for number in range(20):
            mine[f"{part}.{number}"] = number

    program = "import sys; from runner.moorage_session import State; s = State(sys.argv[1])\nfor n in range(20): s[f'p{n}'] = n"
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2])
    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait() == 0
    assert len(State(str(tmp_path))) == 100


def test_a_held_lock_is_told(state: State, tmp_path: Path) -> None:
    state["x"] = 1
    with state._writing(), pytest.raises(StateBusy):
        State(str(tmp_path), patience=0.01)["x"] = 2
    assert state["x"] == 1


def test_nothing_else_is_taken_for_it(state: State, tmp_path: Path) -> None:
    place = tmp_path / "state.json"
    for make in (
        lambda: os.mkfifo(place),
        lambda: place.mkdir(),
        lambda: place.symlink_to("/etc/passwd"),
        lambda: place.write_text("[1]"),
        lambda: place.write_text("[" * 100_000),
        lambda: place.write_bytes(b"\0" * (3 << 20)),
    ):
        make()
        with pytest.raises(StateDamaged):
            state.get("x")
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()


def test_the_context_is_a_copy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"context": {"image": "python", "slots": {"cpu": 1000}}}))
    context = Context(str(tmp_path))
    context["slots"]["cpu"] = 0
    assert dict(context) == {"image": "python", "slots": {"cpu": 1000}}
    with pytest.raises(TypeError):
        context["image"] = "mine"  # type: ignore[index]


@pytest.fixture
def config(config: RunnerConfig, folder: Path) -> RunnerConfig:
    """As in a container, where the module is on the path and the link directory at its place."""
    beside = {"PYTHONPATH": str(Path(moorage_session.__file__).parent), "MOORAGE_LINK": str(folder / "link")}
    return replace(config, environ={**config.environ, **beside}, context={"image": "python"})


async def test_programs_of_the_session_have_it(kernel: Kernel) -> None:
    done = await kernel.run(
        "from moorage_session import context, logger, state\n"
        "state['from inside'] = context['image']\n"
        "logger.info('kept')"
    )
    assert done.stderr.endswith("INFO kept\n")
    assert (await kernel.link.state("get", "from inside"))["value"] == "python"


async def test_it_is_the_same_from_outside(kernel: Kernel) -> None:
    link = kernel.link
    assert await link.state("get", "best") == {"found": False}
    await link.state("set", "best", {"loss": 0.5, "name": "ä"})
    assert (await link.state("get", "best"))["value"] == {"loss": 0.5, "name": "ä"}
    assert (await link.state("list"))["sizes"] == {"best": 24}
    assert await link.state("delete", "best") == {"deleted": True}
    assert await link.state("delete", "best") == {"deleted": False}


async def test_what_is_asked_again_is_answered_alike(kernel: Kernel) -> None:
    await kernel.link.state("set", "best", 1)
    for _ in range(2):
        assert await kernel.link.state("delete", "best", key="once") == {"deleted": True}
    assert await kernel.link.state("delete", "best", key="another") == {"deleted": False}


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("", 1, "state_full"),
        (None, 1, "invalid_request"),
        ("x", "y" * 70_000, "state_full"),
        ("x", "\0", "invalid_request"),
    ],
)
async def test_from_outside_it_is_as_strict(kernel: Kernel, key: str | None, value: Any, code: str) -> None:
    with pytest.raises(RunnerError) as caught:
        await kernel.link.state("set", key, value)
    assert caught.value.code == code
