"""A function or a piece of code, made ready to be run on one input after another in a session's Python."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any

from moorage.results import RunResult

#: What an input may be run by: a function of one argument, or code that finds `item` and sets `result`.
Work = Callable[[Any], Any] | str
MAX_VALUE_CHARACTERS = 3 << 20
ANSWER = "application/json"

_FRAME = """
class _MoorageValue:
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return "<%d characters of JSON>" % len(self.text)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {{"{answer}": self.text, "text/plain": repr(self)}}


def _moorage_map(item):
    import asyncio, inspect, json
    value = _moorage_one(json.loads(item))
    if inspect.isawaitable(value):
        async def waited():
            return await value
        value = asyncio.run(waited())
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise TypeError("the result is not JSON (%s): return plain values, or write a file" % problem) from None
    if len(text) > {limit}:
        raise ValueError("the result is larger than 3 MiB as JSON: write it to a file or a volume")
    return _MoorageValue(text)
"""


def definition(work: Work) -> str:
    """Code after which `_moorage_map` can be called."""
    frame = _FRAME.format(answer=ANSWER, limit=MAX_VALUE_CHARACTERS)
    if isinstance(work, str):
        compile(work, "<work>", "exec")  # said here, and not by every input
        body = f"exec(compile({work!r}, '<work>', 'exec'), names)\n    return names.get('result')"
        return (
            f"def _moorage_one(item):\n    names = {{**globals(), 'item': item, 'result': None}}\n    {body}\n{frame}"
        )
    return f"{source(work)}\n_moorage_one = {work.__name__}\n{frame}"


def call(item: Any) -> str:
    """Code whose result is that of one input. Raises TypeError when the input is not JSON."""
    try:
        text = json.dumps(item, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise TypeError(f"an input has to be JSON: {problem}") from None
    return f"_moorage_map({text!r})"


def value_of(result: RunResult) -> Any:
    """What the input came to. Raises `CommandFailed` when it raised or was stopped."""
    result.check()
    texts = [bundle[ANSWER] for bundle in result.results if isinstance(bundle.get(ANSWER), str)]
    return json.loads(texts[-1])


def source(function: Callable[..., Any]) -> str:
    """The text of a function that stands for itself."""
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise TypeError("only a function made by `def` can be sent to sessions; give others as a text of code")
    if function.__closure__:
        raise TypeError(f"{function.__name__} uses variables from around it, which sessions do not have")
    try:
        return textwrap.dedent(inspect.getsource(function))
    except OSError:
        raise TypeError(f"the source of {function.__name__} is not known here; give it as a text of code") from None
