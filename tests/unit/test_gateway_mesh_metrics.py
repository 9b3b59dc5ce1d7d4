"""The pages of several gateways become one that Prometheus takes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gateway.mesh_metrics import merge
from quadrate.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = '# HELP a_total What a counts.\n# TYPE a_total counter\na_total{x="1 {"} 2.0\na_total 3.0\n# HELP b B.\n# TYPE b gauge\nb{} 1.0\n'


def test_each_series_gets_its_gateway() -> None:
    """Series of one metric stand together under one HELP and one TYPE."""
    assert merge({"g1:1": PAGE, "g2:1": PAGE}) == (
        "# HELP a_total What a counts.\n# TYPE a_total counter\n"
        'a_total{gateway="g1:1",x="1 {"} 2.0\na_total{gateway="g1:1"} 3.0\n'
        'a_total{gateway="g2:1",x="1 {"} 2.0\na_total{gateway="g2:1"} 3.0\n'
        '# HELP b B.\n# TYPE b gauge\nb{gateway="g1:1"} 1.0\nb{gateway="g2:1"} 1.0\n'
    )


def a_page() -> str:
    """Return a page of a gateway that did some work."""
    metrics = Metrics("router")
    metrics.counter("router_requests_total", "m", "minilm", 'na"me\\', "OK").inc()
    metrics.histogram("router_request_duration_seconds", "m", "minilm").observe(0.01)
    metrics.gauge("router_upstream_serving", "h:1").set(1)
    return metrics.text().decode()


def test_nothing_is_lost() -> None:
    """A reader of the format finds every series of every page."""
    page = a_page()
    merged = merge({"a:1": page, "b:2": page})
    count = sum(len(family.samples) for family in text_string_to_metric_families(page))
    found = [sample for family in text_string_to_metric_families(merged) for sample in family.samples]
    assert len(found) == 2 * count
    assert {sample.labels["gateway"] for sample in found} == {"a:1", "b:2"}


def test_promtool_takes_it(require_program: Callable[[str], str]) -> None:
    """`promtool check metrics` finds nothing wrong with the format."""
    page = a_page()
    done = subprocess.run(
        [require_program("promtool"), "check", "metrics"],
        input=merge({"a:1": page, "b:2": page}), text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert "error while linting" not in done.stderr
    assert done.returncode in (0, 3), done.stderr  # 3: opinions on names, such as those of the Python client itself
