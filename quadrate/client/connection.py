"""One channel, and calls over it that are tried again within their deadline."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from quadrate.client.failures import from_rpc
from quadrate.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from quadrate.client.retries import Retries
    from quadrate.client.target import Target
    from quadrate.config.tls import ClientTls
    from quadrate.errors import QuadrateError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back is found within our own back-off, not after grpc's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A stream may last for hours and has no deadline: a far end that is gone without a word must be noticed.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Retries are ours: they know which errors pass, and what the server asked for.
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the caller's time is over, on the clock of `time.monotonic()`. `at` is None if it has no end."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline so many seconds from now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    def remaining_seconds(self) -> float | None:
        """Return the time that is left, or None if it has no end. Raises DeadlineExceeded if there is none."""
        if self.at is None:
            return None
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("The time allowed for this call is over. Allow more by timeout_seconds, or send less at once.")
        return left

    def allows(self, seconds: float) -> bool:
        """Tell whether so much time is left."""
        return self.at is None or time.monotonic() + seconds < self.at


class Connection:
    """A channel to one target, opened at the first call. Belongs to the event loop that makes that call."""

    def __init__(self, target: Target, *, metadata: Sequence[tuple[str, str]], tls: ClientTls, retries: Retries) -> None:
        self._target = target
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._random = random.Random()  # noqa: S311 - jitter
        self.retries = retries
        self.metadata = metadata

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, open."""
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def _open(self) -> grpc.aio.Channel:
        if not self._target.tls:
            return grpc.aio.insecure_channel(self._target.address, options=_OPTIONS)
        return grpc.aio.secure_channel(self._target.address, self._tls.credentials(), options=_OPTIONS)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled. It opens again at the next call."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace=None)

    async def call(self, method: Callable[[grpc.aio.Channel], Callable[..., Awaitable[Any]]], request: Any, deadline: Deadline) -> Any:
        """Call `method(channel)` until it succeeds, its failure is final, or trying again would miss the deadline.

        Raises the errors of quadrate.errors.
        """
        attempt = 1
        while True:
            try:
                return await method(self.channel)(request, timeout=deadline.remaining_seconds(), metadata=self.metadata)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure)
            await self.wait_before_retry(error, attempt, deadline)
            attempt += 1

    async def wait_before_retry(self, error: QuadrateError, attempt: int, deadline: Deadline) -> None:
        """Wait as long as it takes until another attempt has a chance. Raises `error` if it has none."""
        seconds = self.wait_seconds(error, attempt)
        if seconds is None or not deadline.allows(seconds):
            raise error
        await asyncio.sleep(seconds)

    def wait_seconds(self, error: QuadrateError, attempt: int) -> float | None:
        """Return how long to wait after the `attempt`-th failure, or None if there is to be no other."""
        return self.retries.wait_seconds(error, attempt, draw=self._random.random())
