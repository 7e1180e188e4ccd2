"""How large a GraphQL query may be, looked at before anything of it is looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from graphql import (
    DocumentNode,
    ExecutableDefinitionNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
)

from domain.errors import InvalidRequest
from manager.compat.backendai.gql_lists import MOST_COST, MOST_ROWS

if TYPE_CHECKING:
    from graphql import GraphQLResolveInfo

MOST_BYTES: Final = 32 * 1024
MOST_TOKENS: Final = 3000
MOST_LISTS: Final = 8
MOST_DEPTH: Final = 8
#: Fields of one name, and fragments that are used: the validation compares each of them with each.
MOST_SAME: Final = 32
#: Lists inside of rows, which have no limit of their own: containers of a session, groups of a user.
_INNER_ROWS: Final = 8
_INNER: Final = frozenset({"containers", "dependencies", "groups"})
#: What each costs that is looked up for one row, beside its fields.
_LOOKUP: Final = 50
_LOOKED_UP: Final = frozenset({"containers", "dependencies", "abusing_reports"})


@dataclass(frozen=True, slots=True)
class _Weight:
    depth: int
    cost: int


def check(document: DocumentNode, variables: Mapping[str, Any], operation: str | None) -> None:
    """Raises InvalidRequest for what is too large, and for what only changes or only looks at the schema."""
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    chosen = [one for one in operations if operation is None or (one.name and one.name.value == operation)]
    if len(chosen) != 1:
        raise InvalidRequest("Send one operation, or name the one that is meant.", field="query")
    if chosen[0].operation.value != "query":
        raise InvalidRequest(
            "GraphQL only reads here; users, keypairs, hosts and limits are changed by 'moorage admin'.", field="query"
        )
    _check_repeated(document)
    fragments = {n.name.value: n for n in document.definitions if isinstance(n, FragmentDefinitionNode)}
    weight = _Scales(fragments, variables).weigh(chosen[0].selection_set, top=True)
    if weight.depth > MOST_DEPTH:
        raise InvalidRequest(f"A query has at most {MOST_DEPTH} levels.", field="query")
    if weight.cost > MOST_COST:
        raise InvalidRequest(
            f"This query may have {weight.cost:,} fields in its answer, and at most {MOST_COST:,} are answered: ask for "
            "fewer fields, or for fewer rows by 'limit'.",
            field="query",
        )


def _check_repeated(document: DocumentNode) -> None:
    used: Counter[str] = Counter()
    waiting = [one.selection_set for one in document.definitions if isinstance(one, ExecutableDefinitionNode)]
    while waiting:
        for node in waiting.pop().selections:
            used[(node.alias or node.name).value if isinstance(node, FieldNode) else "..."] += 1
            if (inside := getattr(node, "selection_set", None)) is not None:
                waiting.append(inside)
    name, count = max(used.items(), key=lambda one: one[1])
    if count > MOST_SAME:
        raise InvalidRequest(
            f"'{name[:80]}' is asked for {count} times, and at most {MOST_SAME} are answered.", field="query"
        )


def cost_inside(info: GraphQLResolveInfo[Any]) -> int:
    """Of one row of a list, as it is asked for."""
    scales = _Scales(info.fragments, {})
    return sum(scales.weigh(node.selection_set).cost for node in info.field_nodes)


class _Scales:
    """Each fragment is weighed once, however often it is used."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], variables: Mapping[str, Any]) -> None:
        self._fragments = fragments
        self._variables = variables
        self._known: dict[str, _Weight] = {}
        self._open: set[str] = set()
        self._lists = 0

    def weigh(self, chosen: SelectionSetNode | None, *, top: bool = False) -> _Weight:
        if chosen is None:
            return _Weight(0, 0)
        weights = [self._node(node, top) for node in chosen.selections]
        return _Weight(max((w.depth for w in weights), default=0), sum(w.cost for w in weights))

    def _node(self, node: Any, top: bool) -> _Weight:
        if isinstance(node, FieldNode):
            return self._field(node, top)
        if isinstance(node, InlineFragmentNode):
            return self.weigh(node.selection_set, top=top)
        assert isinstance(node, FragmentSpreadNode)
        return self._fragment(node.name.value, top)

    def _fragment(self, name: str, top: bool) -> _Weight:
        if name in self._open:
            raise InvalidRequest(f"The fragment '{name[:80]}' contains itself.", field="query")
        if (known := self._known.get(name)) is not None and not top:
            return known
        found = self._fragments.get(name)
        if found is None:
            return _Weight(0, 0)  # the validation says so
        self._open.add(name)
        weight = self._known[name] = self.weigh(found.selection_set, top=top)
        self._open.discard(name)
        return weight

    def _field(self, node: FieldNode, top: bool) -> _Weight:
        name = node.name.value
        if name in ("__schema", "__type"):
            raise InvalidRequest("The schema is not told here.", field="query")
        if top:
            self._lists += 1
            if self._lists > MOST_LISTS:
                raise InvalidRequest(f"A query asks for at most {MOST_LISTS} things at once.", field="query")
        inside = self.weigh(node.selection_set)
        rows = self._rows(node) if top else _INNER_ROWS if name in _INNER else 1
        return _Weight(inside.depth + 1, 1 + rows * inside.cost + (_LOOKUP if name in _LOOKED_UP else 0))

    def _rows(self, node: FieldNode) -> int:
        for argument in node.arguments or ():
            if argument.name.value == "limit":
                value = argument.value
                if isinstance(value, IntValueNode):
                    return _count(value.value)
                if isinstance(value, VariableNode):
                    return _count(self._variables.get(value.name.value))
        return 1  # one thing, or a list that is counted when it is there


def _count(value: Any) -> int:
    """The resolver refuses a limit that is none."""
    try:
        return min(max(int(value), 1), MOST_ROWS)
    except (TypeError, ValueError, OverflowError):
        return MOST_ROWS
