"""gRPC's failures as the errors of quadrate.errors, which is what a client raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from quadrate.errors import BY_REASON, BY_STATUS, DOMAIN, Internal, InvalidArgument, QuadrateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from quadrate.v1 import options_pb2

T = TypeVar("T")

_DETAILS_KEY = "grpc-status-details-bin"
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
_BROKEN_SIGNS = ("RST_STREAM", "Stream removed")
"""What grpc calls a stream whose far end was lost behind a proxy: a fault in the transport, not of the server."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc(failure: grpc.aio.AioRpcError) -> QuadrateError:
    """Return the error that a failed call means. The request id, where the server told one, stands in a note of the exception."""
    error = told(failure) or _plain(failure.code(), failure.details() or "")
    request_id = _trailer(failure, "x-request-id")
    if isinstance(request_id, str):
        error.add_note(f"request id: {request_id}")
    return error


def told(failure: grpc.aio.AioRpcError) -> QuadrateError | None:
    """Return the error that one of our servers described, or None if the failure was made by something on the way."""
    return _detailed(_trailer(failure, _DETAILS_KEY))


class Outcome:
    """The status that a stream really ended with.

    When a server ends a stream while a write is on its way, grpc.aio puts INTERNAL, "Internal error from Core", in the place of the
    status that had arrived. What stands there when the call is done for the first time is the real one, so it is noted then.
    """

    def __init__(self, call: Any) -> None:
        self._noted: tuple[grpc.StatusCode, Any, str] | None = None
        call.add_done_callback(self._note)

    def error(self, failure: grpc.aio.AioRpcError) -> QuadrateError:
        """Return the error that the stream's failure means."""
        if self._noted is None:
            return from_rpc(failure)
        code, trailers, details = self._noted
        return from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details, None))

    def status(self, failure: grpc.aio.AioRpcError) -> grpc.StatusCode:
        """Return the status that the stream's failure had."""
        return failure.code() if self._noted is None else self._noted[0]

    def _note(self, call: Any) -> None:
        self._noted = (_now(call.code()), _now(call.trailing_metadata()), _now(call.details()))


def _now(ready: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that need not wait."""
    try:
        ready.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    ready.close()
    raise AssertionError("A call that is done told its status only later.")


def from_item(item: options_pb2.Error) -> QuadrateError:
    """Return the error that stands in a stream's answer."""
    wait = item.retry_after_seconds if item.HasField("retry_after_seconds") else None
    return _error(_CODES.get(item.code, grpc.StatusCode.UNKNOWN), item.reason, item.message, item.param, wait)


def _trailer(failure: grpc.aio.AioRpcError, name: str) -> str | bytes | None:
    trailers: Iterable[Any] = failure.trailing_metadata() or ()
    return next((value for key, value in trailers if key == name), None)


def _detailed(details: str | bytes | None) -> QuadrateError | None:
    """Return the error that our servers describe, or None if this one was not made by them."""
    if not isinstance(details, bytes):
        return None
    try:
        status = status_pb2.Status.FromString(details)
    except DecodeError:
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.domain != DOMAIN:
        return None
    wait = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    return _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), info.reason, status.message, info.metadata.get("param", ""), wait)


def _error(status: grpc.StatusCode, reason: str, message: str, param: str, wait: float | None) -> QuadrateError:
    """Return the error of this reason; a reason from a newer server is told by its status's class, under its own name."""
    known = BY_REASON.get(reason)
    if known is not None and known.status is status:
        return known(message, param=param or None, retry_after_seconds=wait)
    return BY_STATUS.get(status, Internal)(message, param=param or None, retry_after_seconds=wait, code=reason.lower() or None)


def _plain(status: grpc.StatusCode, message: str) -> QuadrateError:
    """Return the error for a status without details: from the edge, a proxy between, or grpc itself."""
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Our servers tell overload with details. Without them it is grpc, and a message over its size limit, which stays too large.
        return InvalidArgument(f"{message or 'Too much was asked for at once.'} Send less in one request.", code="too_large")
    if status in _BROKEN and any(sign in message for sign in _BROKEN_SIGNS):
        return Unavailable(f"The connection broke before the answer was there: {message}.")
    return BY_STATUS.get(status, Internal)(message or f"The call failed with {status.name}.")
