"""The part of PromQL that our alert rules use, over one scrape: selectors with labels, max and min (by), division, comparison."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<word>[a-zA-Z_:][\w:]*)|(?P<text>\"[^\"]*\")|(?P<sign>==|!=|>=|<=|=~|[><=(){},/]))"
)
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip


def scraped(text: str, **labels: str) -> dict[str, Vector]:
    """What a scrape makes of an exposition: every sample by name, with the labels of the target."""
    found: dict[str, Vector] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = frozenset({**sample.labels, **labels}.items())
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def evaluate(expression: str, samples: Mapping[str, Vector]) -> Vector:
    """The series for which it holds: an alert fires for each."""
    parser = _Parser(expression, samples)
    result = parser.comparison()
    if parser.left:
        raise ValueError(f"'{expression}' goes on with {parser.left[0]}")
    return result


def names_in(expression: str) -> set[str]:
    """Of the metrics that it is made of."""
    words = {
        match["word"] for match in _TOKEN.finditer(re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)) if match["word"]
    }
    return words - {"max", "min", "by"}


class _Parser:
    def __init__(self, text: str, samples: Mapping[str, Vector]) -> None:
        self._samples = samples
        self.left: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"'{text}' is not understood at {at}")
            self.left.append(match[0].strip())
            at = match.end()

    def comparison(self) -> Vector:
        value = self.quotient()
        if self.left and self.left[0] in _COMPARE:
            holds, bound = _COMPARE[self._take()], float(self._take())
            return {labels: one for labels, one in value.items() if holds(one, bound)}
        return value

    def quotient(self) -> Vector:
        value = self.term()
        while self.left and self.left[0] == "/":
            self._take()
            below = self.term()
            value = {
                labels: one / below[labels] if below[labels] else math.nan
                for labels, one in value.items()
                if labels in below
            }
        return value

    def term(self) -> Vector:
        word = self._take()
        if word in ("max", "min"):
            kept: set[str] = set()
            if self.left[0] == "by":
                self._take()
                kept = set(self._listed())
            self._expect("(")
            inner = self.comparison()
            self._expect(")")
            groups: dict[Labels, list[float]] = {}
            for labels, one in inner.items():
                groups.setdefault(frozenset(pair for pair in labels if pair[0] in kept), []).append(one)
            return {labels: (max if word == "max" else min)(values) for labels, values in groups.items()}
        wanted = {}
        if self.left and self.left[0] == "{":
            self._take()
            while self.left[0] != "}":
                name = self._take()
                self._expect("=")
                wanted[name] = self._take().strip('"')
                if self.left[0] == ",":
                    self._take()
            self._take()
        found = self._samples.get(word, {})
        return {labels: one for labels, one in found.items() if wanted.items() <= dict(labels).items()}

    def _listed(self) -> list[str]:
        self._expect("(")
        names = []
        while self.left[0] != ")":
            if self.left[0] != ",":
                names.append(self.left[0])
            self._take()
        self._take()
        return names

    def _take(self) -> str:
        return self.left.pop(0)

    def _expect(self, sign: str) -> None:
        if self._take() != sign:
            raise ValueError(f"expected {sign}")
