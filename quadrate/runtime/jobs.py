"""What the scheduler works with: models' lanes, requests' jobs, their texts, and the batches that run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from quadrate.runtime import batching

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray
    from opentelemetry.trace import SpanContext

    from quadrate.runtime.cost import CostModel
    from quadrate.runtime.packing import Reading
    from quadrate.runtime.sessions import Session
    from quadrate.telemetry import Trace


class Meter(Protocol):
    """Hears what happened; called on the event loop's thread."""

    def ran(self, batch: Batch) -> None:
        """A batch has run."""

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """Texts were dropped before they ran: `cancelled`, `deadline`, `queue_timeout`, `overloaded`, `failed`."""


@dataclass(eq=False, slots=True)
class Lane:
    """A model's way through the scheduler.

    Attributes:
        name: The model's alias.
        session: What runs it.
        cost: What its runs take.
        waste: What they cost beside their tokens.
        broken: Whether a run raised; no other is begun.
        failed: Why it runs no more, once its callers were told. Empty while it does.
    """

    name: str
    session: Session
    cost: CostModel
    waste: batching.Waste = batching.DEFAULT_WASTE
    broken: bool = False
    failed: str = ""


@dataclass(eq=False, slots=True)
class Job:
    """One request's texts on their way. Its future is resolved on the event loop's thread, once.

    Attributes:
        outputs: The names of the graph's outputs that are wanted.
        tenant: On whose behalf.
        results: For each text, in order, one array for each of `outputs`; filled by runners.
        queue_seconds: The longest that a text waited.
        inference_seconds: The longest run that it was part of.
        batches: The runs that it was part of.
        waiting_seconds: What its waiting texts will take.
        begun: Whether one of its texts has run.
        doomed: Whether its end has been sent on its way to the event loop.
        over: Whether it has ended before its answer.
    """

    lane: Lane
    outputs: tuple[str, ...]
    deadline: float | None
    tenant: str
    future: asyncio.Future[None]
    results: list[tuple[NDArray[np.float32], ...] | None]
    submitted: float
    trace: Trace | None
    left: int
    waiting_seconds: float = 0.0
    begun: bool = False
    doomed: bool = False
    over: bool = False
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    batches: list[Batch] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Text:
    """One waiting text."""

    job: Job
    place: int
    reading: Reading
    tokens: int
    seconds: float
    start: float
    order: int

    @property
    def deadline(self) -> float | None:
        """When its caller stops waiting."""
        return self.job.deadline


@dataclass(eq=False, slots=True)
class Batch:
    """Texts that run together; they are let go of once the meter has heard.

    Times are of `time.monotonic()`, except `started_ns` and `ended_ns`, which are Unix nanoseconds.
    """

    lane: Lane
    texts: list[Text]
    wide: bool
    predicted: float
    started: float
    started_ns: int
    seconds: float = 0.0
    ended_ns: int = 0
    span: SpanContext | None = None

    @property
    def lengths(self) -> list[int]:
        """The tokens of each text."""
        return [text.tokens for text in self.texts]

    @property
    def tokens(self) -> int:
        """The tokens of all texts."""
        return sum(text.tokens for text in self.texts)


@dataclass(frozen=True, slots=True)
class Rules:
    """How the scheduler decides.

    Attributes:
        limits: How large a run may be.
        runners: Runs at once.
        delay_seconds: How long a free runner waits for more texts, once there is one.
        queue_seconds: The longest until a request's first text runs.
        stuck_seconds: See STUCK_FACTOR.
    """

    limits: batching.Limits
    runners: int
    delay_seconds: float = 0.0
    queue_seconds: float = 10.0
    stuck_seconds: float = 10.0
