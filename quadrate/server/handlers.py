"""What every call goes through, whatever its method: ids, deadline, trace, errors to statuses, metrics, one log line.

Handlers are plain coroutines `(request, call) -> message | bytes` (bytes: an answer serialised already) or, for RPCs that answer with a
stream, async generators. They raise `quadrate.errors`; anything else they raise is a fault of ours and is told as INTERNAL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import message_factory

from quadrate.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, QuadrateError, Unimplemented, UpstreamFailed
from quadrate.server import status
from quadrate.server.call import Call, request_id, standing_of
from quadrate.standing import CANARY
from quadrate.telemetry import Telemetry, log
from quadrate.telemetry.logs import INFO, current
from quadrate.telemetry.traces import whole_microseconds
from quadrate.turns import on_behalf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor


UNKNOWN = "unknown"
"""What methods that nobody serves are called in metrics and logs: their true names are a caller's words."""


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether what grpc logs is for a log of ours.

    It writes an error with a traceback when it cannot tell a failure to somebody who left (grpc#31570); the call's own line has it all.
    And it repeats a whole header that is no UTF-8, be it a key.
    """
    return not record.getMessage().startswith(("ExecuteBatchError raised in core by servicer method", "Invalid encoding on "))


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


class Handlers:
    """Wraps the handlers of one process."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._is_router = telemetry.prefix == "router"
        self._in_flight = 0
        self.idle = asyncio.Event()
        """Set while no call is being served. Health and reflection have handlers of their own and do not count."""
        self.idle.set()

    def of(self, service: Any, descriptor: ServiceDescriptor) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what grpc needs to serve `service`, whose methods are named as the descriptor's RPCs are, in snake case."""
        methods = {method.name: self._method(service, method) for method in descriptor.methods}
        return grpc.method_handlers_generic_handler(descriptor.full_name, methods)

    def of_nothing(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what answers methods that no service has, so that they are told, counted and logged as everything else. It comes last."""
        return _Unknown(grpc.stream_stream_rpc_method_handler(self._stream(UNKNOWN, _refuse), lambda data: (data, len(data)), None))

    def _method(self, service: Any, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        handler = getattr(service, _snake(method.name))
        name = f"{method.containing_service.full_name}/{method.name}"
        parse = _parser(message_factory.GetMessageClass(method.input_type))
        if method.client_streaming:
            counts = not getattr(service, "carries_calls", False)
            return grpc.stream_stream_rpc_method_handler(self._stream(name, handler, counts=counts), parse, None)
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(name, handler, asks_once=True), parse, None)
        return grpc.stream_unary_rpc_method_handler(self._unary(name, handler), parse, None)

    def _unary(self, name: str, handler: Callable[..., Any]) -> Any:
        async def serve(_: object, context: Any) -> bytes:
            request, size = await read_one(context)
            call = self._begin(name, context)
            call.size_bytes = size
            try:
                _check(request, call)
                answer = await handler(request, call)
                data: bytes = answer if type(answer) is bytes else answer.SerializeToString()
                _leave_headers(call, context)
            except BaseException as exc:
                await self._fail(call, exc, context, size)
                raise
            self.end(call, size, len(data))
            return data

        return serve

    def _stream(self, name: str, handler: Callable[..., Any], *, counts: bool = True, asks_once: bool = False) -> Any:
        """Return the handler of a stream. One that only carries calls, which count themselves, keeps no process from ending."""

        async def serve(requests: Any, context: Any) -> AsyncIterator[bytes]:
            only = (await read_one(context))[0] if asks_once else None
            call = self._begin(name, context)
            meter = _Meter()
            try:
                await context.send_initial_metadata((("x-request-id", call.request_id),))
                argument = _check(only, call) if asks_once else meter.count(requests, call)
                with nullcontext() if counts else self._uncounted():
                    async with aclosing(handler(argument, call)) as answers:
                        async for answer in answers:
                            data = answer if type(answer) is bytes else answer.SerializeToString()
                            meter.sent += len(data)
                            yield data
            except BaseException as exc:
                await self._fail(call, exc, context, meter.received, sent=meter.sent)
                raise
            self.end(call, meter.received, meter.sent)

        return serve

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Let a call that has begun not count as under way for a while."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def _enter(self) -> None:
        self._in_flight += 1
        self.idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self.idle.set()

    def begin(self, method: str, metadata: Mapping[str, str], remaining_seconds: float | None) -> Call:
        """Start a call: ids, deadline, trace. Logs of this task carry its ids from here on."""
        deadline = None if remaining_seconds is None else time.monotonic() + remaining_seconds
        trace = self._telemetry.traces.begin(metadata)
        call = Call(method, metadata, request_id(metadata), deadline, trace, desk=self, standing=standing_of(metadata))
        current.set(call.ids)
        on_behalf.set(call.standing)
        self._enter()
        return call

    def end(self, call: Call, received_bytes: int, sent_bytes: int, exc: BaseException | None = None) -> QuadrateError | None:
        """Count, trace and log a call that is over; return what a failed one tells its caller."""
        error = None if exc is None else _as_error(exc, call)
        if call.charge is not None:
            call.charge.close(failed=exc is not None)
        if call.place is not None:
            call.place.close(failed=exc is not None)
        outcome = "OK" if error is None else error.status.name
        seconds = whole_microseconds(time.time_ns() - call.trace.started_ns)
        self._count(call, outcome, seconds, received_bytes, sent_bytes, error)
        call.trace.end(call.method, outcome, _attributes(call, error))
        if error is not None or call.standing.tenant != CANARY.tenant:
            log.write(INFO, "request", _line(call, outcome, seconds, received_bytes, sent_bytes, error), call.ids)
        self._leave()
        return error

    def _begin(self, name: str, context: Any) -> Call:
        headers = context.invocation_metadata()
        metadata = {key: value for key, value in headers if type(value) is str}
        if len(metadata) < len(headers):
            metadata = _joined(headers)
        return self.begin(name, metadata, context.time_remaining())

    async def _fail(self, call: Call, exc: BaseException, context: Any, received: int, *, sent: int = 0) -> None:
        """Count and tell a failure; `context.abort` raises, so this returns only if the caller has gone."""
        error = self.end(call, received, sent, exc)
        if error is None or isinstance(exc, asyncio.CancelledError | GeneratorExit):
            return
        trailers = [
            *call.headers,
            *status.headers(error),
            *([status.FINAL] if call.has_tried or isinstance(error, UpstreamFailed) else ()),  # it answers another gateway no better
            ("x-request-id", call.request_id),
            (status.DETAILS_KEY, status.details(error, call.method)),
        ]
        await context.abort(error.status, status.sentence(error), tuple(trailers))

    def _count(self, call: Call, outcome: str, seconds: float, received: int, sent: int, error: QuadrateError | None) -> None:
        metrics, prefix = self._telemetry.metrics, self._telemetry.prefix
        model = str(call.log.get("model", ""))
        metrics.histogram(f"{prefix}_request_duration_seconds", call.method, model).observe(seconds)
        if not self._is_router:
            metrics.counter(f"{prefix}_requests_total", call.method, model, outcome).inc()
            if error is not None:
                metrics.counter(f"{prefix}_errors_total", model, error.reason).inc()
            return
        principal = str(call.log.get("principal", ""))
        metrics.counter("router_requests_total", call.method, model, principal, outcome).inc()
        metrics.histogram("http_request_size_bytes", call.method).observe(received)
        metrics.histogram("http_response_size_bytes", call.method).observe(sent)
        for stage, length in call.trace.stages.items():
            metrics.histogram("router_request_stage_seconds", stage).observe(length)


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs alone
    """Has one handler for all methods."""

    def __init__(self, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler, whatever is called."""
        del handler_call_details
        return self._handler


async def _refuse(_requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[bytes]:
    raise Unimplemented("There is no such method here. Check its name, and that this is the right port; reflection lists what there is.")
    yield b""  # what makes it a stream


class _Meter:
    """Bytes of a stream, both ways."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0

    async def count(self, requests: AsyncIterator[tuple[Any, int]], call: Call) -> AsyncIterator[Any]:
        """Yield the messages alone. One that cannot be read ends the stream: there is no id to answer it under."""
        async for message, size in requests:
            self.received += size
            yield _check(message, call)


async def read_one(context: Any) -> tuple[Any, int]:
    """Return the message of a method that takes one, and its size in bytes; no message counts as one that cannot be read.

    So methods that take one message are given to grpc as ones that take a stream. It would not answer a call that ends without a message
    at all, and the call would stay open until its deadline, seen by nobody. The cost is the same.
    """
    found = await context.read()
    if found is not grpc.aio.EOF:  # type: ignore[attr-defined] # the stubs do not know it
        return found  # type: ignore[no-any-return] # what _parser makes
    if context.cancelled():
        raise asyncio.CancelledError
    return None, 0


def _joined(headers: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Return headers of which some came more than once: each has all of its values, between commas (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for key, value in headers:
        if type(value) is str:
            found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _leave_headers(call: Call, context: Any) -> None:
    """Leave the answer's headers to be sent with it, at its end.

    Sent ahead they would be a message of their own. That costs as much as the rest of this module; and a gateway that is killed between the
    two has begun to answer, so that the edge cannot ask another one. Of what comes after an answer the edge gives REST callers the status
    alone, with the sentence that belongs to it: so headers for them travel in that sentence, and the edge takes them out.
    """
    context.set_trailing_metadata((*call.headers, ("x-request-id", call.request_id)))
    if call.headers and call.surface == "rest":
        context.set_details(";".join(f"{name}={value}" for name, value in call.headers))


def _parser(message_class: Any) -> Callable[[bytes], tuple[Any, int]]:
    """Return a deserialiser to (message, size in bytes). A message that is none becomes None, which `_check` refuses in our own words."""

    def parse(data: bytes) -> tuple[Any, int]:
        try:
            return message_class.FromString(data), len(data)
        except Exception:  # noqa: BLE001 - DecodeError or UnicodeDecodeError, by protobuf's implementation
            return None, len(data)

    return parse


def _check(request: Any, call: Call) -> Any:
    """Refuse a message that could not be read, and a call whose caller has stopped waiting."""
    if call.deadline is not None and call.deadline <= time.monotonic():
        raise DeadlineExceeded("The deadline had passed when the request arrived. Allow more time.")
    if request is None:
        raise InvalidArgument(f"The request is no valid message of {call.method}: check that strings are UTF-8 and the schema is current.")
    return request


def _as_error(exc: BaseException, call: Call) -> QuadrateError:
    if isinstance(exc, QuadrateError):
        return exc
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        remaining = call.remaining_seconds()
        if remaining is not None and remaining <= 0:
            return DeadlineExceeded("The deadline passed before the answer was there.")
        return Cancelled("The caller has gone.")
    if isinstance(exc, Exception):
        log.error("unexpected failure", method=call.method, error=type(exc).__name__, traceback=_traceback(exc))
    return Internal(f"Something failed on our side. Quote the request id {call.request_id} to the operator.")


def _traceback(exc: BaseException) -> list[str]:
    """Return where it happened, without the exception's own text, which may hold a user's."""
    places = []
    trace = exc.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno} {trace.tb_frame.f_code.co_name}")
        trace = trace.tb_next
    return places


def _line(call: Call, outcome: str, seconds: float, received: int, sent: int, error: QuadrateError | None) -> dict[str, Any]:
    line = {
        "method": call.method,
        "surface": call.surface,
        "status": outcome,
        **call.log,
        "seconds": seconds,
        "received_bytes": received,
        "sent_bytes": sent,
        "stages": call.trace.stages,
    }
    if error is not None:
        line["reason"] = error.reason
        line["param"] = error.param
    return line


_OPERATIONS = {"Embed": "embeddings", "CreateEmbedding": "embeddings", "Rerank": "rerank"}
"""What methods do, by how their names begin."""
_NAMED_BY_CONVENTION = {"model": "gen_ai.request.model", "tokens": "gen_ai.usage.input_tokens"}


def _attributes(call: Call, error: QuadrateError | None) -> dict[str, Any]:
    """Return what the server's span says: what the log line does, in OpenTelemetry's terms for generative AI where it has some."""
    if not call.trace.sampled:
        return {}
    rpc = call.method.rpartition("/")[2]
    found = {_NAMED_BY_CONVENTION.get(name, f"quadrate.{name}"): value for name, value in call.log.items()}
    found["gen_ai.operation.name"] = next((word for start, word in _OPERATIONS.items() if rpc.startswith(start)), "")
    found["quadrate.request_id"] = call.request_id
    found["quadrate.reason"] = "" if error is None else error.reason
    return {name: value for name, value in found.items() if value not in (None, "")}


def _snake(name: str) -> str:
    """`EmbedStream` → `embed_stream`; `RerankV1` → `rerank_v1`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() and place else letter.lower() for place, letter in enumerate(name))
