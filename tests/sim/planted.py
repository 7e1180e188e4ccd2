"""Bugs on purpose: patches to production code that pass the ordinary unit tests, and that the simulation must find.

Each is what a tired author might write: a dropped fence, a swapped order, a missing status check, a lost WHERE. They are applied
to a copy of the tree in a temporary folder, never to the tree itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bug:
    name: str  #: what is wrong then
    path: str
    old: str
    new: str
    times: int = 1  #: how often `old` stands in the file; all of them are replaced

    def applies(self) -> bool:
        return (ROOT / self.path).read_text().count(self.old) == self.times

    def apply(self, root: Path) -> None:
        file = root / self.path
        text = file.read_text()
        assert text.count(self.old) == self.times, f"the patch '{self.name}' does not apply to {self.path} any more"
        file.write_text(text.replace(self.old, self.new))


KERNELS, TRANSIT, AGENTS = "repositories/kernels.py", "repositories/transit.py", "repositories/agents.py"
BUGS: Final = (
    # -- facts and intents in the database
    Bug(
        "an older report overwrites a newer one", KERNELS,
        "((k.boot_no, k.report_seq) < (f.boot_no, f.seq) OR", "((k.boot_no, k.report_seq) <> (f.boot_no, f.seq) OR", 2,
    ),
    Bug(
        "a restart of the agent is no fence for reports", KERNELS,
        "(k.boot_no, k.report_seq) < (f.boot_no, f.seq)", "(0, k.report_seq) < (0, f.seq)", 2,
    ),
    Bug(
        "slots come free when the work has ended, not when the container is gone", KERNELS,
        "gone = [row[\"id\"] for row in rows if row[\"observed\"] == KernelState.GONE]",
        "gone = [row[\"id\"] for row in rows if row[\"observed\"] in (KernelState.GONE, KernelState.EXITED)]",
    ),
    Bug("slots of the gone stay taken", KERNELS, "        recorded.released = await release(connection, gone, now=now)\n", ""),
    Bug(
        "the end of a session raises no generation", TRANSIT,
        "SET want = 'GONE', generation = k.generation + 1,", "SET want = 'GONE', generation = k.generation,",
    ),
    Bug(
        "a restart in place leaves its kernels in the attempt before", TRANSIT,
        "UPDATE kernels k SET attempt = m.attempt, generation", "UPDATE kernels k SET generation",
    ),
    Bug(
        "an ending session tells the kernels of another attempt", TRANSIT,
        "WHERE k.session_id = m.id AND k.attempt = m.attempt AND k.want = 'RUN'",
        "WHERE k.session_id = m.id AND k.attempt = m.attempt - 1 AND k.want = 'RUN'",
    ),
    Bug(
        "the reason of an end is forgotten when it is complete", TRANSIT,
        "said = \"coalesce(s.status_reason, a.reason)\" if event in (Event.GONE, Event.BREAK) else \"a.reason\"",
        "said = \"a.reason\"",
    ),
    Bug(
        "a returned agent stays lost", AGENTS,
        'await connection.execute("UPDATE agents SET lost = false WHERE id = ANY($1::text[])", list(agents))', "pass",
    ),
    Bug(
        "the time for its work forces a session that is ending already", "repositories/due.py",
        "_WORKING: Final = \", \".join(f\"'{status}'\" for status in sorted(ANSWERING))",
        "_WORKING: Final = \", \".join(f\"'{status}'\" for status in sorted({*ANSWERING, Status.TERMINATING}))",
    ),
    Bug(
        "heartbeats renew no lease",
        AGENTS,
        "UPDATE agents a SET seen_at = $2, lease_until = $3",
        "UPDATE agents a SET seen_at = $2, lease_until = least(lease_until, $3)",
    ),
    Bug(
        "what a session used of its limits is not given back",
        TRANSIT,
        "DELETE FROM quota_uses q USING moved m WHERE q.session_id = m.id AND m.status IN ({finals}))",
        "DELETE FROM quota_uses q USING moved m WHERE q.session_id = m.id AND m.status IN ({finals}) AND m.retrying)",
    ),
    # -- the manager's loops
    Bug(
        "an answer is not kept under its key",
        "manager/processor.py",
        "                await store_answer(work.db.connection, call.by.user_id, call.key, _storable(action, answer))\n",
        "                await work.db.connection.execute(\"DELETE FROM idempotency_keys\")\n",
    ),
    Bug(
        "a batch that was not written is acknowledged", "manager/loop.py",
        "                    written.set_exception(error)\n", "                    written.set_result(None)\n",
    ),
    # -- the agent
    Bug(
        "GONE is told although the engine refused to remove", "agent/kernel.py",
        "                    await self._house.release_network(self.id, self.state.spec.session_id)\n                break\n"
        "            except EngineError as error:\n                log.warning(\"%s: %s\", self, error)\n",
        "                    await self._house.release_network(self.id, self.state.spec.session_id)\n                break\n"
        "            except EngineError as error:\n                log.warning(\"%s: %s\", self, error)\n                break\n",
    ),
    Bug(
        "a new intent does not wait for what the engine still does", "agent/kernel.py",
        "            if self._engine_call is not None:\n", "            if self._engine_call is not None and False:\n",
    ),
    Bug("a new intent waits for the former one to end by itself", "agent/kernel.py", "            before.cancel()\n", "            pass\n"),
    Bug(
        "the container of the attempt before is not removed", "agent/kernel.py",
        "            if replaces:\n                await self._clear()\n", "",
    ),
    Bug(
        "an end removes the container of the present attempt alone", "agent/kernel.py",
        "while there := await engine.ours(kernel=self.id):",
        "while there := await engine.ours(kernel=self.id, attempt=str(self.state.attempt)):",
    ),
    Bug(
        "a removal that was cut short is not taken up again", "agent/kernels.py",
        "            if state.observed != KernelState.GONE:\n                kernel.pursue()\n", "            pass\n",
    ),
    Bug(
        "a container that died while the agent was away is not missed", "agent/kernels.py",
        "elif state.observed in (KernelState.PREPARING, KernelState.PULLING, KernelState.RUNNING):",
        "elif found is not None or state.observed in (KernelState.PREPARING, KernelState.PULLING):",
    ),
    Bug(
        "the agent forgets which intents it took on", "agent/kernels.py",
        "            await self.store.save(replace(state, **changes))\n", "",
    ),
)  # fmt: skip
