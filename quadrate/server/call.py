"""One call as a handler sees it: ids, deadline, trace, and what is to be said of it afterwards. No gRPC types."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import quote

from quadrate.standing import BY_WORD, NOBODY, Priority, Standing, bounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.errors import QuadrateError
    from quadrate.telemetry import Trace

TENANT_HEADER = "x-quadrate-tenant"
"""On whose behalf a gateway calls a worker. A gateway takes it from nobody: it knows who calls."""
PRIORITY_HEADER = "x-quadrate-priority"
"""`interactive` or `bulk`: asked for by callers of a gateway, told to workers."""
WEIGHT_HEADER = "x-quadrate-weight"
"""The tenant's part of a busy worker, as a gateway tells it. A gateway takes it from nobody."""
MAX_TENANT_CHARACTERS = 1024
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Desk(Protocol):
    """Begins calls, and counts, logs and traces them when they end."""

    def begin(self, method: str, metadata: Mapping[str, str], remaining_seconds: float | None) -> Call:
        """Return a new call. Each one needs its `end`."""

    def end(self, call: Call, received_bytes: int, sent_bytes: int, exc: BaseException | None = None) -> QuadrateError | None:
        """Count a call that is over; return what a failed one tells its caller."""


class Held(Protocol):
    """Something that a call holds until it is over."""

    def close(self, *, failed: bool) -> None:
        """End it: the call was answered, or it was not."""


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
        charge: What the caller was charged; given back if the call fails.
        place: Its place in the process's room, which is given back when the call is over.
        size_bytes: How large the request was that came; 0 for a stream.
        has_tried: Whether an upstream answered that it could not, and all was done here that trying again can do. A call that was lost on
            the way may find its way from another gateway.
        standing: On whose behalf, and what it goes before: workers read it from headers, a gateway puts here what it knows of its caller.
    """

    method: str
    metadata: Mapping[str, str]
    request_id: str
    deadline: float | None
    trace: Trace
    log: dict[str, object] = field(default_factory=dict)
    headers: list[tuple[str, str]] = field(default_factory=list)
    desk: Desk | None = None
    standing: Standing = NOBODY
    charge: Held | None = None
    place: Held | None = None
    size_bytes: int = 0
    has_tried: bool = False
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


@lru_cache(maxsize=4096)
def standing_headers(standing: Standing) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell a worker of a standing; names are percent-encoded, since they are free and headers are ASCII."""
    headers = [(TENANT_HEADER, quote(standing.tenant)[:MAX_TENANT_CHARACTERS])]
    if standing.priority is not Priority.INTERACTIVE:
        headers.append((PRIORITY_HEADER, standing.priority.word))
    if standing.weight != 1.0:
        headers.append((WEIGHT_HEADER, repr(standing.weight)))
    return tuple(headers)


def standing_of(metadata: Mapping[str, str]) -> Standing:
    """Return what a gateway's headers say. What cannot be read counts as not said."""
    tenant, priority, weight = metadata.get(TENANT_HEADER, ""), metadata.get(PRIORITY_HEADER), metadata.get(WEIGHT_HEADER)
    if priority is None and weight is None:
        return Standing(tenant[:MAX_TENANT_CHARACTERS]) if tenant else NOBODY
    return Standing(tenant[:MAX_TENANT_CHARACTERS], BY_WORD.get(priority or "", Priority.INTERACTIVE), _number(weight or "1"))


def _number(text: str) -> float:
    try:
        return bounded(float(text))
    except ValueError:
        return 1.0


def request_id(metadata: Mapping[str, str]) -> str:
    """Return the caller's id if it is 1 to 128 printable ASCII characters, otherwise a new one."""
    given = metadata.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
