"""Prometheus metrics built from the table of instruments, and their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from quadrate.telemetry.instruments import INSTRUMENTS, Instrument

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one process.

    Args:
        component: Whose rows of the table it has: `router`, `embed` or `rerank`.

    A lookup by name and labels is one dictionary access once a series exists, so the hot path may look up each time.
    """

    def __init__(self, component: str, *, instruments: Iterable[Instrument] = INSTRUMENTS) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._parents: dict[str, Any] = {row.name: _build(row, self.registry) for row in instruments if row.component in (component, "all")}
        self._children: dict[tuple[str, ...], Any] = {}

    def counter(self, name: str, *labels: str) -> Counter:
        """Return the series; label values stand in the order of the table. Raises KeyError for a name that is not there."""
        child: Counter = self._child(name, labels)
        return child

    def gauge(self, name: str, *labels: str) -> Gauge:
        """As `counter`."""
        child: Gauge = self._child(name, labels)
        return child

    def histogram(self, name: str, *labels: str) -> Histogram:
        """As `counter`."""
        child: Histogram = self._child(name, labels)
        return child

    def forget(self, name: str) -> None:
        """Drop all series of a metric that has labels: those that are asked for again begin anew."""
        self._parents[name].clear()
        for key in [key for key in self._children if key[0] == name]:
            del self._children[key]

    def _child(self, name: str, labels: tuple[str, ...]) -> Any:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            parent = self._parents[name]
            child = self._children[key] = parent.labels(*labels) if labels else parent
        return child

    def text(self) -> bytes:
        """Return everything in Prometheus' text format, of content type CONTENT_TYPE."""
        return generate_latest(self.registry)


def _build(row: Instrument, registry: CollectorRegistry) -> Any:
    if row.kind == "counter":
        return Counter(row.name, row.help, row.labels, registry=registry)
    if row.kind == "gauge":
        return Gauge(row.name, row.help, row.labels, registry=registry)
    return Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=registry)
