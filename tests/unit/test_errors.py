"""Every error is told the same on every wire."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2

from quadrate import errors
from quadrate.errors import BY_STATUS, ERRORS, InvalidArgument, ModelNotFound, Overloaded, QuadrateError, Unavailable, UpstreamFailed
from quadrate.server import status
from quadrate.wire.v1.status_pb2 import StatusExtension

# What Envoy's transcoder makes of a gRPC status.
HTTP = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}


def subclasses(kind: type) -> set[type]:
    """Return every class below `kind`."""
    return {found for direct in kind.__subclasses__() for found in (direct, *subclasses(direct))}


def test_the_table_of_errors_is_complete() -> None:
    """Every class stands in the table, with a reason of its own and a sentence of when it is used; what others derive tells no more."""
    own = {error for error in subclasses(QuadrateError) if error.__module__ == errors.__name__}
    assert set(ERRORS) == own
    assert {error.reason for error in subclasses(QuadrateError)} == {error.reason for error in own}
    assert len({error.reason for error in ERRORS}) == len(ERRORS)
    assert all(error.__doc__ for error in ERRORS)
    assert all(error.__name__ in str(errors.__doc__) for error in ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_names_the_http_code_that_envoy_gives_its_status(error: type[QuadrateError]) -> None:
    """The HTTP code follows from the gRPC status, save for the one that the edge changes."""
    assert error.http_status == (502 if error is UpstreamFailed else HTTP[error.status.name])


def test_a_bare_status_is_the_broadest_of_its_errors() -> None:
    """Who hears UNAVAILABLE without details cannot know of an upstream."""
    assert BY_STATUS[Unavailable.status] is Unavailable


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_a_status_carries_reason_and_rest_body(error: type[QuadrateError]) -> None:
    """GRPC clients find code, sentence and ErrorInfo; the transcoder finds the REST body in the same bytes."""
    data = status.details(error("A sentence.", param="input[2]"), "quadrate.openai.v1.OpenAiService/CreateEmbedding")
    read = status_pb2.Status.FromString(data)
    info = error_details_pb2.ErrorInfo()
    assert read.details[0].Unpack(info)
    assert (read.code, read.message, info.reason, info.domain) == (error.status.value[0], "A sentence.", error.reason, "quadrate")
    extension = StatusExtension.FromString(data)
    assert (extension.error.type, extension.error.code.string_value) == (error.type, error.code)
    assert extension.error.param.string_value == "input[2]"
    assert not extension.HasField("message")


def test_cohere_routes_get_the_sentence_beside_the_error() -> None:
    """Cohere's clients read `message` at the top."""
    data = status.details(InvalidArgument("A sentence."), "quadrate.cohere.v1.CohereService/RerankV2")
    extension = StatusExtension.FromString(data)
    assert extension.message == "A sentence."
    assert extension.error.param.WhichOneof("kind") == "null_value"


def test_waiting_times_are_told_in_headers_and_details() -> None:
    """Seconds are rounded up, so that a caller who waits as told does not come too early."""
    error = Overloaded("Wait.", retry_after_seconds=0.1234)
    assert status.headers(error) == [("retry-after", "1"), ("retry-after-ms", "124")]
    read = status_pb2.Status.FromString(status.details(error, "m"))
    retry = error_details_pb2.RetryInfo()
    assert read.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 123


def test_the_field_at_fault_is_told_in_details() -> None:
    """In ErrorInfo whatever the error; in BadRequest, with the sentence, where the field is what the caller can mend."""
    read = status_pb2.Status.FromString(status.details(InvalidArgument("A sentence.", param="inputs[2].text"), "m"))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert read.details[0].Unpack(info)
    assert read.details[1].Unpack(bad)
    assert info.metadata["param"] == "inputs[2].text"
    assert [(one.field, one.description) for one in bad.field_violations] == [("inputs[2].text", "A sentence.")]
    missing = status_pb2.Status.FromString(status.details(ModelNotFound("A sentence.", param="model"), "m"))
    assert not any(part.Is(error_details_pb2.BadRequest.DESCRIPTOR) for part in missing.details)


def test_a_long_sentence_is_cut_to_fit_into_headers() -> None:
    """A header that is too large would lose the whole answer."""
    assert len(status.sentence(InvalidArgument("x" * 100_000))) == status.MAX_MESSAGE_CHARACTERS


def test_a_more_exact_code_brings_its_reason() -> None:
    """`code` and `reason` are one name in two spellings."""
    error = InvalidArgument("A sentence.", code="invalid_json")
    assert (error.code, error.reason) == ("invalid_json", "INVALID_JSON")
