"""Prometheus metrics built from the table of instruments, and their text."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from quadrate.telemetry.histogram import Histogram, Series
from quadrate.telemetry.instruments import INSTRUMENTS, Instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONTENT_TYPE = CONTENT_TYPE_LATEST
CALLER = "principal"
"""The label that callers' names stand in."""
MAX_CALLERS = 1_000
"""Callers who have series of their own. An issuer of tokens may name any number, and each would take memory here and in Prometheus."""
OTHERS = "(others)"
"""What those after them are counted under, together."""
_MOST_AT_HAND = 16_384
"""Series that are found without looking: a request asks for a dozen."""


class Metrics:
    """The metrics of one process.

    Args:
        component: Whose rows of the table it has: `router`, `embed` or `rerank`.

    Asking for a series costs next to nothing once it exists, so the hot path may ask each time.
    """

    def __init__(self, component: str, *, instruments: Iterable[Instrument] = INSTRUMENTS) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        rows = [row for row in instruments if row.component in (component, "all")]
        self._parents: dict[str, Any] = {row.name: _build(row, self.registry) for row in rows}
        self._labels = {row.name: row.labels for row in rows}
        self._children: dict[tuple[str, ...], Any] = {}
        self._place_of_caller = {row.name: row.labels.index(CALLER) for row in rows if CALLER in row.labels}
        self._callers: set[str] = set()
        self._at_hand = lru_cache(maxsize=_MOST_AT_HAND)(self._child)
        self.counter: Callable[..., Counter] = self._at_hand
        """Returns a series; label values stand in the order of the table. Raises KeyError for a name that is not there."""
        self.gauge: Callable[..., Gauge] = self._at_hand
        """As `counter`."""
        self.histogram: Callable[..., Series] = self._at_hand
        """As `counter`."""

    def forget(self, name: str) -> None:
        """Drop all series of a metric that has labels: those that are asked for again begin anew."""
        self._parents[name].clear()
        for key in [key for key in self._children if key[0] == name]:
            del self._children[key]
        self._at_hand.cache_clear()

    def drop(self, label: str, value: str) -> None:
        """Drop the series of all metrics that have this value of a label: what it names is gone. If it comes back they begin anew."""
        for name, place in [(name, labels.index(label)) for name, labels in self._labels.items() if label in labels]:
            for key in [key for key in self._children if key[0] == name and key[1 + place] == value]:
                self._parents[name].remove(*key[1:])
                del self._children[key]
        self._at_hand.cache_clear()

    def _child(self, name: str, *labels: str) -> Any:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            parent, kept = self._parents[name], self._bounded(name, labels)
            child = parent.labels(*kept) if labels or isinstance(parent, Histogram) else parent
            if not labels and isinstance(parent, Gauge):
                self.registry.register(parent)
            if kept is labels:
                self._children[key] = child
        return child

    def _bounded(self, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the labels, or others in their place where they name a caller too many."""
        place = self._place_of_caller.get(name)
        if place is None or labels[place] in self._callers:
            return labels
        if len(self._callers) < MAX_CALLERS:
            self._callers.add(labels[place])
            return labels
        return (*labels[:place], OTHERS, *labels[place + 1 :])

    def text(self) -> bytes:
        """Return everything in Prometheus' text format, of content type CONTENT_TYPE."""
        return generate_latest(self.registry)


def _build(row: Instrument, registry: CollectorRegistry) -> Any:
    if row.kind == "counter":
        return Counter(row.name, row.help, row.labels, registry=registry)
    if row.kind == "gauge":
        # A gauge without labels would say 0 of what is not there: it is shown once somebody states it.
        return Gauge(row.name, row.help, row.labels, registry=registry if row.labels else None)
    return Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=registry)
