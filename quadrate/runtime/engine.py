"""One loaded model: tokenizer, graph, sessions, and its lane through the scheduler."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import ConfigError, Overloaded, Unavailable
from quadrate.runtime import folder, golden
from quadrate.runtime.batching import Waste
from quadrate.runtime.cost import CostModel, Shape
from quadrate.runtime.fingerprint import fingerprint
from quadrate.runtime.graphs import build
from quadrate.runtime.jobs import Lane
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import AGREEMENT, OPENVINO, NullSession, choose, open_session
from quadrate.runtime.sessions.own_graph import OwnGraphSession
from quadrate.runtime.weights import Weights
from quadrate.standing import NOBODY
from quadrate.telemetry import log
from quadrate.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import Precision, WorkerSettings
    from quadrate.runtime.folder import Facts
    from quadrate.runtime.graphs import Form
    from quadrate.runtime.jobs import Job
    from quadrate.runtime.scheduler import Scheduler
    from quadrate.runtime.sessions import Session, Way
    from quadrate.runtime.store import StoredModel
    from quadrate.standing import Standing
    from quadrate.telemetry import Trace

CANARIES = (
    "A model is ready once it has answered.",
    "yes",
    "One text is longer than the others, so that the batch has places to fill. " * 3,
)
OPENVINO_CAUSAL_TOKENS = 8192
"""The most that a causal model reads of a text through OpenVINO, which masks every pair of tokens."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from its folder, before anything runs.

    Attributes:
        alias: Its name here.
        card: What the catalogue says.
        facts: What card and folder say together.
        revision: What answers name.
        fingerprint: What they depend on; see quadrate.runtime.fingerprint.
        tokenizer: Reads texts as the model does.
        session: Runs it.
        precision: The class of arithmetic it runs in.
        forms: What its graph gives, by the name of the output.
        weight_bytes: What its weights take.
        created: When it was loaded, in Unix seconds.
    """

    alias: str
    card: ModelCard
    facts: Facts
    revision: str
    fingerprint: str
    tokenizer: TextTokenizer
    session: Session
    precision: Precision
    forms: Mapping[str, Form]
    weight_bytes: int
    created: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a request's texts gave.

    Attributes:
        rows: For each output, by name, what it gave for each text, in order: `[width]` or `[tokens, width]`, float32.
        queue_seconds: The longest that one of them waited.
        inference_seconds: The longest run that one of them was part of.
    """

    rows: Mapping[str, Sequence[NDArray[np.float32]]]
    queue_seconds: float
    inference_seconds: float


def load(alias: str, card: ModelCard, stored: StoredModel, settings: WorkerSettings) -> Model:
    """Read a model and open its sessions. Takes a second or more: call it off the event loop.

    Raises ConfigError, which says why, for a model that cannot be served right.
    """
    way = choose(settings.device, settings.precision, gpu_memory_bytes=settings.gpu_memory_mib * 2**20)
    told = folder.read(stored.path, card)
    facts = limited(told, way)
    tokenizer = _tokenizer(facts)
    opened = _own(facts, way, settings) if facts.graph else _ours(facts, way, settings)
    return Model(
        alias,
        card,
        facts,
        stored.revision,
        fingerprint(card, told, stored.revision),
        tokenizer,
        opened[0],
        settings.precision,
        *opened[1:],
        created=int(time.time()),
    )


def limited(facts: Facts, way: Way) -> Facts:
    """Return the facts with the limit on tokens that a way to run the model has; the log says so where it is lower than the model's own."""
    if way.provider != OPENVINO or not facts.encoder.is_causal or facts.max_tokens <= OPENVINO_CAUSAL_TOKENS:
        return facts
    reason = "OpenVINO's causal attention needs memory for every pair of tokens; precision exact and small read the whole length"
    log.warn("long texts are cut or refused", max_tokens=OPENVINO_CAUSAL_TOKENS, model_max_tokens=facts.max_tokens, reason=reason)
    return replace(facts, max_tokens=OPENVINO_CAUSAL_TOKENS)


def _ours(facts: Facts, way: Way, settings: WorkerSettings) -> tuple[Session, Mapping[str, Form], int]:
    """Write the model's graph and open it; return the session, what it gives, and the bytes of its weights."""
    weights = Weights(facts.path)
    graph = build(facts, weights, way.arithmetic, way.kernels)
    is_null = settings.session == "null"
    session: Session = _null(graph.outputs, settings) if is_null else open_session(graph, way, threads=settings.threads)
    weights.release()
    return session, graph.outputs, graph.weight_bytes


