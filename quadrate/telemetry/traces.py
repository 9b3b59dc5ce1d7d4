"""Traces: W3C context in, stages of a request, spans out over OTLP.

A request's stages are noted as plain numbers and become OpenTelemetry spans only when the trace is sampled and somewhere to send it is
configured (OTEL_EXPORTER_OTLP_ENDPOINT). A request that is not sampled costs a few microseconds; one that is pays for what it sends.
Span and trace ids are made when a request starts, so that an upstream call can carry them before the span that they name is finished.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from quadrate import __version__
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HEADER = re.compile(r"[\x20-\x7e]*")
"""What gRPC sends in a header; the call fails for anything else."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_SCOPE = InstrumentationScope("quadrate", __version__)
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses that make a server's span an error (OpenTelemetry semantic conventions for gRPC): a refusal is none."""

LAST_EXPORT_SECONDS = 2.0
"""How long the last spans may take to leave: a collector that is away must not hold up a process that is to stop."""

Attributes = dict[str, Any]


class Traces:
    """Makes a `Trace` for each request and sends finished spans.

    Args:
        service: `service.name`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
        processor: Where finished spans go. None: nowhere, and nothing is sampled.
        exporter: What the processor sends by, if it may take long and can be told to give up.
    """

    def __init__(self, service: str, processor: SpanProcessor | None = None, exporter: SpanExporter | None = None) -> None:
        self._processor = processor
        self._exporter = exporter
        self._resource = Resource.create({"service.version": __version__, **_service(service)})
        self._sample_root = _sampler() if processor else lambda _trace_id: False

    @classmethod
    def from_environment(cls, service: str) -> Traces:
        """Send over OTLP/gRPC if OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set; otherwise be silent."""
        endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls(service)
        # Imported here: a process that sends nothing need not hold the exporter in memory.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter = OTLPSpanExporter(insecure=endpoint.startswith("http://"))
        return cls(service, BatchSpanProcessor(exporter), exporter)

    @property
    def on(self) -> bool:
        """Whether spans are sent at all."""
        return self._processor is not None

    def begin(self, metadata: Mapping[str, str]) -> Trace:
        """Start the trace of a request that arrived with these headers (lower-case names)."""
        parent = _parse(metadata.get("traceparent", ""), metadata.get("tracestate", ""))
        baggage = metadata.get("baggage", "")
        if baggage and not _HEADER.fullmatch(baggage):
            baggage = ""
        if parent is None:
            trace_id = random.getrandbits(128) or 1
            return Trace(self, None, trace_id, sampled=self._sample_root(trace_id), baggage=baggage)
        sampled = self.on and parent.trace_flags.sampled
        return Trace(self, parent, parent.trace_id, sampled=sampled, baggage=baggage)

    def batch(
        self, name: str, links: Iterable[Trace], start_ns: int, end_ns: int, attributes: Attributes | None = None
    ) -> SpanContext | None:
        """Send the span of work done for several requests together: a trace of its own, linked to each sampled request's span.

        Returns its context, for links the other way, or None if no request of it is sampled.
        """
        contexts = [trace.context for trace in links if trace.sampled]
        if not contexts:
            return None
        context = SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False, trace_flags=_SAMPLED)
        self.send(name, context, None, SpanKind.INTERNAL, start_ns, end_ns, attributes, links=tuple(Link(context) for context in contexts))
        return context

    def single(self, name: str, start_ns: int, end_ns: int, attributes: Attributes | None = None) -> None:
        """Send the span of work that no request asked for, for example loading a model."""
        if self.on:
            context = SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False, trace_flags=_SAMPLED)
            self.send(name, context, None, SpanKind.INTERNAL, start_ns, end_ns, attributes)

    def send(  # noqa: PLR0913 - a span has so many parts
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start_ns: int,
        end_ns: int,
        attributes: Attributes | None = None,
        *,
        links: tuple[Link, ...] = (),
        error: str | None = None,
    ) -> None:
        """Hand a finished span to the processor. Times are Unix nanoseconds."""
        if self._processor is None:
            return
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes or {},
                links=links,
                kind=kind,
                instrumentation_scope=_SCOPE,
                status=Status(StatusCode.ERROR, error) if error else Status(),
                start_time=start_ns,
                end_time=end_ns,
            )
        )

    def shutdown(self) -> None:
        """Send what is left and stop, after LAST_EXPORT_SECONDS at the latest. Doing so twice does nothing."""
        processor, self._processor = self._processor, None
        if processor is None:
            return
        giving_up = threading.Timer(LAST_EXPORT_SECONDS, self._exporter.shutdown) if self._exporter else None
        if giving_up:
            giving_up.start()
        processor.shutdown()
        if giving_up:
            giving_up.cancel()


