"""What the scheduler works with: models' lanes, tenants, requests' jobs, their texts, and the batches that run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from quadrate.runtime import batching
from quadrate.standing import Priority

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray
    from opentelemetry.trace import SpanContext

    from quadrate.runtime.cost import CostModel
    from quadrate.runtime.packing import Reading
    from quadrate.runtime.sessions import Session
    from quadrate.telemetry import Trace

SHORT, LONG = False, True
"""The scheduler's two lines: of long texts, or not."""
NICENESS = {SHORT: 5, LONG: 10}
"""Runs yield to the event loop and to the edge: an answer that is ready must not wait for a run. A gateway on the same cores has more of
them than runs have, but does not interrupt them (quadrate.cores). And runs of long texts yield to those of short ones."""
TextKey = tuple[tuple[str, ...], int, bytes]
"""What makes two texts of a lane the same work: the outputs wanted, where the second of a pair begins, the ids."""


class Meter(Protocol):
    """Hears what happened; called on the event loop's thread."""

    def ran(self, batch: Batch) -> None:
        """A batch has run."""

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """Texts were dropped before they ran: `cancelled`, `deadline`, `queue_timeout`, `overloaded`, `failed`."""


@dataclass(eq=False, slots=True)
class Lane:
    """A model's way through the scheduler. Two lanes of one name are two models: a new revision proves itself beside the old one.

    Attributes:
        name: The model's alias.
        session: What runs it.
        cost: What its runs take.
        waste: What they cost beside their tokens.
        broken: Whether a run raised or is stuck; no other is begun.
        failed: Why it runs no more, once its callers were told. Empty while it does.
        flying: Its texts that wait or run, by what they are; of identical ones, one.
        priced: When what its waiting texts take was last told anew, on the scheduler's clock.
    """

    name: str
    session: Session
    cost: CostModel
    waste: batching.Waste = batching.DEFAULT_WASTE
    broken: bool = False
    failed: str = ""
    flying: dict[TextKey, Text] = field(default_factory=dict)
    priced: float = -math.inf


@dataclass(eq=False, slots=True)
class Tenant:
    """On whose behalf requests of one priority come. Tenants share the runners by the work that is done for them.

    Attributes:
        name: Its name; empty for those that gave none, who are one tenant together.
        priority: Whom it goes before.
        weight: Its part of a busy worker, beside those of others.
        used: The work done for it, in seconds of a core divided by its weight, counted from what the least served one had when it came.
        clock: Its virtual time: it moves by the work done for it, divided by its requests.
        jobs: Its requests that wait or run.
        refused_from: When the refusals began that have gone on since, on the scheduler's clock.
        refused_last: When it was refused last for want of room.
    """

    name: str
    priority: Priority = Priority.INTERACTIVE
    weight: float = 1.0
    used: float = 0.0
    clock: float = 0.0
    jobs: int = 0
    refused_from: float = -math.inf
    refused_last: float = -math.inf


@dataclass(eq=False, slots=True)
class Job:
    """One request's texts on their way. Its future is resolved on the event loop's thread, once.

    Attributes:
        outputs: The names of the graph's outputs that are wanted.
        tenant: On whose behalf.
        results: For each text, in order, one array for each of `outputs`; filled by runners. Arrays that others share are read-only.
        queue_seconds: The longest that a text waited.
        inference_seconds: The longest run that it was part of.
        batches: The runs that it was part of.
        waiting_seconds: What its waiting texts will take, of short ones and of long ones; each work is counted for one waiter.
        twinned: Its texts whose work others wait for, too.
        begun: Whether one of its texts has run.
        doomed: Whether its end has been sent on its way to the event loop.
        over: Whether it has ended before its answer.
    """

    lane: Lane
    outputs: tuple[str, ...]
    deadline: float | None
    tenant: Tenant
    future: asyncio.Future[None]
    results: list[tuple[NDArray[np.float32], ...] | None]
    submitted: float
    trace: Trace | None
    left: int
    waiting_seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    twinned: list[Text] = field(default_factory=list)
    begun: bool = False
    doomed: bool = False
    over: bool = False
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    batches: list[Batch] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Text:
    """One text of a job, from when it is submitted until it has run.

    Attributes:
        lane: Its job's.
        place: Which of the job's texts it is.
        tokens: Its length.
        seconds: What it takes, as predicted.
        is_long: Whether it goes by the line of long texts.
        start: When its job's share has come to it, on its tenant's clock.
        due: When it must have begun, at the latest, to be of use; the scheduler's clock.
        key: What makes another text the same work.
        counted: Whether its work is in the account of what waits; of identical texts, one's is.
        skips: How many runs have passed it over.
        out: Whether it waits no more: its work is taken, or it was dropped.
        twins: All texts that wait for this work, itself among them; None while it is alone.
    """

    job: Job
    lane: Lane
    place: int
    reading: Reading
    tokens: int
    seconds: float
    is_long: bool
    start: float
    due: float
    key: TextKey
    counted: bool = True
    skips: int = 0
    out: bool = False
    twins: list[Text] | None = None

    @property
    def group(self) -> list[Text]:
        """All texts that wait for this work, itself among them."""
        return [self] if self.twins is None else self.twins


@dataclass(eq=False, slots=True)
class Batch:
    """Texts that run together; they are let go of once the meter has heard.

    Times are of `time.monotonic()`, except `started_ns` and `ended_ns`, which are Unix nanoseconds.

    Attributes:
        is_long: Whether it runs in the lane for long texts.
        wide: Whether it runs on all cores.
        crowd: How many runs, at its start, shared each core.
        predicted: How long it should take.
        abandoned: Whether it is stuck, and another thread took its runner's place.
        sharers: Who got an answer besides each text's own request: those who sent the same.
    """

    lane: Lane
    texts: list[Text]
    is_long: bool
    wide: bool
    crowd: float
    predicted: float
    started: float
    started_ns: int
    seconds: float = 0.0
    ended_ns: int = 0
    span: SpanContext | None = None
    abandoned: bool = False
    sharers: list[Job] = field(default_factory=list)

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
        runners: Runs at once. While a long text runs, short ones have as many besides.
        delay_seconds: How long a free runner waits for more texts, once there is one.
        queue_seconds: The longest until a request's first text runs.
        stuck_seconds: See STUCK_FACTOR.
        long_tokens: Texts of more tokens go by the lane for long ones. 0: those that are longer than a run may be.
    """

    limits: batching.Limits
    runners: int
    delay_seconds: float = 0.0
    queue_seconds: float = 10.0
    stuck_seconds: float = 10.0
    long_tokens: int = 0

    def is_long(self, tokens: int) -> bool:
        """Whether a text of so many tokens goes by the lane for long ones."""
        return tokens > (self.long_tokens or self.limits.tokens)
