"""A template's document: YAML or JSON, its parameters, and the fields of a creation that come out of it.

A parameter stands for a whole value, `{$param: NAME}`. It is never put into text, and never into what a shell reads: a
script gets it through `environ`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actions.clusters import CreateClusterAction
from actions.lifecycle import CreateFromParamsAction
from domain.errors import InvalidTemplate, MoorageError

MOST_BYTES: Final = 64 * 1024
MOST_LEVELS: Final = 20
_PARAM: Final = "$param"
_HIDDEN: Final = frozenset({"access_key", "owner_access_key"})
#: A shell reads them.
_SHELL: Final = frozenset({"startup_command", "bootstrap_script"})
#: Of these, what is given at the creation goes over the template's, name by name; all others are replaced as a whole.
_MERGED: Final = frozenset({"resource_slots", "environ", "labels", "main", "worker"})
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

FIELDS: Final = frozenset(f.name for f in fields(CreateFromParamsAction)) - _HIDDEN
CLUSTER_FIELDS: Final = frozenset(f.name for f in fields(CreateClusterAction)) - FIELDS - _HIDDEN

Scalar = bool | int | float | str
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class Parameter(BaseModel):
    """One parameter; without a default it has to be given."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["string", "integer", "number", "boolean"] = "string"
    default: Scalar | None = None
    description: Annotated[str, Field(max_length=500)] = ""
    choices: Annotated[list[Scalar], Field(min_length=1, max_length=100)] | None = None
    minimum: float | None = None
    maximum: float | None = None

    def check(self, name: str, value: object) -> Scalar:
        """Raises InvalidTemplate for a value that this parameter cannot have."""
        # a boolean is an integer for Python, and for nobody else
        if isinstance(value, bool) is not (self.type == "boolean") or not isinstance(value, _TYPES[self.type]):
            raise _mistyped(name, self.type, value)
        assert isinstance(value, bool | int | float | str)
        if isinstance(value, float) and not math.isfinite(value):
            raise _mistyped(name, self.type, value)
        if self.choices is not None and value not in self.choices:
            choices = ", ".join(_shown(choice) for choice in self.choices)
            raise InvalidTemplate(f"The parameter '{name}' is one of {choices}, not {_shown(value)}.", field=name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.minimum is not None and value < self.minimum:
                raise InvalidTemplate(f"The parameter '{name}' is at least {self.minimum:g}.", field=name)
            if self.maximum is not None and value > self.maximum:
                raise InvalidTemplate(f"The parameter '{name}' is at most {self.maximum:g}.", field=name)
        return value

    def parse(self, name: str, text: str) -> Scalar:
        """From a command line: text that is written like the parameter's type is."""
        if self.type == "string":
            return text
        if self.type == "boolean":
            found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower())
            if found is None:
                raise _mistyped(name, self.type, text)
            return found
        try:
            return int(text) if self.type == "integer" else float(text)
        except ValueError:
            raise _mistyped(name, self.type, text) from None


class TemplateDocument(BaseModel):
    """What a template says."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1  #: of this document
    description: Annotated[str, Field(max_length=2000)] = ""
    parameters: Annotated[dict[str, Parameter], Field(max_length=100)] = {}
    session: dict[str, Any]  #: fields of a creation, or of a cluster's


def parse(given: str | Mapping[str, Any]) -> tuple[TemplateDocument, str]:
    """The document, and the text to keep of it. Raises InvalidTemplate, which names what is wrong."""
    data = _loaded(_sized(given)) if isinstance(given, str) else dict(given)
    _check_tree(data, 0)  # before it is written as JSON, which not everything in YAML can be
    source = given if isinstance(given, str) else _sized(json.dumps(given, indent=2, ensure_ascii=False))
    try:
        document = TemplateDocument.model_validate(data)
    except ValidationError as error:
        raise InvalidTemplate(_said(error)) from None
    _check(document)
    return document, source


def _sized(source: str) -> str:
    if len(source.encode("utf-8", "replace")) > MOST_BYTES:
        raise InvalidTemplate(f"A template has at most {MOST_BYTES // 1024} KiB; put long scripts into the image.")
    return source


def fill(document: TemplateDocument, given: Mapping[str, Any], over: Mapping[str, Any]) -> CreateFromParamsAction:
    """The creation that comes out of it. `over`: fields that go over the template's. Text is read as what a parameter is."""
    if unknown := [name for name in given if name not in document.parameters]:
        known = ", ".join(document.parameters) or "none"
        raise InvalidTemplate(
            f"The template has no parameter '{unknown[0][:64]}'; it has {known}.", field=unknown[0][:64]
        )
    values: dict[str, Scalar] = {}
    for name, parameter in document.parameters.items():
        value = given.get(name, parameter.default)
        if value is None:
            raise InvalidTemplate(f"The parameter '{name}' has no default: give it a value.", field=name)
        if isinstance(value, str):
            value = parameter.parse(name, value)
        values[name] = parameter.check(name, value)
    _check_names(over, "overrides")
    if any(_is_param(value) for value in over.values()):
        raise InvalidTemplate("What is given at the creation holds values, not parameters.", field="overrides")
    return creation(_over(_filled(document.session, values), over))


def creation(values: Mapping[str, Any]) -> CreateFromParamsAction:
    """Raises InvalidTemplate, which names the field that is wrong or missing."""
    kind = CreateClusterAction if CLUSTER_FIELDS & values.keys() else CreateFromParamsAction
    try:
        made: CreateFromParamsAction = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise InvalidTemplate(_said(error, under="session")) from None
    except MoorageError as error:
        raise InvalidTemplate(f"session: {error.message}") from None
    return made


