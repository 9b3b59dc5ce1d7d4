"""Every way a call can fail, and what that is called on each wire.

    QuadrateError
    ├── InvalidArgument            the caller must change the request
    │   ├── EmptyInput             nothing to read
    │   ├── TooManyInputs          more inputs or documents than allowed
    │   └── ContextLengthExceeded  an input the model cannot read whole
    ├── Unauthenticated            no key, or a wrong one
    ├── PermissionDenied           a good key that may not do this
    ├── NotFound                   no such thing
    │   └── ModelNotFound          no such model, or not for this task
    ├── LoadFailed                 a worker was told to load a model and could not
    ├── QuotaExceeded              the caller's limits are used up
    ├── Overloaded                 the mesh has no room for the request in time
    ├── DeadlineExceeded           the caller's time is over
    ├── Cancelled                  the caller has gone
    ├── Unimplemented              part of the contract, not served by this model or version
    ├── Unavailable                nobody can answer now; try again
    │   └── UpstreamFailed         who was asked gave what is no answer
    └── Internal                   a fault of ours

A class *is* its meaning on the wires: gRPC status, HTTP code, OpenAI `type` and `code`, the stable `reason`, and whether the same
request may succeed later. Doors translate by these attributes alone and never by the class, so a new error needs no new code there.
The HTTP code is what Envoy's transcoder makes of the gRPC status; it stands here so that tables and tests can name it. UpstreamFailed
alone has a code that no status stands for: the edge makes its 503 a 502.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

DOMAIN = "quadrate"
"""The `domain` of google.rpc.ErrorInfo: reasons are unique within it."""


class QuadrateError(Exception):
    """A failure that can be told to a caller.

    Args:
        message: A sentence that names the value, the limit and the way out. It holds no text of a user and no secret.
        param: The field at fault in the request's own terms, for example `input` or `inputs[2].text`.
        retry_after_seconds: How long to wait before the same request has a chance. None where waiting does not help.
        code: An OpenAI code that is more exact than the class's own: one of EXACT_CODES.
    """

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    reason: str = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code
            self.reason = code.upper()


class InvalidArgument(QuadrateError):
    """The request is wrong as it stands. Sending it again does not help; changing the field named in `param` does."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    reason = "INVALID_VALUE"


class EmptyInput(InvalidArgument):
    """An input, a query, a document or a list of them that holds nothing to read."""

    code = "empty_input"
    reason = "EMPTY_INPUT"


class TooManyInputs(InvalidArgument):
    """More inputs or documents in one request than the limit allows."""

    code = "too_many_inputs"
    reason = "TOO_MANY_INPUTS"


class ContextLengthExceeded(InvalidArgument):
    """An input longer than the model reads, with truncation refused."""

    code = "context_length_exceeded"
    reason = "CONTEXT_LENGTH_EXCEEDED"


class Unauthenticated(QuadrateError):
    """No key where one is needed, or a key that is not known."""

    status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    reason = "INVALID_API_KEY"


class PermissionDenied(QuadrateError):
    """A known key that may not call this model or task, or is past its expiry."""

    status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    type = "permission_error"
    code = "permission_denied"
    reason = "PERMISSION_DENIED"


class NotFound(QuadrateError):
    """No such path, method or thing."""

    status = grpc.StatusCode.NOT_FOUND
    http_status = 404
    type = "invalid_request_error"
    code = "not_found"
    reason = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No enabled model of this name, or not for this task."""

    code = "model_not_found"
    reason = "MODEL_NOT_FOUND"


class LoadFailed(QuadrateError):
    """A worker was told to load a model and could not: its files, its card or its golden vectors have to be mended, or room to be made."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 400
    type = "invalid_request_error"
    code = "load_failed"
    reason = "LOAD_FAILED"


class QuotaExceeded(QuadrateError):
    """The caller's own limits are used up for now; `retry_after_seconds` says for how long."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    reason = "RATE_LIMIT_EXCEEDED"
    retryable = True


class Overloaded(QuadrateError):
    """The queue holds more work than can be done in time. Nothing was run and nothing charged."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    type = "overloaded_error"
    code = "overloaded"
    reason = "OVERLOADED"
    retryable = True