def _own(facts: Facts, way: Way, settings: WorkerSettings) -> tuple[Session, Mapping[str, Form], int]:
    """Open the graph that the folder brings; return as `_ours` does."""
    session = OwnGraphSession(facts, way, threads=settings.threads)
    if settings.session == "onnx":
        return session, session.forms, session.weight_bytes
    session.close()
    return _null(session.forms, settings), session.forms, session.weight_bytes


def _null(forms: Mapping[str, Form], settings: WorkerSettings) -> NullSession:
    return NullSession(forms, run_seconds=settings.null_run_ms / 1e3, token_seconds=settings.null_token_us / 1e6)


def _tokenizer(facts: Facts) -> TextTokenizer:
    path = facts.path / "tokenizer.json"
    try:
        tokenizer = TextTokenizer.from_json(folder.tokenizer_source(facts.path), max_tokens=facts.max_tokens)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; fetch the model again.") from error
    if tokenizer.vocabulary_size > facts.encoder.vocabulary_size:
        raise ConfigError(
            f"{path}: has {tokenizer.vocabulary_size} entries, the model {facts.encoder.vocabulary_size}; they do not belong together."
        )
    if tokenizer.max_content_tokens < 1:
        raise ConfigError(
            f"{facts.path}: the limit of {facts.max_tokens} tokens leaves no room beside {tokenizer.special_count} special ones."
        )
    return tokenizer


class Engine:
    """A model that runs.

    Args:
        model: What runs.
        scheduler: Where its texts queue, with those of the process's other models.
    """

    def __init__(self, model: Model, scheduler: Scheduler) -> None:
        self.model = model
        self._scheduler = scheduler
        size = model.facts.encoder
        self.lane = Lane(model.alias, model.session, CostModel(Shape.of(size)), Waste.of(size.width))

    async def run(
        self,
        readings: Sequence[Reading],
        outputs: Sequence[str],
        *,
        deadline: float | None = None,
        standing: Standing = NOBODY,
        trace: Trace | None = None,
    ) -> Result:
        """Run texts and return these of the model's outputs. Raises Overloaded, DeadlineExceeded, Unavailable."""
        job = await self._scheduler.run(self.lane, readings, outputs=outputs, deadline=deadline, standing=standing, trace=trace)
        if trace is not None:
            _tell(trace, job)
        columns = zip(*(row for row in job.results if row is not None), strict=True)
        return Result(dict(zip(outputs, map(list, columns), strict=True)), job.queue_seconds, job.inference_seconds)

    async def prove(self) -> None:
        """Let the model answer before anybody relies on it: alone and in a batch, then its golden vectors.

        Raises ConfigError, which says what is wrong, if it does not answer right.
        """
        tokenizer, outputs = self.model.tokenizer, tuple(self.model.forms)
        readings = [Reading.of(tokenizer.read(ids[: tokenizer.max_content_tokens])) for ids in tokenizer.encode(CANARIES)]
        together = await self._try(readings, outputs)
        for place, reading in enumerate(readings):
            alone = await self._try([reading], outputs)
            for output in outputs:
                self._compare(together[output][place], alone[output][0])
        found = await golden.cases(self.model)
        problems = [problem for case in found for problem in case.judge(await self._try(case.readings, case.outputs))]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ConfigError(
                f"{self.model.card.golden}: {problems[0]}{more}; the model is not served in precision {self.model.precision}."
            )

    async def _try(self, readings: Sequence[Reading], outputs: Sequence[str]) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """As `run`, for a model that has time while others are busy. Raises ConfigError if it fails."""
        while True:
            try:
                return (await self.run(readings, outputs)).rows
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_seconds or 1.0)
            except Unavailable as error:
                raise ConfigError(f"{self.model.alias}: {self.lane.failed or error.message}") from error

    def _compare(self, row: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
        agreement = AGREEMENT[self.model.precision]
        if not (np.isfinite(row).all() and np.isfinite(alone).all()):
            raise ConfigError(
                f"{self.model.alias}: it answers with numbers that are not finite; the model is not served. Check its weights."
            )
        if np.abs(row - alone).max() > agreement * max(1.0, float(np.abs(alone).max())):
            raise ConfigError(f"{self.model.alias}: the canary's answer alone is not that in a batch; the model is not served.")


def _tell(trace: Trace, job: Job) -> None:
    """Note the stages that were timed elsewhere: the longest wait, and the run that ended last."""
    last = max(job.batches, key=lambda batch: batch.ended_ns)
    trace.add("queue", last.started_ns - round(job.queue_seconds * 1e9), last.started_ns)
    spans = tuple(batch.span for batch in job.batches if batch.span is not None)
    trace.add("inference", last.started_ns, last.ended_ns, {"quadrate.batches": len(job.batches)}, links=spans)
