"""Histograms that cost a request next to nothing: values are kept as they come, and counted by the hundred.

Finding a value's bucket under a lock takes a microsecond and more, and a request through a gateway has eleven values.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry

KEPT_VALUES = 512
"""So many values of a series are kept before they are counted; reading the metrics counts them all."""


class Series:
    """The values of one set of labels.

    Args:
        bounds: Upper bounds of the buckets, ascending; one without a bound comes after them.
    """

    __slots__ = ("_bounds", "_counting", "_counts", "_sum", "_values")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._values: deque[float] = deque()
        self._counting = threading.Lock()

    def observe(self, value: float) -> None:
        """Take a value; from any thread."""
        self._values.append(value)
        if len(self._values) >= KEPT_VALUES:
            self.buckets()

    def buckets(self) -> tuple[list[int], float]:
        """Return how many values lie in each bucket or below, and their sum."""
        with self._counting:
            values = np.array([self._values.popleft() for _ in range(len(self._values))], dtype=np.float64)
            # A value that is a bound lies in that bound's bucket.
            self._counts += np.bincount(self._bounds.searchsorted(values), minlength=len(self._counts))
            self._sum += float(values.sum())
            return self._counts.cumsum().tolist(), self._sum


class Histogram:
    """A metric with one series for each set of labels, as prometheus_client collects it.

    Args:
        name, help_text, labels: As prometheus_client has them.
        buckets: Upper bounds, ascending, without the infinite one.
        registry: Where it is shown.
    """

    def __init__(self, name: str, help_text: str, labels: Sequence[str], *, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help_text
        self._label_names = labels
        self._bounds = buckets
        self._bound_names = [*map(floatToGoString, buckets), "+Inf"]
        self._series: dict[tuple[str, ...], Series] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """Return the series of these label values, in the order of the names."""
        return self._series.setdefault(values, Series(self._bounds))

    def remove(self, *values: str) -> None:
        """Drop the series of these label values. Raises KeyError if there is none."""
        del self._series[values]

    def clear(self) -> None:
        """Drop all series."""
        self._series.clear()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric as it stands."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._label_names)
        for labels, series in tuple(self._series.items()):
            counts, total = series.buckets()
            family.add_metric(labels, list(zip(self._bound_names, counts, strict=True)), total)
        yield family
