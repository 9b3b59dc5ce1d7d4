"""One worker process as the gateway sees it: a channel for the life of the process, the calls on it, and its errors as ours."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal

import grpc
from grpc_health.v1 import health_pb2

from gateway.upstreams.pulse import Pulse
from gateway.upstreams.relay import MOST_INPUTS, Relay
from quadrate.client import failures
from quadrate.errors import (
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    QuadrateError,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
)
from quadrate.server.call import standing_headers
from quadrate.standing import CANARY
from quadrate.telemetry.traces import unsampled
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pydantic import SecretStr

    from quadrate.config.tls import ClientTls

MAX_ANSWER_BYTES = 64 * 2**20
"""Room for 2,048 vectors of 4,096 floats twice over, and what workers send at most."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    # A worker that comes back is found within a second; the default back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A worker that hangs with its sockets open is left when it does not answer pings.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    # Workers are named by operators: no proxy of the environment and no DNS record may send requests elsewhere.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Each peer has connections of its own, so that one that is closed takes no other with it.
    ("grpc.use_local_subchannel_pool", 1),
)


class Lost(Unavailable):
    """A worker that was lost, or given up, before it answered. Whatever it was asked may be asked elsewhere."""


Metadata = tuple[tuple[str, str], ...]


class Peer:
    """A channel to `host:port` and the calls that the gateway makes on it.

    Args:
        target: Where the worker is.
        tls: How TLS is spoken to it. None: not at all. Raises ConfigError if its files cannot be used.
        host: The name that `target` was found by, which is the one that its certificate must be for. Empty: that in `target`.
        api_key: Sent with every call, for a gateway of another mesh. None: workers ask for none.
    """

    protocol: Literal["grpc"] = "grpc"
    takes_canaries = True
    gate = None
    """A worker refuses what it has no room for, and shares fairly, by itself."""

    def __init__(self, target: str, tls: ClientTls | None = None, *, host: str = "", api_key: SecretStr | None = None) -> None:
        self.target = target
        self._credentials: Metadata = (("authorization", f"Bearer {api_key.get_secret_value()}"),) if api_key is not None else ()
        self.outstanding_tokens = 0
        """Tokens sent and not yet answered, of all models."""
        self.told: UpstreamFailed | None = None
        """What callers are told while another mesh refuses the gateway's key; None of all that is there otherwise, or away."""
        self._listing: asyncio.Task[list[model_pb2.Model]] | None = None
        self._listed = 0.0
        self._channel = _channel(target, tls, host)
        self._check = self._unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
        self.pulse = Pulse(lambda: self._check(health_pb2.HealthCheckRequest()), lambda: self.outstanding_tokens > 0)
        """Whether the worker's event loop turns."""
        self._relay = Relay(self._channel, self.pulse.beat)
        self._embed = self._unary("/quadrate.v1.EmbedService/Embed", embed_pb2.EmbedRequest, embed_pb2.EmbedResponse)
        self._rerank = self._unary("/quadrate.v1.RerankService/Rerank", rerank_pb2.RerankRequest, rerank_pb2.RerankResponse)
        self._list = self._unary("/quadrate.v1.ModelService/ListModels", model_pb2.ListModelsRequest, model_pb2.ListModelsResponse)
        self._tokenizer = self._channel.unary_stream(
            "/quadrate.v1.ModelService/GetTokenizer",
            request_serializer=model_pb2.GetTokenizerRequest.SerializeToString,
            response_deserializer=model_pb2.GetTokenizerResponse.FromString,
        )
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def _unary(self, method: str, request: Any, response: Any) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        return self._channel.unary_unary(method, request_serializer=request.SerializeToString, response_deserializer=response.FromString)

    async def embed(self, request: embed_pb2.EmbedRequest, *, timeout: float | None, metadata: Metadata) -> embed_pb2.EmbedResponse:  # noqa: ASYNC109 - it travels on
        """Embed by the relay, or by a call of its own if request or answer is large or the worker has none. Raises QuadrateError."""
        try:
            if (
                self._relay.served
                and not self._credentials
                and len(request.inputs) <= MOST_INPUTS
                and options_pb2.MULTI_VECTOR not in request.outputs
            ):
                return await self._relay.embed(request, timeout, metadata)
        except grpc.aio.AioRpcError as error:
            if self._relay.served:
                raise translate(error) from error
        answer: embed_pb2.EmbedResponse = await self._translated(
            self._embed(request, timeout=timeout, metadata=(*metadata, *self._credentials))
        )
        return answer

    async def rerank(self, request: rerank_pb2.RerankRequest, *, timeout: float | None, metadata: Metadata) -> rerank_pb2.RerankResponse:  # noqa: ASYNC109 - it travels on
        """Rerank. Raises QuadrateError."""
        answer: rerank_pb2.RerankResponse = await self._translated(
            self._rerank(request, timeout=timeout, metadata=(*metadata, *self._credentials))
        )
        return answer

    def retire(self) -> None:
        """Open no call on the stream that is there: the worker is about to go."""
        self._relay.retire()

    async def _translated(self, call: Any) -> Any:
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise told_here(translate(error)) from error
        self.pulse.beat()
        return answer

    async def models(self, *, max_age_seconds: float = 0.0) -> list[model_pb2.Model]:
        """Return the cards of all models it has. Raises grpc.aio.AioRpcError.

        Callers who are content with an answer of some age share one, and one that is on its way.
        """
        if not max_age_seconds:
            return await self._models()
        if self._listing is None or time.monotonic() - self._listed > max_age_seconds:
            self._listed = time.monotonic()
            self._listing = asyncio.create_task(self._models())
            self._listing.add_done_callback(lambda task: task.cancelled() or task.exception())  # those who waited may have gone
        return await asyncio.shield(self._listing)

    async def _models(self) -> list[model_pb2.Model]:
        try:
            answer: model_pb2.ListModelsResponse = await self._list(model_pb2.ListModelsRequest(), timeout=5.0, metadata=self._of_ours())
        except grpc.aio.AioRpcError as error:
            refusal = told_here(translate(error))
            self.told = refusal if isinstance(refusal, UpstreamFailed) else None
            raise
        self.told = None
        self.pulse.beat()  # so that an idle worker need not be asked twice a second
        return list(answer.models)

    async def tokenizer(self, model: str) -> bytes:
        """Return a model's tokenizer.json. Raises grpc.aio.AioRpcError."""
        call = self._tokenizer(model_pb2.GetTokenizerRequest(model=model), timeout=30.0, metadata=self._of_ours())
        return b"".join([piece.chunk async for piece in call])

    def _of_ours(self) -> Metadata:
        """Return the headers of what no caller asked for: workers trace none of it, and log it only if it fails, as canaries."""
        return (*self._credentials, *standing_headers(CANARY), ("traceparent", unsampled()))

    async def health(self, service: str) -> AsyncGenerator[int, None]:
        """Give each health status of a service as it changes, until the connection is lost. Raises grpc.aio.AioRpcError."""
        call = self._watch(health_pb2.HealthCheckRequest(service=service))
        try:
            async for answer in call:
                self.pulse.beat()
                yield answer.status
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel; calls under way end with CANCELLED."""
        if self._listing is not None:
            self._listing.cancel()
            await asyncio.gather(self._listing, return_exceptions=True)
        await self.pulse.close()
        await self._channel.close(None)


def translate(error: grpc.aio.AioRpcError) -> QuadrateError:
    """Return an upstream's error as ours, with its reason and parameter where it gave them."""
    return failures.told(error) or _of_transport(error.code())


