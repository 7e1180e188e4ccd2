"""10,000 sessions in the queue and 5,000 that run, on agents without containers; reads and changes through the API meanwhile.

`python -m bench load [SECONDS=600] [PENDING=10000] [RUNNING=5000]`: PostgreSQL, the manager's processes, agents' links and
facts are real. Everything shares the machine with what asks, so figures are of the whole of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg

from agent import pki
from bench.load_traffic import Measured, Traffic
from bench.report import Row, percentile
from manager.bootstrap import Credentials
from manager.config import ManagerConfig
from manager.postgres import EmbeddedPostgres
from repositories.agents import issue_token

ROOT: Final = Path(__file__).resolve().parent.parent
AGENTS, PROCESSES = 100, 2
READS, MUTATIONS = 200.0, 10.0
SLOTS: Final = {"cpu": 1, "mem": 256}
IMAGE: Final = "load"


def run(_installation: object, words: Sequence[str] = ()) -> Iterator[Row]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped then, too
    given = {name: float(value) for name, _, value in (word.partition("=") for word in words)}
    seconds, pending, running = (
        given.get("SECONDS", 600.0), int(given.get("PENDING", 10_000)), int(given.get("RUNNING", 5_000))
    )  # fmt: skip
    with _installation_of(running) as place:
        place.fill(running + pending, running)
        place.say(f"{running} run, {pending} wait; asking for {seconds:g} s")
        ids = place.sessions()
        traffic = Traffic(place.url, place.bearer, ids["RUNNING"], ids["PENDING"], place.body)
        memory: list[float] = []
        before, begun = place.cpu_seconds(), time.monotonic()

        def each_minute() -> None:
            memory.append(place.manager_mib())
            place.say(f"manager {memory[-1]:.0f} MiB, {place.counted()}")

        asyncio.run(traffic.run(seconds, reads=READS, mutations=MUTATIONS, each_minute=each_minute))
        took = time.monotonic() - begun
        for who, spent in place.cpu_seconds().items():
            yield Row(
                name=f"load: cores used by {who}", ours=(spent - before[who]) / took, reference=None, unit="cores"
            )
        yield from _rows(traffic.measured, memory, f"{running} running, {pending} pending, {seconds:g} s")
        place.say(", ".join(f"{what}: {number}" for what, number in sorted(traffic.measured.statuses.items())))


def _rows(measured: Measured, memory: list[float], note: str) -> Iterator[Row]:
    for kind, bound in (("read", 100), ("mutate", 250)):
        for name, share in (("p50", 0.5), ("p99", 0.99), ("worst", 1.0)):
            found = 1000 * percentile(measured.all(kind), share)
            limit = f"< {bound}" if name == "p99" else ""
            yield Row(name=f"load: {kind}, {name}", ours=found, reference=None, unit="ms", bound=limit, note=note)
    for kind in sorted(measured.seconds):
        found = 1000 * percentile(measured.seconds[kind], 0.99)
        yield Row(name=f"load: {kind}, p99", ours=found, reference=None, unit="ms", note=note)
    failed = sum(number for what, number in measured.statuses.items() if what[-3:] not in ("200", "201", "404", "409"))
    yield Row(
        name="load: answers that no request deserves", ours=failed, reference=None, unit="", bound="= 0", note=note
    )
    yield Row(
        name="load: memory of the manager, PSS", ours=memory[-1], reference=memory[0], unit="MiB", bound="ratio <= 1.1",
        reference_is="the same, at the beginning", note=note,
    )  # fmt: skip


#: Whatever columns there are: of the session $1, its kernel and the beginning of its history, $2 times.
_COPIES: Final = """
    WITH first AS (SELECT s AS session, k AS kernel FROM sessions s JOIN kernels k ON k.session_id = s.id WHERE s.id = $1),
    ids AS (SELECT number, gen_random_uuid() AS id, gen_random_uuid() AS kernel_id FROM generate_series(1, $2::integer) number),
    made AS (
        INSERT INTO sessions SELECT (jsonb_populate_record(first.session, jsonb_build_object(
            'id', ids.id, 'name', 'load-' || number, 'main_kernel_id', kernel_id, 'status', 'PENDING', 'version', 1,
            'prev_status', NULL,
            'started_at', NULL, 'deadline_at', NULL, 'status_changed_at', (first.session).created_at,
            'created_at', (first.session).created_at + number * interval '1 microsecond'))).*
        FROM first, ids RETURNING id
    ), kernels_made AS (
        INSERT INTO kernels SELECT (jsonb_populate_record(first.kernel, jsonb_build_object(
            'id', kernel_id, 'session_id', ids.id, 'agent_id', NULL, 'want', 'NONE', 'generation', 0, 'seen_generation', 0,
            'observed', NULL, 'boot_no', 0, 'report_seq', 0, 'claimed_by', NULL, 'claimed_until', NULL))).*
        FROM first, ids
    )
    INSERT INTO status_history (session_id, version, target, at) SELECT ids.id, 1, 'PENDING', now() FROM ids
