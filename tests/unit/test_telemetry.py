"""Metrics, logs and traces of one process."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from quadrate.errors import ConfigError
from quadrate.telemetry import Metrics, Traces
from quadrate.telemetry.instruments import INSTRUMENTS
from quadrate.telemetry.logs import Log
from quadrate.telemetry.traces import LAST_EXPORT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where finished spans are kept."""
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Traces:
    """Traces that send everything to `exporter`."""
    return Traces("quadrate-test", SimpleSpanProcessor(exporter))


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Undo what `Log.configure` does to the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return a log's lines as objects."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_names_of_metrics_are_unique_and_carry_units() -> None:
    """Counters end in _total, histograms in their unit."""
    names = [row.name for row in INSTRUMENTS]
    assert len(set(names)) == len(names)
    assert all(row.name.endswith("_total") for row in INSTRUMENTS if row.kind == "counter")
    units = ("_seconds", "_bytes", "_tokens", "_texts", "_ratio")
    assert all(row.name.endswith(units) for row in INSTRUMENTS if row.kind == "histogram")


def test_a_metric_that_is_not_in_the_table_does_not_exist() -> None:
    """A name outside the table is a mistake in the code, found at once; so is one of another process."""
    metrics = Metrics("router")
    with pytest.raises(KeyError):
        metrics.counter("router_request_total")
    with pytest.raises(KeyError):
        metrics.counter("embed_tokens_total", "minilm")


def test_metrics_are_printed_with_their_labels() -> None:
    """Label values stand in the order of the table."""
    metrics = Metrics("router")
    metrics.counter("router_tokens_total", "minilm", "anonymous").inc(7)
    assert b'router_tokens_total{model="minilm",principal="anonymous"} 7.0' in metrics.text()


def test_series_of_what_is_gone_are_dropped_from_every_metric() -> None:
    """Those of others stay, and what comes back begins anew."""
    metrics = Metrics("router")
    for target in ("gone:1", "stays:1"):
        metrics.counter("router_upstream_errors_total", target, "UNAVAILABLE").inc()
        metrics.gauge("router_upstream_serving", target).set(1)
        metrics.histogram("router_upstream_latency_seconds", target, "m").observe(0.1)
    metrics.drop("upstream", "gone:1")
    text = metrics.text().decode()
    assert "gone:1" not in text
    for name in ("router_upstream_errors_total", "router_upstream_serving", "router_upstream_latency_seconds_count"):
        assert re.search(rf'^{name}{{.*upstream="stays:1".*}} 1.0$', text, re.MULTILINE)
    metrics.counter("router_upstream_errors_total", "gone:1", "UNAVAILABLE").inc()
    assert 'router_upstream_errors_total{status="UNAVAILABLE",upstream="gone:1"} 1.0' in metrics.text().decode()


@pytest.mark.usefixtures("restored_logging")
def test_callers_too_many_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer of tokens may name any number of them. Those who have series keep them, in every metric."""
    monkeypatch.setattr("quadrate.telemetry.metrics.MAX_CALLERS", 2)
    metrics = Metrics("router")
    for caller in ("a", "b", "c", "d", "a", "c"):
        metrics.counter("router_tokens_total", "m", caller).inc()
        metrics.counter("router_requests_total", "method", "m", caller, "OK").inc()
    text = metrics.text().decode()
    for caller, count in (("a", 2), ("b", 1), ("(others)", 3)):
        assert f'router_tokens_total{{model="m",principal="{caller}"}} {count}.0' in text
        assert f'router_requests_total{{method="method",model="m",principal="{caller}",status="OK"}} {count}.0' in text
    assert 'principal="c"' not in text


def test_a_log_line_is_json_with_level_component_and_ids(tmp_path: Path) -> None:
    """Fields stand where dashboards look for them; below the level nothing is written."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        log = Log()
        log.configure("gateway", level="info", descriptor=file.fileno())
        log.debug("unseen")
        log.write(20, "request", {"tokens": 3}, {"trace_id": "t", "span_id": "s", "request_id": "r"})
        logging.getLogger("library").warning("of %d", 7)
    first, second = lines(path)
    assert first["timestamp"].endswith("Z")
    assert {**first, "timestamp": ""} == {
        "timestamp": "",
        "level": "INFO",
        "component": "gateway",
        "message": "request",
        "metadata": {"tokens": 3},
        "trace_id": "t",
        "span_id": "s",
        "request_id": "r",
    }
    assert (second["level"], second["message"], second["metadata"]) == ("WARN", "of 7", {"logger": "library"})


