"""The little languages of list queries: `filter` (`name ilike "train%" & status != "ERROR"`) and `order` (`-created_at,+name`).

Both are applied to rows in memory, column by column of what the asker may see anyway; nothing of them reaches SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

Row = Mapping[str, Any]
Test = Callable[[Row], bool]
MOST_CHARACTERS: Final = 2000
_MOST_DEPTH: Final = 20
_MOST_COLUMNS: Final = 5
_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>-?\d+(?:\.\d+)?(?![\w.]))
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>==|!=|>=|<=|[><!&|()\[\],])
    )""",
    re.VERBOSE,
)
_CONSTANTS: Final[Mapping[str, Any]] = {"true": True, "false": False, "null": None, "none": None}
_SIGNS: Final = frozenset({"==", "!=", ">", ">=", "<", "<="})
_WORDS: Final = frozenset({"contains", "in", "is", "isnot", "like", "ilike"})


class BadExpression(ValueError):
    """A filter or an order that cannot be understood; its text says where."""


def condition(text: str | None, columns: Iterable[str]) -> Test:
    """Raises BadExpression, and so may what it returns."""
    if not text or not text.strip():
        return lambda row: True
    return _Parser(text, frozenset(columns)).parse()


def ordered(rows: Sequence[Row], text: str | None, columns: Iterable[str]) -> list[Row]:
    """Raises BadExpression. Rows that are equal stay in the order in which they came."""
    keys = order_of(text, columns)
    found = list(rows)
    for column, descending in reversed(keys):
        kinds = {type(_comparable(row[column])) for row in found} - {type(None)}
        found.sort(key=_rank(column, as_text=len(kinds) > 1), reverse=descending)
    return found


def order_of(text: str | None, columns: Iterable[str]) -> list[tuple[str, bool]]:
    """(column, descending), the most important first."""
    if not text or not text.strip():
        return []
    _check_length(text)
    known, keys = frozenset(columns), []
    for part in text.split(","):
        word = part.strip()
        column = word.lstrip("+-")
        if len(word) - len(column) > 1 or column not in known:
            raise BadExpression(f"'{word[:80]}' is no column to order by; there are {', '.join(sorted(known))}.")
        keys.append((column, word.startswith("-")))
    if len(keys) > _MOST_COLUMNS:
        raise BadExpression(f"At most {_MOST_COLUMNS} columns are ordered by.")
    return keys


def _rank(column: str, *, as_text: bool) -> Callable[[Row], tuple[Any, ...]]:
    def rank(row: Row) -> tuple[Any, ...]:
        value = _comparable(row[column])
        return (False,) if value is None else (True, str(value) if as_text else value)  # nothing comes first

    return rank