# -- what is wrong with it -------------------------------------------------------------------------------------------------
def _check(document: TemplateDocument) -> None:
    for name, parameter in document.parameters.items():
        if not _NAME.fullmatch(name):
            raise InvalidTemplate(
                f"'{name[:64]}' cannot be a parameter's name: use letters, digits and '_', and begin with a letter."
            )
        for value in (parameter.default, *(parameter.choices or ())):
            if value is not None:
                parameter.check(name, value)
    _check_names(document.session, "session")
    for name, value in document.session.items():
        if name in _SHELL and _uses(value):
            raise InvalidTemplate(
                f"session.{name}: a shell reads it, so no parameter goes there; set 'environ: {{X: {{$param: x}}}}' and "
                'write "$X".',
                field=f"session.{name}",
            )
        for used in _uses(value):
            if used not in document.parameters:
                raise InvalidTemplate(f"session.{name}: there is no parameter '{used[:64]}'.", field=f"session.{name}")
    # with the defaults in place, as far as there are any, it has to be a creation
    values = {name: p.default for name, p in document.parameters.items() if p.default is not None}
    known = {name: value for name, value in document.session.items() if _uses(value) <= values.keys()}
    creation({"image": "image", **_filled(known, values)})


def _check_names(given: Mapping[str, Any], where: str) -> None:
    for name in given:
        if name not in FIELDS | CLUSTER_FIELDS:
            raise InvalidTemplate(f"{where}: there is no field '{str(name)[:64]}'.", field=f"{where}.{str(name)[:64]}")


def _check_tree(value: object, level: int) -> None:
    if level > MOST_LEVELS:
        raise InvalidTemplate(f"A template has at most {MOST_LEVELS} levels.")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InvalidTemplate(f"The name {_shown(name)} is not text: put it into quotes.")
            _check_tree(inner, level + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_tree(inner, level + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidTemplate("A template holds no infinite numbers.")
    elif isinstance(value, str) and "\0" in value:
        raise InvalidTemplate("A template holds no NUL characters.")
    elif not isinstance(value, str | int | float | bool | None):
        raise InvalidTemplate(
            f"A template holds text, numbers, true, false, lists and mappings, and no {type(value).__name__}."
        )


def _said(error: ValidationError, under: str = "") -> str:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in (under, *first["loc"]) if part != "")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"There is no field '{where[:200]}' in a template; check the spelling."
    if first["type"].startswith("missing"):
        return f"The template lacks the field '{where}'."
    return f"The field '{where[:200]}' of the template is wrong: {first['msg']}."


# -- parameters ------------------------------------------------------------------------------------------------------------
def _is_param(value: object) -> bool:
    return isinstance(value, Mapping) and _PARAM in value


def _uses(value: object) -> set[str]:
    """The parameters that stand somewhere in it."""
    if _is_param(value):
        assert isinstance(value, Mapping)
        if len(value) != 1 or not isinstance(value[_PARAM], str):
            raise InvalidTemplate("A parameter stands for a whole value: write {$param: NAME} and nothing beside it.")
        return {value[_PARAM]}
    if isinstance(value, Mapping):
        return set().union(*(_uses(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(_uses(inner) for inner in value))
    return set()


def _filled(value: Any, values: Mapping[str, Any], *, text: bool = False) -> Any:
    """`text`: the place takes nothing but text, such as a variable of the environment."""
    if _is_param(value):
        found = values[value[_PARAM]]
        return _as_text(found) if text else found
    if isinstance(value, Mapping):
        return {k: _filled(inner, values, text=text or k in ("environ", "labels")) for k, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, text=text) for inner in value]
    return value


def _as_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = name in _MERGED and isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        before = merged.get(name)
        if name == "resource_slots" and both and ("gpu" in value) != ("gpu-mem" in value):
            # devices are asked for whole, or by a share: the one ends the other
            before = {slot: amount for slot, amount in merged[name].items() if slot not in ("gpu", "gpu-mem")}
        merged[name] = {**(before or {}), **value} if both else value
    return merged


# -- YAML ------------------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """The safe one, without what surprises: aliases, dates, keys that are given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidTemplate("A template uses no YAML aliases ('*name').")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidTemplate(f"'{twice[:64]}' is given twice, near line {node.start_mark.line + 1}.")
        return super().construct_mapping(node, deep)


#: What is neither text nor empty without quotes: as in JSON, so that `on`, `no`, `1:30` and `010` stay the text they are.
_PLAIN: Final = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))


def load(text: str) -> Any:
    """YAML, without what surprises; JSON is YAML too. Raises InvalidTemplate."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe loader, and less
    except yaml.MarkedYAMLError as error:
        line = f" near line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidTemplate(f"The template is no YAML: {error.problem}{line}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidTemplate(f"The template is no YAML: {str(error)[:200]}.") from None
    except RecursionError:
        raise InvalidTemplate(f"A template has at most {MOST_LEVELS} levels.") from None


def _loaded(text: str) -> dict[str, Any]:
    data = load(text)
    if not isinstance(data, dict):
        raise InvalidTemplate("A template is a mapping with 'session' in it.")
    return data


def _mistyped(name: str, type: str, value: object) -> InvalidTemplate:
    article = "an" if type == "integer" else "a"
    return InvalidTemplate(f"The parameter '{name}' is {article} {type}, and {_shown(value)} is not.", field=name)


def _shown(value: object) -> str:
    return f"'{str(value)[:60]}'"
