"""What this process counts, in Prometheus' text format. Counting never touches the database; what is of the whole
installation is read by `manager.figures`."""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """One manager process's. `observe` is the processor's observer, `request` is told of every HTTP answer."""

    CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._actions = Histogram(
            "moorage_action_seconds",
            "Time that actions took, by action and outcome (ok, or an error's code).",
            ["action", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(
            "moorage_http_requests",
            "Answered HTTP requests, by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._request_seconds = Counter(
            "moorage_http_request_seconds",
            "Time that these requests took, streams included, by route and method.",
            ["route", "method"],
            registry=self.registry,
        )
        #: the children, found by a plain dictionary: a third of the time of `labels()`
        self._by_action: dict[tuple[str, str], Histogram] = {}
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Counter]] = {}

    def observe(self, action: str, outcome: str, seconds: float) -> None:
        found = self._by_action.get((action, outcome))
        if found is None:
            found = self._by_action[action, outcome] = self._actions.labels(action, outcome)
        found.observe(seconds)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        found = self._by_request.get((route, known, status))
        if found is None:
            found = (
                self._requests.labels(route, known, str(status)),
                self._request_seconds.labels(route, known),
            )
            self._by_request[route, known, status] = found
        found[0].inc()
        found[1].inc(seconds)

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        """One more figure, such as open connections."""
        return Gauge(name, help_text, labels, registry=self.registry)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