class _Parser:
    def __init__(self, text: str, columns: frozenset[str]) -> None:
        _check_length(text)
        self._columns = columns
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def parse(self) -> Test:
        test = self._any()
        if self._peek() is not None:
            raise BadExpression(f"'{self._peek()}' was not expected there; join conditions by & or |.")
        return test

    def _any(self) -> Test:
        tests = [self._all()]
        while self._take("|"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._take("&"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise BadExpression(f"A filter has at most {_MOST_DEPTH} levels.")
        try:
            if self._take("!"):
                inner = self._one()
                return lambda row: not inner(row)
            if self._take("("):
                inside = self._any()
                self._expect(")")
                return inside
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Test:
        kind, column = self._next()
        if kind != "word" or column not in self._columns:
            raise BadExpression(
                f"'{str(column)[:80]}' is no column to filter by; there are {', '.join(sorted(self._columns))}."
            )
        _, operator = self._next()
        if operator not in _SIGNS | _WORDS:
            raise BadExpression(f"'{str(operator)[:80]}' is no comparison; write ==, !=, <, >, like, in, contains, is.")
        return _test(str(column), str(operator), self._value())

    def _value(self) -> Any:
        if not self._take("["):
            return self._one_value()
        items = []
        while not self._take("]"):
            items.append(self._one_value())
            if not self._take(","):
                self._expect("]")
                break
        return items

    def _one_value(self) -> Any:
        kind, value = self._next()
        if kind == "word":
            if str(value).lower() in _CONSTANTS:
                return _CONSTANTS[str(value).lower()]
            raise BadExpression(f"'{str(value)[:80]}' is no value; text is written in double quotes.")
        if kind == "sign":
            raise BadExpression(f"A value was expected before '{value}'.")
        return value

    def _peek(self) -> Any:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _take(self, sign: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("sign", sign):
            self._at += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise BadExpression(f"'{sign}' is missing.")

    def _next(self) -> tuple[str, Any]:
        if self._at >= len(self._tokens):
            raise BadExpression("The filter ends too early.")
        self._at += 1
        return self._tokens[self._at - 1]


def _tokens(text: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadExpression(f"The filter cannot be read from '{text[at : at + 20].strip()}' on.")
        kind, value = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "string":
            found.append((kind, re.sub(r"\\(.)", r"\1", value[1:-1])))
        elif kind == "number":
            found.append((kind, float(value) if "." in value else int(value)))
        else:
            found.append((kind, value))
        at = match.end()
    return found


def _test(column: str, operator: str, wanted: Any) -> Test:
    if (operator == "in") is not isinstance(wanted, list):
        raise BadExpression(f"'{column} {operator}' needs {'a list' if operator == 'in' else 'one value'}.")
    if operator in ("like", "ilike"):
        pattern = _like(str(wanted), ignore_case=operator == "ilike")
        return lambda row: row[column] is not None and pattern.fullmatch(str(row[column])) is not None
    if operator == "contains":
        return lambda row: (
            row[column] is not None
            and (wanted in row[column] if isinstance(row[column], list | tuple) else str(wanted) in str(row[column]))
        )
    if operator == "in":
        return lambda row: any(_same(row[column], one) for one in wanted)
    if operator in ("==", "is"):
        return lambda row: _same(row[column], wanted)
    if operator in ("!=", "isnot"):
        return lambda row: not _same(row[column], wanted)
    return lambda row: _less_or_more(row[column], operator, wanted)


def _like(pattern: str, *, ignore_case: bool) -> re.Pattern[str]:
    """`%` is anything, `_` one character. What stands between two `%` is looked for once, where it comes first (`(?>`):
    whoever chooses pattern and text could keep everybody waiting otherwise."""
    first, *rest = [
        "".join("." if letter == "_" else re.escape(letter) for letter in part) for part in pattern.split("%")
    ]
    text = first
    if rest:
        *between, last = rest
        text = "".join([first, *(f"(?>.*?{part})" for part in between if part), ".*", last])
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def _same(value: Any, wanted: Any) -> bool:
    value = _comparable(value)
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted
    if isinstance(value, datetime):
        return value == _moment(wanted)
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return value == wanted
    return str(value) == str(wanted)


def _less_or_more(value: Any, operator: str, wanted: Any) -> bool:
    value = _comparable(value)
    if value is None or wanted is None:
        return False
    if isinstance(value, datetime):
        wanted = _moment(wanted)
    elif not (isinstance(value, int | float) and isinstance(wanted, int | float)):
        value, wanted = str(value), str(wanted)
    match operator:
        case ">":
            return bool(value > wanted)
        case ">=":
            return bool(value >= wanted)
        case "<":
            return bool(value < wanted)
        case _:
            return bool(value <= wanted)


def _comparable(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str | datetime) else str(value)


def _moment(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise BadExpression(f"'{str(text)[:40]}' is no time; write 2026-01-31T12:00:00+00:00.") from None
    if moment.tzinfo is None:
        raise BadExpression(f"'{str(text)[:40]}' needs its zone: 2026-01-31T12:00:00+00:00.")
    return moment


def _check_length(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise BadExpression(f"An expression has at most {MOST_CHARACTERS} characters.")
