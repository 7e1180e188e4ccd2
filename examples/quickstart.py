"""The main job, from nothing to nothing, told as it happens. `make demo` runs it and checks that nothing is left.

Everything is real: PostgreSQL, manager, agent, Docker containers; the manager and the agent are killed on the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import moorage

HERE = Path(__file__).resolve().parent
MOORAGE = str(Path(sys.executable).parent / "moorage")
LINES = 4000
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="moorage-demo-") as folder, installation(Path(folder)) as data_dir:
        with moorage.Client() as client:
            story(client, data_dir, Path(folder))


@contextmanager
def installation(folder: Path) -> Iterator[Path]:
    """`moorage up` in a folder of its own, and `moorage down` whatever happens."""
    os.environ["MOORAGE_CONFIG"] = str(folder / "config.toml")
    data_dir = folder / "data"
    try:
        up = run("up", "--data-dir", str(data_dir), "--port", "0", "--detach", "--json")
        say(f"moorage up: {json.loads(up)['endpoint']} answers; PostgreSQL, manager and agent are running")
        yield data_dir
    except BaseException:
        log = data_dir / "log" / "moorage.log"
        if log.exists():
            print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-60:]), file=sys.stderr)
        raise
    finally:
        run("down", "--data-dir", str(data_dir))
        say("moorage down")


def story(client: moorage.Client, data_dir: Path, folder: Path) -> None:
    started = time.monotonic()
    with client.sessions.create(name="demo-session", image="python", cpu=1, mem="512m", timeout=3600) as session:
        say(f"session {session.name} is {session.status} after {(time.monotonic() - started) * 1000:.0f} ms")
        code(session)
        files(session, folder)
        crashes(session, data_dir)
        restart(session)
        session_id = session.id
    say("destroyed on leaving the with-block")
    history = [f"{entry.status}" for entry in client.sessions.get(session_id).history()]
    say("its history: " + " > ".join(history))
    expect(history[-1] == "TERMINATED", "the session ended as asked")


def code(session: moorage.Session) -> None:
    started = time.monotonic()
    expect(session.run_code("x = 40; print(1 + 1)").stdout == "2\n", "print(1 + 1) printed 2")
    say(f"print(1 + 1) took {(time.monotonic() - started) * 1000:.1f} ms; the namespace is kept: x + 2 is ...")
    expect(session.run_code("x + 2").text == "42", "the namespace was kept")
    failed = session.run_code("import math\nmath.sqrt(-1)")
    expect(failed.error is not None and failed.error.ename == "ValueError", "a user's error is reported as such")
    say(f"... 42; a mistake is told as {failed.error.ename if failed.error else ''}: the session goes on")
    shell = session.commands.run("echo $((6 * 7)); exit 3")
    expect((shell.stdout, shell.exit_code) == ("42\n", 3), "a shell command's exit code is the true one")


def files(session: moorage.Session, folder: Path) -> None:
    session.files.upload(str(HERE / "analysis.py"), "analysis.py")
    done = session.commands.run("python3 analysis.py", timeout=120)
    expect(done.exit_code == 0, f"the analysis ran: {done.stderr}")
    say(f"analysis.py (100 lines) ran inside: {done.stdout.strip()}")
    names = {file.name: file.size for file in session.files.list(".")}
    session.files.download("fit.png", str(folder / "fit.png"))
    plot = (folder / "fit.png").read_bytes()
    expect(plot.startswith(b"\x89PNG") and len(plot) == names["fit.png"], "the plot came out whole")
    if keep := os.environ.get("KEEP_PLOT"):
        shutil.copyfile(folder / "fit.png", keep)
    fitted = json.loads(session.files.read("fit.json"))["fit"]
    expect(abs(fitted["frequency"] - 1.7) < 0.05, "the fit found the frequency")
    say(f"fit.png came down, {len(plot)} bytes of plot")


def crashes(session: moorage.Session, data_dir: Path) -> None:
    """Kill the manager, then the agent, in the middle of one running execution, and miss none of its lines."""
    loop = f"for i in $(seq 1 {LINES}); do echo line $i; sleep 0.001; done"
    handle = session.commands.start(loop)
    for victim in ("manager", "agent"):
        wait_for_output(handle)
        killed = kill(victim, data_dir)
        say(f"kill -9 of the {victim} ({killed} process{'es' if killed > 1 else ''}) while the loop prints")
    done = session.executions.get(handle.run_id).wait(timeout=120)
    expect(done.exit_code == 0, "the execution ended well")
    numbers = [int(n) for n in re.findall(r"line (\d+)\n", done.stdout)]
    expect(numbers == list(range(1, LINES + 1)), "every line is there, once, in order")
    records = [record.seq for record in handle.output(from_seq=0)]
    expect(records == sorted(set(records)), "sequence numbers never repeat")
    say(f"it went on all the while: {LINES} lines read back by sequence number, none lost, none twice")


def wait_for_output(handle: moorage.Execution) -> None:
    for _ in handle.output(from_seq=0):
        return


def kill(what: str, data_dir: Path) -> int:
    """SIGKILL to every process of the daemon that belongs to this data dir."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if what in words and "up" not in words and any(word.startswith(str(data_dir)) for word in words):
            os.kill(int(process.name), signal.SIGKILL)
            count += 1
    expect(count > 0, f"there was a {what} to kill")
    return count


def restart(session: moorage.Session) -> None:
    session.files.write("kept.txt", "still here")
    started = time.monotonic()
    session.restart()
    expect(session.files.read("kept.txt") == "still here", "/home/work was kept")
    say(f"restarted in {(time.monotonic() - started) * 1000:.0f} ms; a new container, the same files")


def run(*words: str) -> str:
    done = subprocess.run([MOORAGE, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"moorage {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"demo: not so: {what}")


if __name__ == "__main__":
    main()