def told_here(error: QuadrateError) -> QuadrateError:
    """Return what an upstream's error is to our caller. Another mesh asks for a key: ours, not the caller's."""
    if isinstance(error, Unauthenticated | PermissionDenied):
        return UpstreamFailed("The mesh that serves this model refused the gateway's key. Tell the operator.")
    if isinstance(error, QuotaExceeded):
        return Overloaded(
            "The mesh that serves this model gives the gateway's key no more for now. Try again later.",
            retry_after_seconds=error.retry_after_seconds,
        )
    return error


def _of_transport(status: grpc.StatusCode) -> QuadrateError:
    """Return what a status means that no worker of ours made: their errors have details. Its text speaks of sockets and addresses.

    A connection that breaks is UNAVAILABLE, INTERNAL or CANCELLED by where the call was at that moment; no answer was there in any case.
    """
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The deadline passed before the answer was there. Allow more time, or send less at once.")
    if status in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED):
        return Internal(f"The worker that serves this model answered {status.name} without a reason. Tell the operator.")
    return Lost("The worker that serves this model was lost before it answered. Try again.")


def _channel(target: str, tls: ClientTls | None, host: str) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    named = (("grpc.ssl_target_name_override", host),) if host else ()
    return grpc.aio.secure_channel(target, tls.credentials(), options=_OPTIONS + named)