@pytest.mark.usefixtures("restored_logging")
def test_an_unknown_level_is_refused_with_those_there_are() -> None:
    """The error names them."""
    with pytest.raises(ConfigError, match="TRACE, DEBUG, INFO, WARN, ERROR, FATAL"):
        Log().configure("gateway", level="loud")


@pytest.mark.usefixtures("restored_logging")
def test_a_log_whose_reader_has_gone_fails_no_request() -> None:
    """Writing to a closed pipe is forgiven once and for all."""
    reader, writer = os.pipe()
    os.close(reader)
    log = Log()
    log.configure("gateway", descriptor=writer)
    log.info("first")
    log.info("second")
    os.close(writer)


def test_a_sampled_request_becomes_a_tree_under_its_caller(traces: Traces, exporter: InMemorySpanExporter) -> None:
    """The server's span is the caller's child, stages are its children, an upstream call carries its stage's id."""
    trace = traces.begin({"traceparent": PARENT, "baggage": "tenant=a"})
    with trace.stage("tokenise"):
        pass
    with trace.stage("upstream", server="worker:1/v1") as stage:
        headers = dict(stage.headers())
    trace.end("quadrate.v1.EmbedService/Embed", "OK", {"x": 1})
    tokenise, upstream, server = exporter.get_finished_spans()
    assert server.parent is not None
    assert f"{server.context.trace_id:032x}" == PARENT[3:35]
    assert f"{server.parent.span_id:016x}" == PARENT[36:52]
    assert [span.parent.span_id for span in (tokenise, upstream) if span.parent] == [server.context.span_id] * 2
    assert headers["traceparent"] == f"00-{PARENT[3:35]}-{upstream.context.span_id:016x}-01"
    assert headers["baggage"] == "tenant=a"
    assert (tokenise.kind, tokenise.attributes) == (SpanKind.INTERNAL, {})
    assert (upstream.kind, upstream.attributes) == (SpanKind.CLIENT, {"server.address": "worker", "server.port": 1})
    assert set(trace.stages) == {"tokenise", "upstream"}


def test_an_unsampled_request_sends_nothing_and_keeps_its_times(traces: Traces, exporter: InMemorySpanExporter) -> None:
    """The caller's decision holds; stages are still timed, and the context still travels."""
    trace = traces.begin({"traceparent": PARENT[:-1] + "0"})
    with trace.stage("route"):
        pass
    trace.end("m", "OK", {})
    assert exporter.get_finished_spans() == ()
    assert "route" in trace.stages
    trace.note("route", 3_000_000_499)
    trace.note("route", 1_000)
    assert trace.stages == {"route": 3.0}
    assert dict(trace.headers())["traceparent"].startswith(PARENT[:35])
    assert dict(trace.headers())["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "header",
    ["", "00", PARENT.upper(), "ff" + PARENT[2:], f"00-{'0' * 32}-{PARENT[36:]}", PARENT + "-more"],
    ids=["none", "short", "upper-case", "version-ff", "zero-trace", "trailing"],
)
def test_a_malformed_traceparent_starts_a_new_trace(traces: Traces, header: str) -> None:
    """W3C Trace Context, section 3.2: what is not well formed is ignored."""
    assert traces.begin({"traceparent": header}).parent is None


