"""A receiver of OpenTelemetry traces over gRPC that keeps what it gets, so that tests can assert on parents and links.

async with Receiver() as receiver:
    …start something with OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint and call it…
    spans = await receiver.wait_for(lambda spans: spans.named("batch"), timeout_seconds=10)
    batch = spans.one("batch")
    assert spans.linked(batch) == spans.named("inference")
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, overload

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

Address = tuple[str, str]
"""Where a span is to be found: trace id and span id, both in lower-case hex."""


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span.

    Args:
        service: The resource's `service.name`.
        parent_id: The parent's span id. Empty for the root of a trace.
        kind: The number of `SpanKind`: 1 internal, 2 server, 3 client.
        status: The number of `StatusCode`: 0 unset, 1 ok, 2 error.
        links: The spans it is linked to, in the order in which they were recorded.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    attributes: Mapping[str, Any]
    links: tuple[Address, ...]

    @property
    def address(self) -> Address:
        """The span's own address, as links name it."""
        return (self.trace_id, self.span_id)


class Spans(Sequence[Span]):
    """Spans in the order in which they arrived, with the questions that a test asks of a tree."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = tuple(spans)
        self._by_address = {span.address: span for span in self._spans}

    @overload
    def __getitem__(self, place: int) -> Span: ...
    @overload
    def __getitem__(self, place: slice) -> Spans: ...
    def __getitem__(self, place: int | slice) -> Span | Spans:
        return Spans(self._spans[place]) if isinstance(place, slice) else self._spans[place]

    def __len__(self) -> int:
        return len(self._spans)

    def __repr__(self) -> str:
        return "\n".join(f"{span.trace_id[:8]} {span.parent_id or '-':>16} → {span.span_id} {span.service}: {span.name}" for span in self)

    def where(self, condition: Callable[[Span], bool]) -> Spans:
        """Return the spans for which `condition` holds."""
        return Spans(filter(condition, self._spans))

    def named(self, name: str, *, service: str | None = None) -> Spans:
        """Return the spans of this name, of any service or of one."""
        return self.where(lambda span: span.name == name and service in (None, span.service))

    def of_trace(self, trace_id: str) -> Spans:
        """Return the spans of one trace."""
        return self.where(lambda span: span.trace_id == trace_id)

    def one(self, name: str, *, service: str | None = None) -> Span:
        """Return the only span of this name. Raises LookupError, with all that arrived, if there is none or more than one."""
        found = self.named(name, service=service)
        if len(found) != 1:
            raise LookupError(f"{len(found)} spans are named {name!r}; there must be one. Arrived:\n{self!r}")
        return found[0]

    def parent(self, span: Span) -> Span | None:
        """Return the span's parent, or None if it is a root or its parent has not arrived."""
        return self._by_address.get((span.trace_id, span.parent_id))

    def children(self, span: Span) -> Spans:
        """Return the spans whose parent is this one."""
        return self.where(lambda other: (other.trace_id, other.parent_id) == span.address)

    def ancestors(self, span: Span) -> Spans:
        """Return the way up from the span's parent to the root, nearest first."""
        way: list[Span] = []
        above = self.parent(span)
        while above is not None:
            way.append(above)
            above = self.parent(above)
        return Spans(way)

    def linked(self, span: Span) -> Spans:
        """Return the spans that this one links to, as far as they arrived, in the order of the links."""
        return Spans(self._by_address[address] for address in span.links if address in self._by_address)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """A server of `opentelemetry.proto.collector.trace.v1.TraceService` on loopback. Use it with `async with`.

    Args:
        port: Where it listens. 0 takes a free one, which `endpoint` then tells.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._server: grpc.aio.Server | None = None
        self._spans: list[Span] = []
        self._arrived = asyncio.Condition()

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://{self.target}"

    @property
    def target(self) -> str:
        """The same as host and port."""
        return f"127.0.0.1:{self._port}"

    @property
    def spans(self) -> Spans:
        """What has arrived so far."""
        return Spans(self._spans)

    async def __aenter__(self) -> Self:
        server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # generated untyped
        self._port = server.add_insecure_port(self.target)
        await server.start()
        self._server = server
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)

    async def wait_for(self, predicate: Callable[[Spans], object], *, timeout_seconds: float) -> Spans:
        """Wait until `predicate` is true of all spans that have arrived, and return them.

        Raises AssertionError, with all that arrived, if that does not happen in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds), self._arrived:
                await self._arrived.wait_for(lambda: predicate(self.spans))
        except TimeoutError:
            raise AssertionError(f"What was waited for did not arrive within {timeout_seconds} s. Arrived:\n{self.spans!r}") from None
        return self.spans

    async def Export(  # noqa: N802 - the name in the contract
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Keep the spans of one export."""
        del context
        async with self._arrived:
            for resource in request.resource_spans:
                service = str(_attributes(resource.resource.attributes).get("service.name", ""))
                self._spans.extend(_span(service, span) for scope in resource.scope_spans for span in scope.spans)
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


def _span(service: str, message: SpanMessage) -> Span:
    return Span(
        service=service,
        name=message.name,
        trace_id=message.trace_id.hex(),
        span_id=message.span_id.hex(),
        parent_id=message.parent_span_id.hex(),
        kind=int(message.kind),
        start_ns=message.start_time_unix_nano,
        end_ns=message.end_time_unix_nano,
        status=int(message.status.code),
        attributes=_attributes(message.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in message.links),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
