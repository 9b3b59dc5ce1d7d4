"""The trace receiver gets what OpenTelemetry's own exporter sends, and answers questions about the tree."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link

from quadrate.testing.otlp import Receiver, Spans
from quadrate.testing.ports import free_port, free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that runs as long as the test."""
    async with Receiver() as running:
        yield running


def _send(endpoint: str) -> None:
    """Send a request with two stages, and a batch that is linked to the second."""
    provider = TracerProvider(resource=Resource({"service.name": "quadrate-test"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("request", attributes={"tokens": 7, "names": ["a", "b"]}):
        with tracer.start_as_current_span("tokenise"):
            pass
        with tracer.start_as_current_span("inference") as inference:
            pass
    tracer.start_span("batch", links=[Link(inference.get_span_context())]).end()
    provider.shutdown()


async def test_spans_arrive_with_parents_links_and_attributes(receiver: Receiver) -> None:
    """Parents, children, ancestors, links, service and attributes are those that were sent."""
    await asyncio.to_thread(_send, receiver.endpoint)
    spans = await receiver.wait_for(lambda spans: len(spans) == 4, timeout_seconds=10)
    request, inference, batch = spans.one("request"), spans.one("inference"), spans.one("batch", service="quadrate-test")
    assert request.attributes == {"tokens": 7, "names": ["a", "b"]}
    assert spans.parent(request) is None
    assert spans.parent(inference) == request
    assert {span.name for span in spans.children(request)} == {"tokenise", "inference"}
    assert list(spans.ancestors(inference)) == [request]
    assert list(spans.linked(batch)) == [inference]
    assert batch.trace_id != request.trace_id
    assert len(spans.of_trace(request.trace_id)) == 3
    assert request.start_ns <= inference.start_ns <= inference.end_ns <= request.end_ns


async def test_waiting_in_vain_tells_what_arrived(receiver: Receiver) -> None:
    """What did not come within the time is an assertion that lists what did come."""
    await asyncio.to_thread(_send, receiver.endpoint)
    with pytest.raises(AssertionError, match=r"(?s)within 0\.2 s.*quadrate-test: batch"):
        await receiver.wait_for(lambda spans: spans.named("respond"), timeout_seconds=0.2)


def test_one_refuses_none_and_many() -> None:
    """`one` is for a span that must be alone of its name."""
    with pytest.raises(LookupError, match="0 spans are named 'batch'"):
        Spans().one("batch")


def test_free_ports_are_different() -> None:
    """Ports that are asked for together differ."""
    assert len(set(free_ports(8))) == 8
    assert 0 < free_port() < 65536