def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process stops within seconds, whatever becomes of its last spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    traces = Traces.from_environment("quadrate")
    traces.begin({}).end("Embed", "OK", {})
    started = time.monotonic()
    traces.shutdown()
    traces.shutdown()
    assert time.monotonic() - started < LAST_EXPORT_SECONDS + 1.5


@pytest.mark.parametrize("baggage", ["tenant=é", "tenant=a\n", "a=\x00"])
def test_baggage_that_no_header_carries_goes_no_further(traces: Traces, baggage: str) -> None:
    """A call that it went along with would fail."""
    assert "baggage" not in dict(traces.begin({"baggage": baggage}).headers())


def test_a_failed_stage_and_a_fault_of_ours_are_marked(traces: Traces, exporter: InMemorySpanExporter) -> None:
    """A refusal is no error of the server's span, and what was cancelled none of a stage's; INTERNAL is."""
    trace = traces.begin({})
    with pytest.raises(asyncio.CancelledError), trace.stage("queue"):
        raise asyncio.CancelledError
    with pytest.raises(RuntimeError), trace.stage("route", "[::1]:7997"):
        raise RuntimeError
    trace.end("m", "INVALID_ARGUMENT", {})
    traces.begin({}).end("m", "INTERNAL", {})
    cancelled, route, refused, failed = exporter.get_finished_spans()
    assert [span.status.is_ok for span in (cancelled, route, refused, failed)] == [True, False, True, False]
    assert dict(route.attributes or {}) == {"server.address": "::1", "server.port": 7997, "error.type": "RuntimeError"}
    codes = [(span.attributes or {}).get("rpc.response.status_code") for span in (refused, failed)]
    assert codes == ["INVALID_ARGUMENT", "INTERNAL"]


def test_a_batch_is_linked_to_each_sampled_request(traces: Traces, exporter: InMemorySpanExporter) -> None:
    """Work for several requests is a span of its own with a link to each that is sampled."""
    first, second = traces.begin({}), traces.begin({})
    third = traces.begin({"traceparent": PARENT[:-1] + "0"})
    traces.batch("batch", [first, second, third], 1, 2, {"tokens": 8})
    (span,) = exporter.get_finished_spans()
    assert {link.context.span_id for link in span.links} == {first.span_id, second.span_id}
    assert traces.batch("batch", [third], 1, 2) is None


def test_without_an_endpoint_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint, no exporter, no cost; the caller's context still travels on."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    traces = Traces.from_environment("quadrate-test")
    trace = traces.begin({"traceparent": PARENT})
    assert not traces.on
    assert not trace.sampled
    assert dict(trace.headers())["traceparent"].endswith("-01")


@pytest.mark.parametrize(("ratio", "expected"), [("0", 0), ("1", 200)])
def test_a_root_is_sampled_by_ratio(monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter, ratio: str, expected: int) -> None:
    """OTEL_TRACES_SAMPLER_ARG is the share of traces that start here and are kept."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    traces = Traces("quadrate-test", SimpleSpanProcessor(exporter))
    assert sum(traces.begin({}).sampled for _ in range(200)) == expected


@pytest.mark.parametrize(("name", "value"), [("OTEL_TRACES_SAMPLER", "jaeger_remote"), ("OTEL_TRACES_SAMPLER_ARG", "2")])
def test_a_sampler_that_is_not_served_is_refused(
    monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter, name: str, value: str
) -> None:
    """The error names the variable and its value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: '{value}'"):
        Traces("quadrate-test", SimpleSpanProcessor(exporter))


def test_a_gauge_without_labels_is_absent_until_it_is_stated() -> None:
    """What is not configured is not said to be 0: an alert on 0 would fire for everybody who does not have it."""
    metrics = Metrics("router")
    assert b"router_redis_up" not in metrics.text()
    metrics.gauge("router_redis_up").set(0)
    assert b"router_redis_up 0.0" in metrics.text()
