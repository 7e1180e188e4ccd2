"""What `moorage up` keeps in order while it runs."""

from __future__ import annotations

from pathlib import Path

from manager.up import Installation, rotate


def test_the_log_is_begun_anew_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "moorage.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(5):
            writer.write(b"%d" % number * 100)
            assert rotate(log, most_bytes=50, kept=3)
            assert log.read_bytes() == b""
        writer.write(b"on")
    assert log.read_bytes() == b"on"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["moorage.log", "moorage.log.1", "moorage.log.2", "moorage.log.3"]
    assert (tmp_path / "moorage.log.1").read_bytes() == b"4" * 100
    assert (tmp_path / "moorage.log.3").read_bytes() == b"2" * 100


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "moorage.log"
    assert not rotate(log)
    log.write_text("short")
    assert not rotate(log)
    assert log.read_text() == "short"


def test_only_one_runs_in_a_data_dir(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.runner_pid() is None
    with installation.locked():
        assert installation.runner_pid() is not None
        assert installation.status()["running"]
    assert installation.runner_pid() is None
