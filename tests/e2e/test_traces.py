"""One trace from the edge to the batch: parents and links, as a real OTLP receiver gets them."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio

from quadrate.testing.otlp import Receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quadrate.testing.otlp import Span, Spans
    from tests.e2e.conftest import Mesh, StartMesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARRIVAL_SECONDS = 30
"""Envoy sends its spans every 5 seconds."""
GATEWAY_STAGES = {"auth", "parse", "validate", "tokenise", "quota", "route", "respond"}
WORKER_STAGES = {"tokenise", "queue", "inference", "respond"}
CALLERS = 8
WORD = "a-word-of-a-caller"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    """Where all processes send their spans."""
    async with Receiver() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def traced(receiver: Receiver, start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """A mesh with an OTLP endpoint. It is started in a thread: the receiver must answer meanwhile."""
    starting = start_mesh(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"})
    mesh = await asyncio.to_thread(starting.__enter__)
    yield mesh
    await asyncio.to_thread(starting.__exit__, None, None, None)


class Caller:
    """Someone whose own span is the beginning of a trace."""

    def __init__(self) -> None:
        self.trace_id = f"{random.getrandbits(128) | 1:032x}"
        self.span_id = f"{random.getrandbits(64) | 1:016x}"
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-01"}


def one(spans: Spans, name: str, service: str) -> Span:
    """Return the only span of this name and service."""
    return spans.one(name, service=f"quadrate-{service}")


@pytest.mark.parametrize(
    ("path", "body", "rpc", "worker_rpc", "worker"),
    [
        pytest.param(
            "/v1/embeddings",
            {"model": "minilm", "input": ["hello", "you"]},
            "quadrate.openai.v1.OpenAiService/CreateEmbedding",
            "quadrate.v1.EmbedService/Embed",
            "embed-worker",
            id="OpenAI",
        ),
        pytest.param(
            "/v2/rerank",
            {"model": "minilm-rerank", "query": "a", "documents": ["b", "c"]},
            "quadrate.cohere.v1.CohereService/RerankV2",
            "quadrate.v1.RerankService/Rerank",
            "rerank-worker",
            id="rerank",
        ),
        pytest.param(
            "/v2/embed",
            {"model": "minilm", "texts": ["hello there"], "input_type": "search_query", "embedding_types": ["float"]},
            "quadrate.cohere.v1.CohereService/EmbedV2",
            "quadrate.v1.EmbedService/Embed",
            "embed-worker",
            id="Cohere's embed",
        ),
    ],
)
async def test_a_request_is_one_trace_from_its_caller_to_the_batch(
    path: str, body: dict[str, object], rpc: str, worker_rpc: str, worker: str, traced: Mesh, receiver: Receiver
) -> None:
    """Caller → edge → edge to gateway → gateway → route → worker, stages under each, and the batch linked to the worker's span."""
    caller = Caller()
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as client:
        assert (await client.post(path, json=body, headers=caller.headers)).status_code == 200
    arrived = await receiver.wait_for(
        lambda spans: {"edge", "edge to gateway", rpc, worker_rpc} <= {span.name for span in spans.of_trace(caller.trace_id)},
        timeout_seconds=ARRIVAL_SECONDS,
    )
    spans = arrived.of_trace(caller.trace_id)
    edge, upstream, gateway = one(spans, "edge", "edge"), one(spans, "edge to gateway", "edge"), one(spans, rpc, "gateway")
    served = one(spans, worker_rpc, worker)
    assert edge.parent_id == caller.span_id
    assert upstream.parent_id == edge.span_id
    assert gateway.parent_id == upstream.span_id
    assert {span.name for span in spans.children(gateway)} == GATEWAY_STAGES
    assert served.parent_id == one(spans, "route", "gateway").span_id
    assert {span.name for span in spans.children(served)} == WORKER_STAGES
    assert (gateway.kind, served.kind, gateway.status, served.status) == (2, 2, 0, 0)
    check_batches(arrived, [served])
    assert gateway.attributes["gen_ai.request.model"] == body["model"]
    assert gateway.attributes["gen_ai.operation.name"] == ("rerank" if "rerank" in path else "embeddings")
    assert not any("hello" in str(span.attributes) for span in spans)


def check_batches(arrived: Spans, served: list[Span]) -> Spans:
    """Assert that batches link to these requests' spans and these alone, stand in traces of their own, and are linked back to."""
    addresses = {span.address for span in served}
    batches = arrived.named("batch").where(lambda span: bool(addresses & set(span.links)))
    assert {address for batch in batches for address in batch.links} == addresses
    assert not {batch.trace_id for batch in batches} & {span.trace_id for span in served}
    inferences = [one(arrived.children(span), "inference", span.service.removeprefix("quadrate-")) for span in served]
    assert {address for inference in inferences for address in inference.links} == {batch.address for batch in batches}
    return batches


