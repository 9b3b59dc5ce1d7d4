"""One call as a handler sees it: ids, deadline, trace, and what is to be said of it afterwards. No gRPC types."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.errors import QuadrateError
    from quadrate.telemetry import Trace

TENANT_HEADER = "x-quadrate-tenant"
"""On whose behalf a gateway calls a worker. A gateway takes it from nobody: it knows who calls."""
MAX_TENANT_CHARACTERS = 1024
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Desk(Protocol):
    """Begins calls, and counts, logs and traces them when they end."""

    def begin(self, method: str, metadata: Mapping[str, str], remaining_seconds: float | None) -> Call:
        """Return a new call. Each one needs its `end`."""

    def end(self, call: Call, received_bytes: int, sent_bytes: int, exc: BaseException | None = None) -> QuadrateError | None:
        """Count a call that is over; return what a failed one tells its caller."""


@dataclass(slots=True)
class Call:
    """A call being served.

    Args:
        method: The RPC, for example `quadrate.v1.EmbedService/Embed`.
        metadata: The request's headers, names in lower case. Binary headers are left out.
        request_id: The caller's `x-request-id`, or one made here.
        deadline: When the caller stops waiting, on the clock of `time.monotonic()`. None if it did not say.
        trace: The call's part of its trace.
        log: What the canonical log line and the metrics say: `model` (an alias we know, never a caller's word), `principal`, `inputs`,
            `tokens` and whatever else explains the call. Never a text of a user, never a key.
        headers: Headers of the answer besides `x-request-id`, which every answer has.
        desk: Where calls begin and end; for methods that carry many calls on one stream.
        tenant: On whose behalf: workers read it from TENANT_HEADER, a gateway puts the caller's name here. Empty for nobody in particular.
    """

    method: str
    metadata: Mapping[str, str]
    request_id: str
    deadline: float | None
    trace: Trace
    log: dict[str, object] = field(default_factory=dict)
    headers: list[tuple[str, str]] = field(default_factory=list)
    desk: Desk | None = None
    tenant: str = ""
    ids: Mapping[str, str] = field(init=False)
    """What every log line about this call has: `trace_id`, `span_id`, `request_id`."""

    def __post_init__(self) -> None:
        self.ids = {**self.trace.ids, "request_id": self.request_id}

    def remaining_seconds(self) -> float | None:
        """How long the caller will still wait; negative once it is too late, None if it did not say."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def surface(self) -> Literal["grpc", "rest"]:
        """The wire the caller speaks. The edge strips the header from callers, so only the edge's transcoder can have set it."""
        return "rest" if "x-envoy-original-path" in self.metadata else "grpc"


def tenant_header(tenant: str) -> tuple[str, str]:
    """Return the header that names a tenant: percent-encoded, since names are free and headers are ASCII."""
    return TENANT_HEADER, _encoded(tenant)


@lru_cache(maxsize=4096)
def _encoded(tenant: str) -> str:
    return quote(tenant)[:MAX_TENANT_CHARACTERS]


def request_id(metadata: Mapping[str, str]) -> str:
    """Return the caller's id if it is 1 to 128 printable ASCII characters, otherwise a new one."""
    given = metadata.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
