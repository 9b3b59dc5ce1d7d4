"""Our histogram tells what prometheus_client's own does."""

from __future__ import annotations

import threading

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from quadrate.telemetry.histogram import KEPT_VALUES, Histogram

BOUNDS = (0.1, 0.25, 1.0, 10.0)


def text(registry: CollectorRegistry) -> list[str]:
    """Return the lines that Prometheus reads, without the time at which a series began."""
    return [line for line in prometheus_client.generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.sampled_from([*BOUNDS, 0.0, 0.1000001, 0.5, 11.0, 1e9]), max_size=3 * KEPT_VALUES))
def test_values_are_counted_as_the_library_counts_them(values: list[float]) -> None:
    """A bound's own value lies in its bucket, what is over all bounds in the last, and the text is the same to a letter."""
    ours, theirs = CollectorRegistry(auto_describe=True), CollectorRegistry(auto_describe=True)
    own = Histogram("h", "A sentence.", ("way",), buckets=BOUNDS, registry=ours).labels("rest")
    other = prometheus_client.Histogram("h", "A sentence.", ("way",), buckets=BOUNDS, registry=theirs).labels("rest")
    for value in values:
        own.observe(value)
        other.observe(value)
    assert [line for line in text(ours) if "_sum" not in line] == [line for line in text(theirs) if "_sum" not in line]
    assert ours.get_sample_value("h_sum", {"way": "rest"}) == pytest.approx(theirs.get_sample_value("h_sum", {"way": "rest"}))


def test_a_histogram_without_labels_is_shown_before_it_has_a_value() -> None:
    """As the library has it: rates can be taken from the first value on."""
    registry = CollectorRegistry(auto_describe=True)
    Histogram("h", "A sentence.", (), buckets=BOUNDS, registry=registry)
    assert registry.get_sample_value("h_count") == 0


def test_no_value_is_lost_between_threads() -> None:
    """Some observe while others read."""
    registry = CollectorRegistry(auto_describe=True)
    series = Histogram("h", "A sentence.", (), buckets=BOUNDS, registry=registry).labels()

    def observe() -> None:
        for _ in range(20_000):
            series.observe(0.5)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        series.buckets()
    assert series.buckets()[0][-1] == 80_000


def test_series_that_are_dropped_begin_anew() -> None:
    """What was asked for again has no values of before."""
    registry = CollectorRegistry(auto_describe=True)
    histogram = Histogram("h", "A sentence.", ("way",), buckets=BOUNDS, registry=registry)
    histogram.labels("rest").observe(1.0)
    histogram.clear()
    assert registry.get_sample_value("h_count", {"way": "rest"}) is None
    assert histogram.labels("rest").buckets()[0][-1] == 0