async def test_one_batch_is_linked_to_all_its_requests(traced: Mesh, receiver: Receiver) -> None:
    """Requests that ran together share a batch span, which belongs to none of their traces."""
    callers = [Caller() for _ in range(CALLERS)]
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as client:
        bodies = [{"model": "minilm", "input": [f"some words that make a text of {caller.trace_id}"] * 4} for caller in callers]
        calls = (client.post("/v1/embeddings", json=body, headers=caller.headers) for body, caller in zip(bodies, callers, strict=True))
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    traces = {caller.trace_id for caller in callers}

    def served(spans: Spans) -> list[Span]:
        return list(spans.named("quadrate.v1.EmbedService/Embed").where(lambda span: span.trace_id in traces))

    arrived = await receiver.wait_for(lambda spans: len(served(spans)) == CALLERS, timeout_seconds=ARRIVAL_SECONDS)
    batches = check_batches(arrived, served(arrived))
    assert max(len(batch.links) for batch in batches) > 1


def of_request(spans: Spans, request: str) -> Spans:
    """Return the spans of the trace in which the edge served a request."""
    edges = spans.where(lambda span: span.attributes.get("guid:x-request-id") == request)
    return spans.of_trace(edges[0].trace_id) if edges else spans[:0]


async def test_a_request_without_a_trace_begins_one(traced: Mesh, receiver: Receiver) -> None:
    """Without a traceparent the edge begins the trace; a refused request is told as such and is no error of the server."""
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as client:
        answer = await client.post("/quadrate/v1/embed", json={"model": WORD, "inputs": [{"text": "hello"}]})
    assert WORD in answer.text
    request = answer.headers["x-request-id"]
    rpc = "quadrate.v1.EmbedService/Embed"
    arrived = await receiver.wait_for(lambda spans: of_request(spans, request).named(rpc), timeout_seconds=ARRIVAL_SECONDS)
    spans = of_request(arrived, request)
    assert one(spans, "edge", "edge").parent_id == ""
    gateway = one(spans, rpc, "gateway")
    assert gateway.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert gateway.attributes["quadrate.reason"] == "MODEL_NOT_FOUND"
    assert gateway.status == 0
    assert not any(WORD in str(span) for span in spans if span.service != "quadrate-edge")


async def test_a_known_answer_says_so(traced: Mesh, receiver: Receiver) -> None:
    """What was asked before shows no way to a worker, but why there is none."""
    body = {"model": "minilm", "input": "asked twice"}
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as client:
        requests = [(await client.post("/v1/embeddings", json=body)).headers["x-request-id"] for _ in range(2)]
    rpc = "quadrate.openai.v1.OpenAiService/CreateEmbedding"
    arrived = await receiver.wait_for(
        lambda spans: all(of_request(spans, request).named(rpc) for request in requests), timeout_seconds=ARRIVAL_SECONDS
    )
    computed, known = (one(of_request(arrived, request), rpc, "gateway").attributes for request in requests)
    assert (computed.get("quadrate.cache"), known.get("quadrate.cache")) == (None, "hit")
    assert ("quadrate.upstream" in computed, "quadrate.upstream" in known) == (True, False)
    assert (computed["quadrate.inputs"], computed["quadrate.principal"]) == (1, "anonymous")
    assert not of_request(arrived, requests[1]).named("route")


async def test_probes_are_not_traced(traced: Mesh, receiver: Receiver) -> None:
    """Health and metrics leave no spans, or they would be most of all."""
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as client:
        for path in ("/health/ready", "/health/live", "/metrics"):
            assert (await client.get(path)).status_code == 200
        last = await client.get("/v1/models")
    request = last.headers["x-request-id"]
    arrived = await receiver.wait_for(lambda spans: of_request(spans, request), timeout_seconds=ARRIVAL_SECONDS)
    assert not [span for span in arrived if "/health" in str(span.attributes) or "/metrics" in str(span.attributes)]


async def test_what_gateways_ask_for_themselves_is_not_traced(traced: Mesh, receiver: Receiver) -> None:
    """They ask each worker for its models every second. Those spans would be most of all, and belong to no request."""
    arrived = await receiver.wait_for(lambda spans: spans.named("load model"), timeout_seconds=ARRIVAL_SECONDS)
    assert not arrived.where(lambda span: span.name.startswith("quadrate.v1.ModelService/"))
    asked = [line for line in traced.process_logs().splitlines() if "quadrate.v1.ModelService/" in line]
    assert not asked