class DeadlineExceeded(QuadrateError):
    """The caller's deadline passed, or would have passed, before the answer was there."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    reason = "DEADLINE_EXCEEDED"
    retryable = True


class Cancelled(QuadrateError):
    """The caller has gone. Seen in logs and metrics; there is nobody to tell."""

    status = grpc.StatusCode.CANCELLED
    http_status = 499
    type = "invalid_request_error"
    code = "cancelled"
    reason = "CANCELLED"


class Unimplemented(QuadrateError):
    """Part of the contract that this model, process or version does not serve."""

    status = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501
    type = "invalid_request_error"
    code = "not_implemented"
    reason = "NOT_IMPLEMENTED"


class Unavailable(QuadrateError):
    """Nobody can answer now: a model still loads, or all who serve it are away. Try again."""

    status = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    type = "server_error"
    code = "unavailable"
    reason = "UNAVAILABLE"
    retryable = True


class UpstreamFailed(Unavailable):
    """An upstream answered with what is no answer: an error of its own, vectors of a wrong width or number, a page instead of JSON."""

    http_status = 502
    code = "upstream_error"
    reason = "UPSTREAM_ERROR"


class Internal(QuadrateError):
    """A fault of ours. The message names the request id to look for in the log, never the cause."""

    status = grpc.StatusCode.INTERNAL
    http_status = 500
    code = "internal_error"
    reason = "INTERNAL"


class ConfigError(Exception):
    """A file or variable that cannot be used. Its text names the file, the line and what is allowed; it never reaches a caller."""


class StoreError(Exception):
    """A model whose files cannot be had or trusted. Its text names the model, the cause and the way out; it never reaches a caller."""


ERRORS: tuple[type[QuadrateError], ...] = (
    InvalidArgument,
    EmptyInput,
    TooManyInputs,
    ContextLengthExceeded,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    ModelNotFound,
    LoadFailed,
    QuotaExceeded,
    Overloaded,
    DeadlineExceeded,
    Cancelled,
    Unimplemented,
    Unavailable,
    UpstreamFailed,
    Internal,
)
"""All that can be told to a caller, in the order of the drawing above."""

EXACT_CODES: dict[str, tuple[type[QuadrateError], str]] = {
    "invalid_json": (InvalidArgument, "The body is no JSON object."),
    "duplicate_key": (InvalidArgument, "A key stands twice in one JSON object."),
    "missing_required_parameter": (InvalidArgument, "A field that is required is not there."),
    "invalid_type": (InvalidArgument, "A field has another JSON type than it may have."),
    "too_many_tokens": (InvalidArgument, "All inputs together have more tokens than one request may: `ROUTER_SAFE_REQUEST_TOKEN_LIMIT`."),
    "request_exceeds_limit": (InvalidArgument, "The request is larger than one of the caller's limits ever allows."),
    "answer_too_large": (InvalidArgument, "The answer would be larger than one message carries."),
    "too_large": (InvalidArgument, "gRPC itself refused a message over its size limit; `quadrate.client` calls it so."),
    "missing_api_key": (Unauthenticated, "No key came where one is needed."),
    "invalid_token": (Unauthenticated, "A JSON Web Token is not accepted; the message says what is wrong with it."),
    "token_expired": (Unauthenticated, "A JSON Web Token's time is over."),
    "api_key_expired": (PermissionDenied, "The key's time is over."),
    "api_key_not_yet_valid": (PermissionDenied, "The key's time has not come."),
}
"""Codes that are more exact than their class's own, with it and when they are used. A reason is its code in capitals."""

BY_REASON: dict[str, type[QuadrateError]] = {error.reason: error for error in ERRORS}
BY_STATUS: dict[grpc.StatusCode, type[QuadrateError]] = {error.status: error for error in reversed(ERRORS)}
