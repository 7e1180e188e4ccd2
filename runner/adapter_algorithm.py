"""An app that is a procvision algorithm (BaseAlgorithm of procvision-algorithm-sdk 0.0.x): its hooks in their order.

An execution is one detection: `pre_execute` and `execute` with the same `execution` id share one Session, which is reset and
forgotten when it is over. On the image's Python (3.8 or later).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import sys
from collections import OrderedDict

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_OPEN = 100  #: executions; the oldest is reset and forgotten when there are more
MAX_SESSION_BYTES = 1 << 20
_FUNCTIONS = ("get_info", "on_step_start", "pre_execute", "execute", "on_step_finish", "reset", "teardown")
_NEEDED = ("get_info", "pre_execute", "execute")


def make(entry: Any, options: dict[str, Any], server: Any) -> AlgorithmAdapter:
    hooks = options.get("hooks", "auto")
    if hooks not in ("auto", "manual"):
        raise _error("invalid_request", "The option hooks is auto or manual.")
    if server.concurrency > 1:
        raise _error("invalid_request", "An algorithm runs one call at a time: its concurrency is 1.")
    algorithm = entry() if isinstance(entry, type) else entry
    missing = [name for name in _NEEDED if not callable(getattr(algorithm, name, None))]
    if missing:
        raise _error("app_import_failed", f"This is no algorithm: it has no {', '.join(missing)}.")
    return AlgorithmAdapter(algorithm, server.state, automatic=hooks == "auto")


class AlgorithmAdapter:
    """`automatic`: pre_execute and execute run the other hooks around themselves; else only what is called runs."""

    def __init__(self, algorithm: Any, rules: Any, *, automatic: bool) -> None:
        self._algorithm = algorithm
        self._rules = rules
        self._automatic = automatic
        self._open: OrderedDict[str, Execution] = OrderedDict()
        self._session_class = session_class(rules)
        self._torn_down = False

    def setup(self) -> None:
        self._hook("setup")

    def functions(self) -> list[str]:
        return list(_FUNCTIONS)

    def call(self, function: str, given: Any) -> Callable[[], Any]:
        if function not in _FUNCTIONS:
            said = f"An algorithm has no function {function[:100]!r}; it has {', '.join(_FUNCTIONS)}."
            raise _error("function_not_found", said)
        asked = Asked(given)
        if function == "get_info":
            return lambda: self._object("get_info", self._algorithm.get_info())
        if function == "teardown":
            return self.unload
        return lambda: getattr(self, "_" + function)(asked)

    def unload(self) -> None:
        """Executions that are open are reset first; once, whoever asks."""
        while self._open:
            self._end(next(iter(self._open.values())))
        if not self._torn_down:
            self._torn_down = True
            self._hook("teardown")

    # -- the functions -----------------------------------------------------------------------------------------------------
    def _on_step_start(self, asked: Asked) -> Any:
        if asked.alone:
            raise _error("input_invalid", "Name the execution whose step begins.")
        execution = self._execution(asked)
        self._start_step(execution, asked)
        return self._with_diagnostics({})

    def _pre_execute(self, asked: Asked) -> Any:
        execution = self._execution(asked)
        try:
            return self._step(execution, asked, "pre_execute")
        except BaseException:
            self._over(execution)
            raise
        finally:
            if asked.alone:
                self._over(execution)

    def _execute(self, asked: Asked) -> Any:
        execution, more = self._execution(asked), asked.more_steps
        try:
            return self._step(execution, asked, "execute")
        except BaseException:
            more = False
            raise
        finally:
            if not more:
                self._over(execution)

    def _on_step_finish(self, asked: Asked) -> Any:
        execution = self._known(asked)
        self._hook("on_step_finish", asked.step_index, execution.session, asked.get("result", dict))
        return self._with_diagnostics({})

    def _reset(self, asked: Asked) -> Any:
        self._end(self._known(asked))
        return self._with_diagnostics({})

    # -- pieces ------------------------------------------------------------------------------------------------------------
    def _step(self, execution: Execution, asked: Asked, phase: str) -> Any:
        if self._automatic and asked.step_index not in execution.started:
            self._start_step(execution, asked)
        program = getattr(self._algorithm, phase)
        answer = program(
            asked.step_index,
            asked.get("pid", str),
            execution.session,
            asked.get("user_params", dict),
            asked.get("shared_mem_id", str),
            asked.get("image_meta", dict),
        )
        result = self._object(phase, answer)
        if self._automatic and phase == "execute":
            self._hook("on_step_finish", asked.step_index, execution.session, result)
            execution.started.discard(asked.step_index)
        return self._with_diagnostics(result)

    def _start_step(self, execution: Execution, asked: Asked) -> None:
        execution.started.add(asked.step_index)
        context = execution.session.context
        self._hook(
            "on_step_start",
            asked.step_index,
            execution.session,
            {"pid": asked.get("pid", str), "trace_id": context.get("trace_id"), **context},
        )

    def _execution(self, asked: Asked) -> Execution:
        """The one that is meant; it begins with the first call that names it."""
        if asked.alone and not self._automatic:
            raise _error("input_invalid", "Name the execution: while hooks are called by hand, nothing else ends it.")
        known = self._open.get(asked.execution)
        if known is not None:
            return known
        while len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open.values()))
            print(f"moorage: execution {oldest.session.id} never ended, and is reset", file=sys.stderr)
            self._end(oldest)
        items = getattr(getattr(self._algorithm, "diagnostics", None), "items", None)
        if not self._open and isinstance(items, dict):
            items.clear()  # they are told with the execution that they are of
        made = Execution(self._session_class(asked.execution, asked.get("context", dict)))
        self._open[asked.execution] = made
        return made

    def _known(self, asked: Asked) -> Execution:
        if asked.execution not in self._open:
            raise _error("execution_not_found", f"No execution {asked.execution!r} is going on; it may be over.")
        return self._open[asked.execution]

    def _over(self, execution: Execution) -> None:
        if self._automatic:
            self._end(execution)

    def _end(self, execution: Execution) -> None:
        """Its Session is never seen again, whatever the hook does."""
        if self._open.pop(execution.session.id, None) is not None:
            self._hook("reset", execution.session)

    def _hook(self, name: str, *arguments: Any) -> None:
        hook = getattr(self._algorithm, name, None)
        if hook is not None:
            hook(*arguments)

    def _object(self, phase: str, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise _error("output_not_json", f"{phase} returned a {type(answer).__name__}, and is to return an object.")
        return answer

    def _with_diagnostics(self, result: dict[str, Any]) -> dict[str, Any]:
        diagnostics: Any = getattr(self._algorithm, "diagnostics", None)
        published = diagnostics.get() if hasattr(diagnostics, "get") else {}
        return {**result, "diagnostics": published}


class Execution:
    def __init__(self, session: Any) -> None:
        self.session = session
        self.started: set[int] = set()  #: steps whose on_step_start has run


class Asked:
    """The input of a call, checked."""

    def __init__(self, given: Any) -> None:
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise _error("input_invalid", "The input of an algorithm's function is an object.")
        self._given = given
        self.alone = given.get("execution") is None
        self.execution: str = self.get("execution", str) or "session"
        self.more_steps = bool(given.get("more_steps", False)) and not self.alone
        index = given.get("step_index", 1)
        if isinstance(index, bool) or not isinstance(index, int):
            raise _error("input_invalid", "step_index is a whole number.")
        self.step_index: int = index

    def get(self, name: str, kind: type) -> Any:
        value = self._given.get(name)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            word = "an object" if kind is dict else "a text"
            raise _error("input_invalid", f"{name} is {word}, not a {type(value).__name__}.")
        return copy.deepcopy(value)


def session_class(rules: Any) -> Any:
    """The SDK's Session as the SDK has it, where it is installed, with a stricter store.

    `rules` is moorage_session: what it takes for JSON, and its limits.
    """
    base: Any = object
    with contextlib.suppress(ImportError):
        base = importlib.import_module("procvision_algorithm_sdk.session").Session

    class Session(base):  # type: ignore[misc]
        """Of one execution: `id`, `context`, `get`, `set`, `delete`, `exists`. What goes in and comes out is a copy."""

        def __init__(self, id: str, context: dict[str, Any] | None = None) -> None:
            self._id = id
            self._context = copy.deepcopy(context or {})
            self._state_store: dict[str, Any] = {}
            self._sizes: dict[str, int] = {}

        @property
        def id(self) -> str:
            return self._id

        @property
        def context(self) -> dict[str, Any]:
            return copy.deepcopy(self._context)

        def get(self, key: str, default: Any = None) -> Any:
            return json.loads(self._state_store[key]) if key in self._state_store else default

        def set(self, key: str, value: Any) -> None:
            """Raises TypeError for what is not JSON, and ValueError for what is too large."""
            key = rules._checked_key(key)
            text = rules.encoded(value)
            sizes = {**self._sizes, key: len(key.encode()) + len(text.encode())}
            if sum(sizes.values()) > MAX_SESSION_BYTES:
                raise rules.StateFull(f"All values of a Session take at most {MAX_SESSION_BYTES >> 20} MiB together.")
            self._state_store[key], self._sizes = text, sizes

        def delete(self, key: str) -> bool:
            self._sizes.pop(key, None)
            return self._state_store.pop(key, None) is not None

        def exists(self, key: str) -> bool:
            return key in self._state_store

    return Session


def _error(code: str, message: str) -> Exception:
    error: Exception = sys.modules["_moorage_app"].AppError(code, message)
    return error
