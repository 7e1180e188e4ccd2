"""All crash points there are, read out of the code: `python -m tests.faults points`.

Most come from a wrapper that many calls go through (a transaction, a call of the engine, a request to a runner, an
answer), and get their names from what is passed to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from actions import ACTIONS, Action, BatchAction, Effect, SessionAction
from actions.base import Audit, Settles

_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("actions", "agent", "manager", "repositories")
_BOTH = ("before", "after")
#: Requests to a runner that change nothing.
_RUNNER_READS = frozenset(
    {
        "hello",
        "arm",
        "disarm",
        "complete",
        "status",
        "list",
        "open",
        "archive",
        "terminals",
        "listening",
        "lease",
    }
)
#: Requests between managers and agents whose answer tells of something that lasts.
_ANSWERS = (
    *("ensure", "execute", "input", "interrupt", "kill", "manage_file", "open_stream", "start_service", "stop_service"),
    *("state", "commit", "remove_image", "clone_volume", "remove_volume", "hello", "heartbeat", "facts", "runs_done"),
    *("samples", "services"),
)
#: Left out, and why nothing can be between two effects there, or a campaign cannot get there.
LEFT_OUT = {
    "agent.store.forget": "what ended seven days ago is forgotten",
    "agent.store.refuse_run": "a run that was never delivered, after a death at agent.store.begin_run.after",
    "action.fsck": "changes nothing",
    "action.get_volume": "changes nothing",
    "action.issue_ssh_certificate": "changes nothing",
    "action.export_audit": "changes nothing",
    "action.verify_audit": "changes nothing",
    "action.set_password": "one statement",
}


@cache
def all_points() -> tuple[str, ...]:
    """Sorted."""
    names = {*_literal(), *_transactions(), *_actions(), *_stores(), *_engine(), *_runner()}
    names |= {f"answer.{name}" for name in _ANSWERS}
    names |= {f"{role}.registered" for role in ("api", "control", "proxy")}
    return tuple(sorted(name for name in names if not any(name.startswith(f"{left}.") for left in LEFT_OUT)))


def _literal() -> set[str]:
    """`reach("agent.files.link.cleared")`"""
    return {
        str(call.args[0].value)
        for call in _calls("reach")
        if len(call.args) == 1 and isinstance(call.args[0], ast.Constant)
    }


def _transactions() -> set[str]:
    """`database.transaction("control.facts")`"""
    units = [call.args[0].value for call in _calls("transaction") if call.args and _is_text(call.args[0])]  # type: ignore[attr-defined]
    return {f"{unit}.commit.{moment}" for unit in units for moment in _BOTH}


def _actions() -> set[str]:
    """Of those whose work goes on after their commit, or on a host; what is done with its commit has nothing in between."""
    names = set()
    for name, action in ACTIONS.items():
        if action.rules.effect is Effect.DATABASE and _goes_on(action):
            names |= {f"action.{name}.commit.{moment}" for moment in _BOTH}
        elif action.rules.effect is Effect.AGENT and action.rules.audit in (Audit.ALWAYS, Audit.ITSELF):
            names.add(f"action.{name}.done")
    return names


def _goes_on(action: type[Action[Any, Any]]) -> bool:
    return issubclass(action, SessionAction | BatchAction | Settles) or action.rules.background


def _stores() -> set[str]:
    """`self._call(function, "save")` of the agent's SQLite file"""
    names = {call.args[1].value for call in _calls("_call", "agent/store.py") if len(call.args) == 2}  # type: ignore[attr-defined]
    return {f"agent.store.{name}.{moment}" for name in names for moment in _BOTH}


def _engine() -> set[str]:
    """`self._call(function, "create")`, and `engine.ask(question, "commit")`"""
    calls = [*_calls("_call", "agent/containers.py"), *_calls("ask", "agent/images.py")]
    names = {call.args[1].value for call in calls if len(call.args) == 2 and _is_text(call.args[1])}  # type: ignore[attr-defined]
    return {f"agent.docker.{name}.{moment}" for name in names for moment in _BOTH}


def _runner() -> set[str]:
    """`{"op": "execute", ...}`"""
    names = set()
    for node in ast.walk(_tree("agent/runner_link.py")):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "op" and _is_text(value):
                    names.add(str(value.value))  # type: ignore[attr-defined]
    # two of them end in a connection that is handed on: there is no answer to come after
    streams = {"process", "connect"}
    return {
        f"agent.runner.{name}.{moment}"
        for name in names - _RUNNER_READS
        for moment in (_BOTH if name not in streams else _BOTH[:1])
    }


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _calls(name: str, *files: str) -> Iterator[ast.Call]:
    for file in files or _files():
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.Call):
                called = node.func
                if name == (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)):
                    yield node


@cache
def _files() -> tuple[str, ...]:
    return tuple(str(file.relative_to(_ROOT)) for folder in _FOLDERS for file in sorted((_ROOT / folder).rglob("*.py")))


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((_ROOT / file).read_text())
