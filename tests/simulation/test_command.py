"""`moorage simulate` as a shell sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from moorage.cli.terminal import report

from manager.simulation import plots
from manager.simulation.command import simulate

Shell = Callable[..., tuple[int, str, str]]
FLEET = """
[[hosts]]
name = "gpu"
count = 2
cpu = 16
mem = "64g"
gpus = { model = "NVIDIA A100", count = 4, mem = "40g" }
"""
TRACE = """submitted_at,user,cpu,mem,duration,gpu,gpu_model
2026-03-02T09:00:00Z,ann,2,4g,1h,8,
2026-03-02T09:00:01Z,bob,2,4g,10m,1,a100
2026-03-02T09:00:02Z,bob,2,4g,10m,1,h100
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "more.toml").write_text(FLEET.replace("count = 2", "count = 3"))
    (tmp_path / "trace.csv").write_text(TRACE)

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            simulate.main([*words], prog_name="moorage simulate", standalone_mode=False)
        except click.ClickException as problem:
            problem.show()
            code = problem.exit_code
        except Exception as problem:
            code = report(problem, as_json="--json" in words)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_two_policies_stand_side_by_side(shell: Shell) -> None:
    code, out, _ = shell(
        "--generate", "day", "--sessions", "60", "--fleet", "fleet.toml", "--compare", "fifo", "default"
    )
    assert code == 0
    assert "a generated day: 60 sessions" in out
    assert "on fleet: 2 hosts, 32 CPUs, 128 GiB, 8 NVIDIA A100" in out
    header = next(line for line in out.splitlines() if line.split() == ["fifo", "default"])
    assert header
    assert "fairness (Jain)" in out


def test_json_is_one_document_and_the_same_for_the_same_seed(shell: Shell) -> None:
    words = ("--generate", "day", "--sessions", "60", "--fleet", "fleet.toml", "--fleet", "more.toml", "--json")
    code, out, err = shell(*words)
    document = json.loads(out)
    assert code == 0, err
    assert [case["name"] for case in document["cases"]] == ["fleet", "more"]
    assert document["workload"]["sessions"] == 60
    assert document["cases"][0]["waiting"]["mean_seconds"] >= document["cases"][1]["waiting"]["mean_seconds"]
    assert shell(*words)[1] == out


def test_a_trace_is_replayed_and_says_who_never_starts(shell: Shell) -> None:
    code, out, _ = shell("trace.csv", "--fleet", "fleet.toml")
    assert code == 0
    assert "trace.csv (a trace of Moorage): 3 sessions" in out
    assert "1 never start (impossible), such as ann's (line 2)" in out
    assert (
        "1 never start (gpu_model), such as bob's (line 4): no host that takes sessions has a GPU that is h100" in out
    )
    document = json.loads(shell("trace.csv", "--fleet", "fleet.toml", "--json")[1])
    assert sum(never["sessions"] for never in document["cases"][0]["never"]) == 2


def test_a_hole_is_refused_with_its_line_and_skipped_when_asked(shell: Shell) -> None:
    Path("holes.csv").write_text(TRACE.replace("10m,1,a100", "-10,1,a100"))
    code, out, err = shell("holes.csv", "--fleet", "fleet.toml", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["error"] == {
        "code": "invalid_trace",
        "message": "Line 3, duration: '-10' is negative.",
        "request_id": None,
        "facts": {"line": 3, "field": "duration"},
    }
    code, out, _ = shell("holes.csv", "--fleet", "fleet.toml", "--skip-bad")
    assert code == 0
    assert "1 left out for their holes, such as line 3: duration '-10' is negative" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Say what to replay"),
        (("trace.csv", "--generate", "day"), "Say what to replay"),
        (("missing.csv",), "missing.csv"),
        (("trace.csv", "--fleet", "missing.toml"), "missing.toml"),
        (("trace.csv", "--policy", "lottery"), "There is no policy 'lottery'"),
        (("trace.csv", "--policy", "ordering=fifo,half_life=1d"), "contradicts itself"),
        (("trace.csv", "--fleet", "trace.csv"), "trace.csv cannot be read"),
        (("trace.csv", "--plot", "picture.gif"), "A picture's name ends in"),
        (("trace.csv", *("--policy", "fifo") * 7), "At most 6"),
        (("--generate", "day", "--sessions", "0"), "1 to 1,000,000 sessions"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_sentence(shell: Shell, words: tuple[str, ...], said: str) -> None:
    code, out, err = shell(*words)
    assert code in (1, 2)
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_generated_workload_can_be_kept_and_replayed(shell: Shell) -> None:
    words = ("--fleet", "fleet.toml", "--json")
    made = json.loads(shell("--generate", "day", "--sessions", "50", "--save-trace", "kept.csv", *words)[1])
    kept = json.loads(shell("kept.csv", *words)[1])
    assert kept["cases"][0]["waiting"] == made["cases"][0]["waiting"]


@pytest.mark.parametrize("name", ["all.svg", "all.png"])
def test_a_picture_is_drawn(shell: Shell, name: str) -> None:
    code, _, err = shell("--generate", "day", "--sessions", "60", "--compare", "fifo", "default", "--plot", name)
    assert code == 0, err
    if name.endswith(".svg"):
        ElementTree.parse(name)
    assert Path(name).stat().st_size > 20_000


def test_without_matplotlib_the_tables_work_and_one_sentence_says_what_to_install(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    code, out, err = shell("trace.csv", "--plot", "a.png")
    assert (code, out) == (2, "")
    assert "pip install 'moorage-server[plots]'" in err
    assert shell("trace.csv")[0] == 0
