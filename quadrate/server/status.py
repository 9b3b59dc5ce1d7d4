"""An error of ours as gRPC tells it: status, details, and the REST body that rides along."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NullValue, Value
from google.rpc import error_details_pb2, status_pb2

from quadrate.errors import DOMAIN, InvalidArgument, QuadrateError, Unauthenticated, UpstreamFailed
from quadrate.v1.options_pb2 import Error
from quadrate.wire.v1.status_pb2 import ErrorBody, StatusExtension

if TYPE_CHECKING:
    from google.protobuf.message import Message

DETAILS_KEY = "grpc-status-details-bin"
HTTP_STATUS_KEY = "x-quadrate-http-status"
"""Tells the edge the HTTP code of an error whose gRPC status stands for another. The edge takes it out."""
FINAL = ("x-envoy-ratelimited", "true")
"""Tells Envoy not to send a call to another gateway. It is the one word that stops Envoy's tries; the edge takes it out."""
_COHERE = "quadrate.cohere."
_TOKEN_CODES = {"invalid_token", "token_expired"}
"""What a new token mends (RFC 6750)."""
MAX_MESSAGE_CHARACTERS = 1_000
"""Longer sentences are cut: they travel in headers, twice, and a header that is too large loses the whole answer."""


def details(error: QuadrateError, method: str) -> bytes:
    """Return the bytes of google.rpc.Status for `grpc-status-details-bin`, the REST body of the method's API appended."""
    message = sentence(error)
    status = status_pb2.Status(code=error.status.value[0], message=message)
    for part in _parts(error, message):
        status.details.add().Pack(part)
    body = ErrorBody(message=message, type=error.type, param=_value(error.param), code=_value(error.code))
    extension = StatusExtension(error=body, message=message if method.startswith(_COHERE) else None)
    return bytes(status.SerializeToString() + extension.SerializeToString())


def headers(error: QuadrateError) -> list[tuple[str, str]]:
    """Return `retry-after` (whole seconds, rounded up) and `retry-after-ms` where waiting helps, and an HTTP code the edge cannot know."""
    found = [(HTTP_STATUS_KEY, str(error.http_status))] if isinstance(error, UpstreamFailed) else []
    if isinstance(error, Unauthenticated):  # RFC 9110 wants it beside every 401
        found = [("www-authenticate", 'Bearer error="invalid_token"' if error.code in _TOKEN_CODES else "Bearer")]
    if error.retry_after_seconds is None:
        return found
    return [
        *found,
        ("retry-after", str(math.ceil(error.retry_after_seconds))),
        ("retry-after-ms", str(math.ceil(error.retry_after_seconds * 1000))),
    ]


def sentence(error: QuadrateError) -> str:
    """Return the error's message, cut to what fits into headers."""
    text = error.message
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def told(error: QuadrateError) -> Error:
    """Return an error as it is told inside a stream."""
    return Error(
        code=error.status.value[0],
        message=sentence(error),
        reason=error.reason,
        param=error.param or "",
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_seconds,
    )


def _parts(error: QuadrateError, message: str) -> list[Message]:
    metadata = {"param": error.param} if error.param else {}
    parts: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.retry_after_seconds is not None:
        wait = Duration()
        wait.FromNanoseconds(math.ceil(error.retry_after_seconds * 1e9))
        parts.append(error_details_pb2.RetryInfo(retry_delay=wait))
    if isinstance(error, InvalidArgument) and error.param:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=message)
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return parts


def _value(text: str | None) -> Value:
    return Value(null_value=NullValue.NULL_VALUE) if text is None else Value(string_value=text)
