"""An app that is a class, as inference.sh has it: `setup()`, `run(input)`, any other public method by name, `unload()`.

On the image's Python (3.8 or later). Neither pydantic nor the inferencesh package is needed; where they are, their models
are understood.
"""

from __future__ import annotations

import inspect
import sys

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from typing import Any

_NOT_FUNCTIONS = ("setup", "unload")
#: Methods that come with a base class of these packages are not the app's.
_FOREIGN = ("pydantic", "pydantic_core", "builtins", "abc", "typing")


def make(entry: Any, options: dict[str, Any], server: Any) -> ClassAdapter:
    return ClassAdapter(entry() if isinstance(entry, type) else entry, options)


class ClassAdapter:
    def __init__(self, app: Any, options: dict[str, Any]) -> None:
        self.app = app
        self._options = options
        self._functions = _functions_of(type(app))

    def setup(self) -> Any:
        """What it gives is awaited where it is to be."""
        setup = getattr(self.app, "setup", None)
        return None if setup is None else setup(*_arguments(setup, self._options or None, needed=False))

    def functions(self) -> list[str]:
        return self._functions

    def call(self, function: str, given: Any) -> Any:
        """A plain function to run, or something to await or to iterate."""
        if function not in self._functions:
            raise _error(
                "function_not_found",
                f"The app has no function {function[:100]!r}; it has {', '.join(self._functions) or 'none'}.",
            )
        method = getattr(self.app, function)
        arguments = _arguments(method, given, needed=True)
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            return method(*arguments)
        return lambda: method(*arguments)

    def unload(self) -> Any:
        unload = getattr(self.app, "unload", None)
        return None if unload is None else unload()


def _functions_of(app: type) -> list[str]:
    found = []
    for name in dir(app):
        if name.startswith("_") or name in _NOT_FUNCTIONS:
            continue
        home = next((cls for cls in app.__mro__ if name in vars(cls)), None)
        if home is None or str(home.__module__).split(".")[0] in _FOREIGN:
            continue
        if callable(getattr(app, name, None)) and not isinstance(vars(home)[name], type):
            found.append(name)
    return sorted(found, key=lambda name: (name != "run", name))


def _arguments(method: Any, given: Any, *, needed: bool) -> list[Any]:
    """What the method is called with: nothing, the input as it is, or the model that its parameter is annotated with."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return [given] if needed else []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if not positional:
        if given not in (None, {}):
            raise _error("input_invalid", f"The function {method.__name__} takes no input.")
        return []
    first = positional[0]
    if given is None and not needed and first.default is not first.empty:
        return []
    model = _model_of(method, first)
    if model is None:
        return [given]
    validate = getattr(model, "model_validate", None) or getattr(model, "parse_obj", None)
    try:
        return [validate({} if given is None else given)]  # type: ignore[misc]  # one of the two is there
    except Exception as error:
        raise _error("input_invalid", f"The input is not what {method.__name__} takes: {error}") from None


def _model_of(method: Any, parameter: Any) -> Any:
    """A pydantic model, where that is what the parameter is annotated with."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            import typing

            annotation = typing.get_type_hints(method).get(parameter.name)
        except Exception:
            return None
    is_model = isinstance(annotation, type) and (
        hasattr(annotation, "model_validate") or hasattr(annotation, "parse_obj")
    )
    return annotation if is_model else None


def _error(code: str, message: str) -> Exception:
    error: Exception = sys.modules["_moorage_app"].AppError(code, message)
    return error
