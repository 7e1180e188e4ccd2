"""Every alert rule is fired by its own fault, on what a running system's /metrics really says, and by nothing else."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.installation import processes
from tests.trust.own import Own
from tests.trust.promql import evaluate, names_in, scraped

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/moorage.rules.yml"
JOB = {"job": "moorage", "instance": "one"}


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert set(group) == {"name", "rules"}
    return {rule["alert"]: rule for rule in group["rules"]}


def test_the_file_is_as_prometheus_reads_it() -> None:
    assert set(yaml.safe_load(RULES.read_text())) == {"groups"}
    for name, rule in rules().items():
        assert re.fullmatch(r"Moorage[A-Z]\w+", name)
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert all(isinstance(text, str) and text for text in rule["annotations"].values())


def test_the_evaluator_does_as_prometheus_does() -> None:
    samples = scraped('a{x="1",y="p"} 4\na{x="2",y="q"} 9\nb{x="1",y="p"} 8\nb{x="2",y="q"} 0\n')
    one, two = frozenset({("x", "1"), ("y", "p")}), frozenset({("x", "2"), ("y", "q")})
    assert evaluate("a > 5", samples) == {two: 9}
    assert evaluate('a{y="p"} == 4', samples) == {one: 4}
    assert evaluate("max(a) > 10", samples) == {}
    assert evaluate("max by (x) (a / b) < 0.6", samples) == {frozenset({("x", "1")}): 0.5}
    assert evaluate("min(none) == 0", samples) == {}
    with pytest.raises(ValueError, match="not understood"):
        evaluate("rate(a[5m])", samples)
    assert names_in('max by (x) (a{y="p"} / b) < 0.6') == {"a", "b"}


class Watch:
    """What fires on the installation now."""

    def __init__(self, own: Own, postgres: Any) -> None:
        self.own = own
        self._postgres = postgres
        self._rules = rules()

    def firing(self) -> set[str]:
        try:
            samples = scraped(self.own.metrics(), **JOB)
            samples["up"] = {frozenset(JOB.items()): 1.0}
        except OSError:
            samples = {"up": {frozenset(JOB.items()): 0.0}}
        return {name for name, rule in self._rules.items() if evaluate(rule["expr"], samples)}

    def fires(self, *names: str) -> None:
        """These and no other, sooner or later; and again with the next scrape, as `for` wants it."""
        self._settles(lambda: self.firing() == set(names) == self.firing(), names)

    def _settles(self, condition: Callable[[], bool], names: tuple[str, ...]) -> None:
        try:
            self.own.until(condition, 40)
        except TimeoutError:
            raise AssertionError(f"{sorted(names)} should fire, and what does is {sorted(self.firing())}") from None

    def sql(self, statement: str) -> None:
        self._postgres.execute(self.own.dsn.replace(f":{self.own.password}", ""), statement)


@pytest.mark.long
def test_each_rule_is_fired_by_its_own_fault(own: Own, postgres: Any) -> None:
    watch = Watch(own, postgres)
    watch.fires()
    every = {name for rule in rules().values() for name in names_in(rule["expr"])} - {"up"}
    assert every <= scraped(own.metrics()).keys()
    seen: set[str] = set()

    def fires(*names: str) -> None:
        watch.fires(*names)
        seen.update(names)

    # a disk that runs full
    filler = own.manager_dir / "filler"
    filler.write_bytes(bytes(15 << 20))
    fires("MoorageDiskFull")
    filler.unlink()
    watch.fires()
    # a session that nobody can place, asked for an hour ago
    with own.client() as client:
        waiting = client.sessions.create(image="python", cpu=60, mem="64m", wait=False)
        blocked = client.sessions.create(image="python", cpu=60, mem="64m", wait=False)
        watch.sql("UPDATE sessions SET created_at = created_at - interval '2 hours' WHERE status = 'PENDING'")
        fires("MoorageQueueOld")
        for session in (blocked, waiting):
            session.destroy(wait=30)
    watch.fires()
    # an agent that is killed; a minute is turned forward on its lease instead of waiting for it
    with own.client() as client:
        running = client.sessions.create(image="python", cpu=1, mem="64m")
    own.stop("agent", signal.SIGKILL)
    watch.sql("UPDATE agents SET lease_until = now() - interval '1 second'")
    fires("MoorageAgentLost")
    own.start_agent()
    watch.fires()
    # all that the control role does stays undone while its process stands still
    (control,) = _of_role(own, "control")
    os.kill(control, signal.SIGSTOP)
    try:
        watch.sql("UPDATE managers SET seen_at = now() - interval '1 minute' WHERE role = 'control'")
        with own.client() as client:
            client.sessions.get(running.id).destroy(wait=False)
            client.images.pull("registry.invalid/a:1")
        watch.sql("UPDATE sessions SET deadline_at = now() - interval '1 minute' WHERE status = 'TERMINATING'")
        watch.sql("UPDATE kernels SET next_try_at = now() - interval '5 minutes' WHERE seen_generation < generation")
        watch.sql("UPDATE tasks SET created_at = now() - interval '5 minutes' WHERE status = 'queued'")
        fires(
            "MoorageNoControl", "MoorageSessionStuck", "MoorageHostNotTold", "MoorageTasksOverdue", "MoorageAuditNotChained",
            "MoorageEventsNotNumbered",
        )  # fmt: skip
    finally:
        os.kill(control, signal.SIGCONT)
    watch.fires()
    # a database that takes no connections
    name = own.dsn.rpartition("/")[2].partition("?")[0]
    admin = postgres.dsn_of("postgres")
    postgres.execute(admin, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    ends = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    postgres.release(own.dsn.replace(f":{own.password}", ""))
    postgres.execute(admin, ends)
    try:
        fires("MooragePostgresDown")
    finally:
        postgres.execute(admin, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    watch.fires()
    # a manager that is gone
    own.stop("manager", signal.SIGTERM)
    fires("MoorageManagerDown")
    own.start_manager()
    watch.fires()
    assert seen == rules().keys()


def _of_role(own: Own, role: str) -> list[int]:
    found = processes("manager", own.manager_dir)
    return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().strip() == f"moorage-{role}"]