"""


class Place:
    def __init__(self, config: ManagerConfig, manager: subprocess.Popen[bytes], postgres_pid: int) -> None:
        self.config = config
        self.postgres_pid = postgres_pid
        self.manager = manager
        self.url = f"http://127.0.0.1:{config.port}"
        credentials = Credentials.load(config.data_dir)
        self.bearer = f"{credentials.access_key}.{credentials.secret_key}"
        self.body = {"image": IMAGE, "resource_slots": SLOTS}
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        print(f"bench: {time.monotonic() - self._started:6.1f} s  {text}", file=sys.stderr, flush=True)

    def fill(self, number: int, running: int) -> None:
        """One through the API, as a user would; the others are copies of its rows. Then until as many run as have room."""
        asyncio.run(self._copy(self._first(), number))
        self.say(f"{number} are asked for")
        while (found := self.counted().get("RUNNING", 0)) < running:
            time.sleep(1.0)
            if self.manager.poll() is not None:
                raise RuntimeError(f"the manager has ended while {found} ran")
        self.say(f"{running} run")

    def _first(self) -> str:
        body = json.dumps({**self.body, "name": "load-0"}).encode()
        headers = {"Authorization": f"Bearer {self.bearer}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/sessions", body, headers)
        return str(json.loads(urllib.request.urlopen(request, timeout=60).read())["id"])

    async def _copy(self, first: str, number: int) -> None:
        connection = await asyncpg.connect(self.config.database_url)
        async with connection.transaction():
            await connection.execute(_COPIES, UUID(first), number - 1)
        await connection.execute("SELECT pg_notify('moorage', 'bench queue *')")
        await connection.execute("ANALYZE")
        await connection.close()

    def counted(self) -> dict[str, int]:
        return {
            row["status"]: row["number"]
            for row in self.query("SELECT status, count(*) AS number FROM sessions GROUP BY 1")
        }

    def sessions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"RUNNING": [], "PENDING": []}
        for row in self.query("SELECT id::text, status FROM sessions ORDER BY random()"):
            found.setdefault(row["status"], []).append(row["id"])
        return found

    def query(self, sql: str) -> Any:
        async def ask() -> Any:
            connection = await asyncpg.connect(self.config.database_url)
            try:
                return await connection.fetch(sql)
            finally:
                await connection.close()

        return asyncio.run(ask())

    def cpu_seconds(self) -> dict[str, float]:
        """Of processes that live through the run; on a busy machine it says more than a clock does."""
        parents = {"the manager": self.manager.pid, "PostgreSQL": self.postgres_pid, "agents and clients": os.getpid()}
        spent = {}
        theirs = _family(self.manager.pid)
        for who, pid in parents.items():
            family = _family(pid) - (theirs if pid == os.getpid() else set())
            spent[who] = sum(_cpu_seconds(one) for one in family)
        return spent

    def manager_mib(self) -> float:
        return sum(_pss_kib(one) for one in _family(self.manager.pid)) / 1024


def _family(pid: int) -> set[int]:
    """A process and all that came of it."""
    found, young = {pid}, [pid]
    while young:
        one = young.pop()
        with contextlib.suppress(OSError):
            children = {
                int(child)
                for file in Path(f"/proc/{one}/task").glob("*/children")
                for child in file.read_text().split()
            }
            young += children - found
            found |= children
    return found


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _pss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def _installation_of(running: int) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="moorage-load-", dir="/var/tmp"))
    postgres = EmbeddedPostgres(folder / "postgres")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(postgres.stop)
        config = ManagerConfig(
            data_dir=folder / "manager", database_url=postgres.start(), port=_free_port(), agent_control_port=_free_port(),
            drain_seconds=0, log_level="WARNING",
        )  # fmt: skip
        config.save()
        log = stack.enter_context((folder / "manager.log").open("ab"))
        command = [sys.executable, "-m", "moorage", "manager", "--data-dir", str(config.data_dir)]
        places = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"}
        manager = subprocess.Popen(command, stdout=log, stderr=log, env=places, cwd=ROOT)
        stack.callback(_end, manager)
        _wait_until_ready(config, manager, folder / "manager.log")
        place = Place(config, manager, postgres.pid or 0)
        asyncio.run(_prepare(config))
        each = -(-running // AGENTS)
        agents = [f"load-{number:03}" for number in range(AGENTS)]
        for at in range(PROCESSES):
            _start_agents(stack, config, agents[at::PROCESSES], each, places)
        yield place


async def _prepare(config: ManagerConfig) -> None:
    connection = await asyncpg.connect(config.database_url)
    now = datetime.now(UTC)
    await connection.execute(
        "INSERT INTO images (name, architecture, created_at) VALUES ($1, 'x86_64', $2)", IMAGE, now
    )
    await connection.close()


def _start_agents(
    stack: contextlib.ExitStack, config: ManagerConfig, names: Sequence[str], each: int, places: dict[str, str]
) -> None:
    async def tokens() -> list[str]:
        connection = await asyncpg.connect(config.database_url)
        now = datetime.now(UTC)
        made = [await issue_token(connection, expires_at=now + timedelta(hours=1), now=now) for _ in names]
        await connection.close()
        return made

    authority = (config.data_dir / "pki" / "ca.pem").read_bytes()
    url = f"https://127.0.0.1:{config.agent_control_port}"
    told = {
        "agents": [
            [name, pki.join_token(url, authority, secret)]
            for name, secret in zip(names, asyncio.run(tokens()), strict=True)
        ],
        "cpu": 1000 * SLOTS["cpu"] * each,
        "mem": SLOTS["mem"] * each,
    }
    command = [sys.executable, "-m", "bench.load_agents"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=places, cwd=ROOT)
    stack.callback(_end, process)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(told).encode() + b"\n")
    process.stdin.flush()
    if process.stdout.readline().strip() != b"ready":
        raise RuntimeError("the agents could not join")


def _wait_until_ready(config: ManagerConfig, manager: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and manager.poll() is None:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"http://127.0.0.1:{config.port}/readyz", timeout=2).status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the manager does not become ready: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
