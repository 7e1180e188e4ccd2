"""One run loop of the client: a query, or the clean, build and exec of a batch, told piece by piece."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self
from uuid import UUID

from actions import ExecuteSessionAction, ReadExecutionAction
from actions.execution import RunOutput
from domain.errors import InvalidRequest
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.console import Console, exit_code_of
from manager.processor import run_id_of

#: The original gathers output for so long before it answers.
FLUSH_SECONDS: Final = 2.0
_MOST_CONSOLE: Final = 1024 * 1024
STAGES: Final = ("clean", "build", "exec")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,128}")
_BUILD: Final = "if [ -f Makefile ]; then make; elif [ -f setup.py ] || [ -f pyproject.toml ]; then python3 -m pip install --user -e .; fi"
_EXEC: Final = (
    "if [ -f main.py ]; then exec python3 main.py; elif [ -x main ]; then exec ./main; "
    "elif [ -f main.sh ]; then exec sh main.sh; else echo 'There is no main.py; say what to run with --exec.' >&2; exit 127; fi"
)
#: What `*` stands for.
_USUAL: Final = {"clean": "", "build": _BUILD, "exec": _EXEC}


@dataclass(slots=True)
class RunLoop:
    session_id: str
    name: str  #: the client's runId
    stage: str = "query"
    commands: dict[str, str] = field(default_factory=dict)
    begun: bool = False
    next_seq: int = 0
    raised: bool = False
    waiting: bool = False  #: for input
    password: bool = False
    failed_build: int = 0  #: its exit code: what was not built is not run
    kept: bool = False  #: it was read from where it is kept between requests

    @classmethod
    def new(cls, session_id: str, name: str, mode: str, options: Mapping[str, Any]) -> Self:
        if not _NAME.fullmatch(name):
            raise InvalidRequest("A runId has 1 to 128 visible ASCII characters.", field="runId")
        if mode == "query":
            return cls(session_id, name)
        commands = {}
        for stage in STAGES:
            command = options.get(stage) or ""
            if not isinstance(command, str):
                raise InvalidRequest(f"'options.{stage}' is a command.", field="options")
            commands[stage] = _USUAL[stage] if command.strip() == "*" else command
        return cls(session_id, name, stage="clean", commands=commands)

    @property
    def finished(self) -> bool:
        return self.stage == ""

    @property
    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(**{**state, "kept": True})

    def key(self) -> str:
        """The idempotency key of the run that is on now: whoever sends the request again attaches to it."""
        return f"backendai {self.session_id} {self.name} {self.stage}"

    def run_id(self, ask: Ask) -> UUID:
        return run_id_of(ask.by, self.key())

    async def step(self, ask: Ask, *, code: str = "", eager: bool = False) -> dict[str, Any]:
        """The next answer: after FLUSH_SECONDS, sooner when something is to be said of the run; `eager`: or printed."""
        if not self.begun:
            command = code if self.stage == "query" else self.commands.get(self.stage, "")
            if self.failed_build:
                why = {"kind": "stderr", "text": "Not run, because the build failed.\n"}
                return self._done({"exit_code": self.failed_build, "reason": "finished"}, _showing(why))
            if not command and self.stage != "query":
                return self._done({"exit_code": 0, "reason": "finished"}, Console())
            mode: Literal["query", "batch"] = "query" if self.stage == "query" else "batch"
            wait = 0.0 if eager else FLUSH_SECONDS
            start = ExecuteSessionAction(session_name=self.session_id, **ask.owner, code=command, mode=mode, wait=wait)
            output = await ask.run(start, key=self.key())
            self.begun = True
            console = _at_once(output) or await self._read(ask, FLUSH_SECONDS - wait, eager=eager)
        else:
            console = await self._read(ask, FLUSH_SECONDS, eager=eager)
        self.raised = self.raised or console.raised
        if console.done is not None:
            return self._done(console.done, console)
        if self.waiting:
            return self._told("waiting-input", console, options={"is_password": self.password})
        return self._told("continued", console)

    async def feed(self, ask: Ask, text: str) -> None:
        line = text if text.endswith("\n") else f"{text}\n"
        asked = ExecuteSessionAction(
            session_name=self.session_id, **ask.owner, mode="input", code=line, run_id=self.run_id(ask), wait=0.0
        )
        await ask.run(asked)
        self.waiting = False

    async def _read(self, ask: Ask, seconds: float, *, eager: bool) -> Console:
        console, run_id, service = Console(), self.run_id(ask), ask.door.world.service
        until = service.monotonic() + seconds
        while True:
            left = max(0.0, until - service.monotonic())
            asked = ReadExecutionAction(
                session_name=self.session_id, **ask.owner, run_id=run_id, from_seq=self.next_seq, wait=left
            )
            piece = await ask.run(asked)
            if piece.gap is not None:
                console.add([{"kind": "gap"}])
            console.add(piece.records)
            self.next_seq = piece.next_seq
            if console.done is None and piece.status == "done" and not piece.records:
                console.end({"exit_code": piece.exit_code, "reason": piece.reason})
            if console.asked is not None:
                self.waiting = piece.status == "waiting_input"
                self.password = bool(console.asked.get("password"))
            if console.done is not None or self.waiting or left <= 0 or console.size >= _MOST_CONSOLE:
                return console
            if eager and console.items:
                return console

    def _done(self, done: Mapping[str, Any], console: Console) -> dict[str, Any]:
        exit_code = exit_code_of(done, raised=self.raised)
        if self.stage in STAGES[:-1]:
            self.failed_build = exit_code if self.stage == "build" else 0
            status = f"{self.stage}-finished"
            self.stage = STAGES[STAGES.index(self.stage) + 1]
            self.begun, self.next_seq, self.waiting = False, 0, False
        else:
            status, self.stage = "finished", ""
        return self._told(status, console, exit_code=exit_code)

    def _told(
        self, status: str, console: Console, *, exit_code: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "runId": self.name,
            "status": status,
            "console": console.items,
            "exitCode": exit_code,
            "options": options,
            "files": [],
        }


def _at_once(output: RunOutput) -> Console | None:
    """What a run that is over has printed, when the answer to its start says it all; else its records are read in their order."""
    told = [bool(part) for part in (output.stdout, output.stderr, output.results, output.error)]
    if output.status != "done" or output.truncated or output.gap is not None or sum(told) > 1:
        return None
    console = Console()
    console.add({"kind": kind, "text": text} for kind, text in (("stdout", output.stdout), ("stderr", output.stderr)))
    console.add({"kind": "result", "data": bundle} for bundle in output.results)
    if output.error is not None:
        console.add([{"kind": "error", "data": output.error}])
    console.end({"exit_code": output.exit_code, "reason": output.reason})
    return console


def _showing(record: dict[str, Any]) -> Console:
    console = Console()
    console.add([record])
    return console
