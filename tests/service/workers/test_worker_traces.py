"""The spans of a worker: under its caller's, with the batch linked to its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc.aio
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embed_worker.service import services
from quadrate.config.worker import EmbedSettings
from quadrate.telemetry import Metrics, Telemetry, Traces
from quadrate.v1 import embed_pb2, embed_pb2_grpc, options_pb2
from quadrate.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_shows_its_stages_and_its_batch(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampled request has spans for tokenising, queue, inference and answer under its caller's; the batch span links to it and back."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    spans = InMemorySpanExporter()
    telemetry = Telemetry("embed", Metrics("embed"), Traces("test", SimpleSpanProcessor(spans)))
    settings = EmbedSettings(model_name=("tiny",), port=0, http_port=0, threads=2).model_copy(update={"models_path": catalogue})
    async with Worker(settings, task="embed", services=services, telemetry=telemetry) as worker:
        await worker.loaded.wait()
        spans.clear()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.server.port}") as channel:
            request = embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text="hello")])
            stub: Any = embed_pb2_grpc.EmbedServiceStub(channel)
            await stub.Embed(request, metadata=(("traceparent", PARENT),))
    found = {span.name: span for span in spans.get_finished_spans()}
    server = found["quadrate.v1.EmbedService/Embed"]
    assert f"{server.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    for name in ("tokenise", "queue", "inference", "respond"):
        parent = found[name].parent
        assert parent is not None
        assert parent.span_id == server.context.span_id, name
        assert server.start_time <= found[name].start_time <= found[name].end_time <= server.end_time, name
    batch = found["batch"]
    assert [link.context.span_id for link in batch.links] == [server.context.span_id]
    assert [link.context.span_id for link in found["inference"].links] == [batch.context.span_id]
    assert dict(batch.attributes or {}) == {
        "quadrate.model": "tiny",
        "quadrate.texts": 1,
        "quadrate.tokens": 3,
        "quadrate.wide": True,
        "quadrate.long": False,
    }