class Trace:
    """One request's part of a trace in this process: the server's span and the stages under it.

    `stages` holds the seconds of each stage by name, sampled or not; the canonical log line and the metrics read it.
    """

    __slots__ = ("_context", "_traces", "baggage", "ids", "parent", "sampled", "span_id", "stages", "started_ns", "trace_id")

    def __init__(self, traces: Traces, parent: SpanContext | None, trace_id: int, *, sampled: bool, baggage: str = "") -> None:
        self._traces = traces
        self.parent = parent
        self.sampled = sampled
        self.trace_id = trace_id
        self.span_id = random.getrandbits(64) or 1
        self.ids = {"trace_id": f"{trace_id:032x}", "span_id": f"{self.span_id:016x}"}
        """In hex, for logs."""
        self._context: SpanContext | None = None
        self.baggage = baggage
        self.stages: dict[str, float] = {}
        self.started_ns = time.time_ns()

    @property
    def context(self) -> SpanContext:
        """The server's span. Made when it is first asked for: most requests are not sampled and never ask."""
        if self._context is None:
            parent = self.parent
            flags = _SAMPLED if self.sampled or (parent is not None and parent.trace_flags.sampled) else _UNSAMPLED
            state = parent.trace_state if parent is not None else None
            self._context = SpanContext(self.trace_id, self.span_id, is_remote=False, trace_flags=flags, trace_state=state)
        return self._context

    def stage(self, name: str, server: str = "") -> Stage:
        """Time a part of the request: `with trace.stage("tokenise"): …`. One with a `server` is a call to it."""
        return Stage(self, name, server)

    def add(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes | None = None, *, links: tuple[SpanContext, ...] = ()
    ) -> None:
        """Note a stage that was timed elsewhere, in Unix nanoseconds. A name given twice keeps the longer time."""
        self.note(name, end_ns - start_ns)
        if self.sampled:
            own = self.child_context()
            spans = tuple(Link(context) for context in links)
            self._traces.send(name, own, self.context, SpanKind.INTERNAL, start_ns, end_ns, attributes, links=spans)

    def note(self, name: str, length_ns: int) -> None:
        """Keep how long a stage took; a name given twice keeps the longer time."""
        seconds = whole_microseconds(length_ns)
        if seconds > self.stages.setdefault(name, 0.0):
            self.stages[name] = seconds

    def child_context(self) -> SpanContext:
        """Make the context of a span under the server's."""
        own = self.context
        return SpanContext(
            own.trace_id, random.getrandbits(64) or 1, is_remote=False, trace_flags=own.trace_flags, trace_state=own.trace_state
        )

    def headers(self, context: SpanContext | None = None) -> tuple[tuple[str, str], ...]:
        """Return the W3C headers that make an upstream's span a child of `context` (default: the server's span)."""
        if context is None and self.parent is None and not self.sampled:  # nearly all, so without a context that nobody else needs
            only = ("traceparent", f"00-{self.ids['trace_id']}-{self.ids['span_id']}-00")
            return (only, ("baggage", self.baggage)) if self.baggage else (only,)
        own = context or self.context
        found = [("traceparent", f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}")]
        if own.trace_state:
            found.append(("tracestate", own.trace_state.to_header()))
        if self.baggage:
            found.append(("baggage", self.baggage))
        return tuple(found)

    def end(self, method: str, status: str, attributes: Attributes) -> None:
        """Send the server's span. `status` is the gRPC status' name."""
        if not self.sampled:
            return
        error = status if status in _SERVER_FAULTS else None
        common = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": status}
        if error:
            common["error.type"] = error
        kind = SpanKind.SERVER
        now = time.time_ns()
        self._traces.send(method, self.context, self.parent, kind, self.started_ns, now, {**common, **attributes}, error=error)

    def send_stage(self, stage: Stage, end_ns: int, error: str | None) -> None:
        """Send a stage's span."""
        context = stage.context or self.child_context()
        kind, attributes = (SpanKind.CLIENT, _address(stage.server)) if stage.server else (SpanKind.INTERNAL, {})
        if error:
            attributes["error.type"] = error
        self._traces.send(stage.name, context, self.context, kind, stage.start_ns, end_ns, attributes, error=error)


class Stage:
    """A timed part of a request, used as a context manager; an exception that leaves it marks its span as failed."""

    __slots__ = ("context", "name", "server", "start_ns", "trace")

    def __init__(self, trace: Trace, name: str, server: str) -> None:
        self.trace = trace
        self.name = name
        self.server = server
        self.context: SpanContext | None = None
        self.start_ns = 0

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the W3C headers for a call made within this stage."""
        if self.trace.sampled and self.context is None:
            self.context = self.trace.child_context()
        return self.trace.headers(self.context)

    def __enter__(self) -> Self:
        self.start_ns = time.time_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        now, trace = time.time_ns(), self.trace
        trace.note(self.name, now - self.start_ns)
        if trace.sampled:
            # What nobody waits for any more, such as the slower half of a hedged request, has not failed.
            failure = None if kind is None or issubclass(kind, asyncio.CancelledError) else kind.__name__
            trace.send_stage(self, now, failure)


def whole_microseconds(length_ns: int) -> float:
    """Return nanoseconds as seconds with six decimals, which is what logs show. `round` to as many takes four times as long."""
    return (length_ns + 500) // 1000 / 1e6


def unsampled() -> str:
    """Return the `traceparent` of what a process asks of another for itself: the beginning of a trace that nobody is to see."""
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-00"


def _parse(traceparent: str, tracestate: str) -> SpanContext | None:
    """Return the caller's span, or None where there is none that is well formed (W3C Trace Context, section 3.2)."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    state = TraceState.from_header([tracestate]) if tracestate else None
    flags = _SAMPLED if int(found[4], 16) & TraceFlags.SAMPLED else _UNSAMPLED
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags, trace_state=state)


def _address(server: str) -> Attributes:
    host, _, port = server.partition("/")[0].rpartition(":")  # a server over HTTP may have a path behind them
    return {"server.address": host.strip("[]"), "server.port": int(port)} if port.isdigit() else {"server.address": server}


def _service(service: str) -> Attributes:
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {} if named else {"service.name": service}


def _sampler() -> Any:
    """Return the decision for a trace that starts here, as OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say.

    A trace that starts elsewhere follows its parent in each of the `parentbased_` forms, which are the ones served.
    """
    name = os.environ.get("OTEL_TRACES_SAMPLER") or "parentbased_traceidratio"
    if name == "parentbased_always_on":
        return lambda _trace_id: True
    if name == "parentbased_always_off":
        return lambda _trace_id: False
    if name != "parentbased_traceidratio":
        raise ConfigError(
            f"OTEL_TRACES_SAMPLER: {name!r} is not served; allowed: parentbased_traceidratio, parentbased_always_on, parentbased_always_off"
        )
    bound = round(_ratio() * (1 << 64))
    return lambda trace_id: trace_id & ((1 << 64) - 1) < bound


def _ratio() -> float:
    text = os.environ.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is no share of traces; write a number from 0 to 1")
    return ratio
