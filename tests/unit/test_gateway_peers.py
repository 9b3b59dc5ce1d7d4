"""What workers and the way to them say when something fails, in our words."""

from __future__ import annotations

import grpc
import pytest

from gateway.upstreams.peers import Lost, told_here, translate
from quadrate.errors import (
    ERRORS,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    QuadrateError,
    QuotaExceeded,
    Unauthenticated,
    UpstreamFailed,
)
from quadrate.server import status


def failure(code: grpc.StatusCode, text: str, *trailers: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    """Return a failed call."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=text)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_a_workers_error_is_the_same_here(kind: type[QuadrateError]) -> None:
    """Class, sentence, parameter and the time to wait come through for every error there is."""
    told = kind("A sentence.", param="inputs[1].text", retry_after_seconds=1.5)
    found = translate(failure(kind.status, told.message, (status.DETAILS_KEY, status.details(told, "m"))))
    assert type(found) is kind
    assert (found.message, found.param, found.retry_after_seconds) == ("A sentence.", "inputs[1].text", 1.5)


@pytest.mark.parametrize("kind", [Unauthenticated, PermissionDenied])
def test_what_another_mesh_says_of_our_key_is_not_said_of_the_callers(kind: type[QuadrateError]) -> None:
    """The caller's key is good: who has to do something is the operator."""
    found = told_here(kind("This API key is not known here."))
    assert type(found) is UpstreamFailed
    assert "the gateway's key" in found.message


def test_limits_of_our_key_at_another_mesh_are_no_limits_of_the_caller() -> None:
    """It is told when to come back, and others are asked first."""
    found = told_here(QuotaExceeded("The limit is 10 tokens.", retry_after_seconds=2.5))
    assert type(found) is Overloaded
    assert found.retry_after_seconds == 2.5


def test_a_reason_of_a_newer_worker_keeps_its_status() -> None:
    """An unknown reason is understood by its status."""
    told = InvalidArgument("A sentence.", code="something_new")
    found = translate(failure(told.status, told.message, (status.DETAILS_KEY, status.details(told, "m"))))
    assert type(found) is InvalidArgument


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Lost),
        (grpc.StatusCode.INTERNAL, Lost),
        (grpc.StatusCode.CANCELLED, Lost),
        (grpc.StatusCode.UNKNOWN, Lost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Internal),
        (grpc.StatusCode.UNIMPLEMENTED, Internal),
    ],
)
def test_what_the_transport_says_is_not_repeated(code: grpc.StatusCode, kind: type[QuadrateError]) -> None:
    """Addresses and the words of sockets stay here; a connection that broke may be tried again."""
    found = translate(failure(code, "connect to ipv4:10.0.0.7:7997 refused"))
    assert type(found) is kind
    assert "10.0.0.7" not in found.message


def test_too_much_work_is_retryable_and_says_when() -> None:
    """The pause that a worker asks for reaches the caller."""
    told = Overloaded("Full.", retry_after_seconds=0.25)
    found = translate(failure(told.status, "Full.", (status.DETAILS_KEY, status.details(told, "m"))))
    assert found.retryable
    assert found.retry_after_seconds == 0.25
