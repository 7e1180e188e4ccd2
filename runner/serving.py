"""PID 1's side of an app: loads it in the worker, hands it its calls, and ends the session's main work with it."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import ring
from runner.files import Refused

if TYPE_CHECKING:
    from runner.supervisor import Run

MODES = ("serve", "load", "call")
MAX_QUEUED = 1000
MAX_CONCURRENCY = 1000
UNLOAD_SECONDS = 10.0
INSIST_SECONDS = 1.0  #: from cancelling to interrupting what blocks; a timeout kills after twice as much


@dataclass(frozen=True)
class Hands:
    """What the supervisor does for it."""

    started: Callable[[Run], None]
    finish: Callable[..., None]  #: run, exit code, signal; lost=, reason=
    record: Callable[[Run, int, bytes], None]
    output: Callable[[Run, int, memoryview], None]
    to_worker: Callable[[dict[str, Any], bytes], None]
    signal_worker: Callable[[int], None]
    worker_is_ready: Callable[[], bool]
    later: Callable[[float, Callable[[], None]], Any]
    say: Callable[[str], None]


class Serving:
    """One app. `main` is the session's main work: a run that lasts as long as the app's process."""

    def __init__(self, main: Run, hands: Hands) -> None:
        self.main = main
        self.active: dict[str, Run] = {}  #: in the worker
        self._hands = hands
        self._queue: deque[Run] = deque()
        self._state = "empty"  #: empty, loading, ready, failed, ending, ended
        self._concurrency = 1
        self._why = "The app's process has ended, and with it"

    @property
    def holds_worker(self) -> bool:
        """The worker's death is the end: something of the app is, or was, in it."""
        return self._state != "empty"

    # -- runs ------------------------------------------------------------------------------------------------------------
    def check(self, mode: str, code: str) -> None:
        """Raises Refused for a run that cannot begin."""
        if self._state in ("ending", "ended"):
            raise Refused("app_ended", f"{self._why} its session; start another one.")
        if mode == "call":
            if self._state in ("empty", "failed"):
                raise Refused("app_not_loaded", "No app is loaded in this session, so nothing can be called.")
            if len(self._queue) >= MAX_QUEUED:
                raise Refused("resource_exhausted", f"{MAX_QUEUED} calls wait already; wait for some to end.")
            return
        if self._state not in ("empty", "failed"):
            raise Refused("app_loaded", "An app is loaded in this session already; start another session.")
        self._concurrency = _asked_concurrency(code)

    def add(self, run: Run) -> None:
        if run.mode == "load":
            self._state = "loading"
        self._queue.append(run)
        self.feed()
        if run.status == "queued" and (
            self.active or len(self._queue) > 1
        ):  # else it only waits for the worker's start
            self._hands.record(run, ring.STATUS, b'{"status":"queued"}')

    def feed(self) -> None:
        """Hand over what may run now."""
        while self._queue and self._hands.worker_is_ready() and self._may_run(self._queue[0]):
            run = self._queue.popleft()
            if run.ring.seq:  # it was said to be queued
                self._hands.record(run, ring.STATUS, b'{"status":"running"}')
            self.active[run.id] = run
            self._hands.started(run)
            self._hands.to_worker({"op": run.mode, "run": run.id}, run.code.encode("utf-8", "replace"))
            run.code = ""

    def _may_run(self, run: Run) -> bool:
        if run.mode == "load":
            return not self.active
        return self._state == "ready" and len(self.active) < self._concurrency

    def end_queued(self, run: Run, number: int) -> None:
        """It never runs."""
        if run in self._queue:
            self._queue.remove(run)
            self._hands.finish(run, 128 + number, number)
            if run.mode == "load":
                self._not_loaded()

    def ask_to_end(self, run: Run) -> None:
        """Cancel its task. Plain code that blocks is interrupted by the signal; the worker knows which code that is."""
        self._hands.to_worker({"op": "cancel", "run": run.id, "timed_out": run.timed_out}, b"")
        self._hands.signal_worker(signal.SIGINT)
        self._hands.later(INSIST_SECONDS, lambda: self._insist(run))

    def _insist(self, run: Run) -> None:
        if run.id in self.active:
            self._hands.signal_worker(signal.SIGINT)

    # -- the worker ------------------------------------------------------------------------------------------------------
    def on_message(self, header: dict[str, Any], body: bytes) -> bool:
        """False for what it may not say."""
        op, run = header.get("op"), self.active.get(str(header.get("run")))
        if op == "end":
            self._say_ending()
            return True
        if run is None:
            return True  # killed, or of a worker before
        kind = header.get("kind")
        if op == "record" and kind in (ring.RESULT, ring.ERROR):
            self._hands.record(run, kind, body)
        elif op == "output" and kind in (ring.STDOUT, ring.STDERR) and len(body) <= ring.MAX_OUTPUT_BYTES:
            self._hands.output(run, kind, memoryview(body))
        elif op == "done":
            code = header.get("exit_code")
            self._done(run, code & 0xFF if isinstance(code, int) else 1)
        else:
            return False
        return True

    def _done(self, run: Run, exit_code: int) -> None:
        del self.active[run.id]
        self._hands.finish(run, exit_code, None)
        if run.mode == "load" and self._state == "loading":
            if exit_code == 0:
                self._state = "ready"
            else:
                self._not_loaded()
        if self._state == "ending" and not self.active:
            self._unload()
        self.feed()

    def _not_loaded(self) -> None:
        self._state = "failed"
        self._refuse_queued("app_not_loaded", "The app could not be loaded, so this call never began.")

    def owner_of_output(self) -> Run | None:
        """Whose output comes through the worker's pipes: nobody's, when several run at once."""
        return next(iter(self.active.values())) if len(self.active) == 1 else None

    def worker_exited(self, exit_code: int, number: int | None) -> None:
        """No other one is started: its state is lost, and with it the session."""
        runs = list(self.active.values())
        why_lost = (
            "timeout" if any(run.timed_out for run in runs) else "killed" if any(run.killed for run in runs) else None
        )
        for run in list(self.active.values()):
            self._hands.finish(run, exit_code, number, lost=True)
        self.active.clear()
        ending = self._state == "ending"
        self._state = "ended"
        self._refuse_queued("app_ended", f"{self._why} its session, before this call began.")
        if ending:
            self._hands.finish(self.main, 0, None, reason="ended")
        else:
            self._hands.finish(self.main, exit_code, number, lost=True, reason=why_lost)

    # -- the end ---------------------------------------------------------------------------------------------------------
    def _say_ending(self) -> None:
        """The app ends its session: what runs is answered first."""
        if self._state in ("loading", "ready"):
            self._state, self._why = "ending", "The app has ended"
            self._refuse_queued("app_ended", f"{self._why} its session, before this call began.")
            if not self.active:
                self._unload()

    def _unload(self) -> None:
        self._hands.to_worker({"op": "unload"}, b"")
        self._hands.later(UNLOAD_SECONDS, lambda: self._hands.signal_worker(signal.SIGKILL))

    def _refuse_queued(self, code: str, why: str) -> None:
        queue, self._queue = self._queue, deque()
        for run in queue:
            body = {"ename": "AppError", "evalue": why, "traceback": [], "code": code}
            self._hands.record(run, ring.ERROR, json.dumps(body).encode())
            self._hands.finish(run, 1, None)

    def shutdown(self) -> None:
        """The session is being stopped: the app may clean up within the grace."""
        for run in list(self._queue):
            self.end_queued(run, signal.SIGTERM)
        if self.holds_worker:
            self._hands.to_worker({"op": "unload"}, b"")


def _asked_concurrency(code: str) -> int:
    try:
        asked = json.loads(code)
        adapter, entry, concurrency = asked["adapter"], asked["entry"], asked.get("concurrency", 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused("invalid_request", "A load is an object with an adapter and an entry.") from None
    if not isinstance(adapter, str) or not adapter.isidentifier() or not isinstance(entry, str):
        raise Refused("invalid_request", "The adapter is class or algorithm, and the entry is module:Name.")
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_CONCURRENCY:
        raise Refused("invalid_request", f"The concurrency is a number from 1 to {MAX_CONCURRENCY}.")
    return concurrency
