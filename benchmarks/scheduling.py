"""What the scheduler promises: short texts beside long ones, the first request after a pause, tenants beside each other.

    python benchmarks/scheduling.py mixed     short texts' p99 with and without long ones, open arrivals at 70 % of what the engine can do
    python benchmarks/scheduling.py idle      the first request after a pause against those that follow it, at a worker of its own
    python benchmarks/scheduling.py tenants   a tenant of single requests beside one that floods, under its own name and under the other's
    python benchmarks/scheduling.py padding   how many places attention's padded view has for each token

`mixed`: 85 % are queries, log-normal with a median of 12 tokens, 15 % are chunks, normal with 380 tokens and a deviation of 90. The
engine runs in this process on token ids, as a gateway sends them. First its capacity is measured on the mix, by 32 callers that send one
text after another; then texts arrive at random (Poisson) at 70 % of that rate, and the same short ones at the same times without
the long ones. Rounds alternate; figures are medians over rounds. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus
import mesh

from quadrate.config import lock
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine, memory, store
from quadrate.runtime.engine import Engine, Model
from quadrate.runtime.packing import Reading
from quadrate.runtime.scheduler import Scheduler
from quadrate.standing import Standing
from quadrate.v1 import embed_pb2, embed_pb2_grpc, options_pb2
from quadrate.v1.options_pb2 import RIGHT
from quadrate.worker.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from quadrate.runtime.jobs import Batch, Lane

ROOT = Path(__file__).resolve().parent.parent
SHORT_SHARE, SHORT_MEDIAN, SHORT_SIGMA = 0.85, 12, 0.6
LONG_MEAN, LONG_DEVIATION, LONG_MOST = 380, 90, 512
LOAD = 0.7
CALLERS = 32
PAUSE_SECONDS, NEXT_REQUESTS = 3.0, 5
FLOOD_CALLERS, FLOOD_TEXTS = 16, 64


@cache
def load_model() -> Model:
    """Return the quick start's model, as the worker loads it; EMBED_PRECISION says in which precision."""
    card = lock.load(ROOT / "configs" / "models.yaml").models["minilm"]
    return engine.load("minilm", card, store.ensure("minilm", card), EmbedSettings())


def read(texts: Sequence[str]) -> list[Reading]:
    """Tokenise texts, cut on the right."""
    tokenizer = load_model().tokenizer
    return [Reading.of(tokenizer.read(tokenizer.fit(ids, RIGHT, param="text")[0])) for ids in tokenizer.encode(texts)]


@dataclass
class Notes:
    """A meter that remembers what runs looked like."""

    places: int = 0
    tokens: int = 0
    runs: int = 0
    wide_views: int = 0

    def ran(self, batch: Batch) -> None:
        """See Meter."""
        lengths = batch.lengths
        view = len(lengths) * max(lengths)
        self.places, self.tokens, self.runs = self.places + view, self.tokens + sum(lengths), self.runs + 1
        self.wide_views += view >= 1.3 * sum(lengths)

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """See Meter."""
        if reason != "cancelled":
            raise SystemExit(f"{texts} texts of {lane.name} were dropped: {reason}")


@asynccontextmanager
async def open_engine(notes: Notes) -> AsyncIterator[Engine]:
    """Give the quick start's model as a worker runs it."""
    settings = EmbedSettings(queue_timeout_ms=120_000.0)  # nothing is refused while other work disturbs the machine
    scheduler = Scheduler(rules_of(settings, on_gpu=False), meter=notes, on_failure=lambda lane: sys.exit(lane.failed))
    try:
        found = Engine(load_model(), scheduler)
        await found.prove()
        yield found
    finally:
        await scheduler.close()


@dataclass
class Source:
    """Makes texts of given lengths, each another one: of equal ones only one would run."""

    chance: random.Random = field(default_factory=lambda: random.Random(11))  # noqa: S311 - lengths, not secrets

    def __post_init__(self) -> None:
        self._ids = np.concatenate([reading.ids[1:-1] for reading in read(corpus.paragraphs(400))])
        self._read = load_model().tokenizer.read

    def text(self, tokens: int) -> Reading:
        """Return a text of so many tokens, special ones included."""
        start = self.chance.randrange(len(self._ids) - tokens)
        return Reading.of(self._read(self._ids[start : start + max(1, tokens - 2)]))

    def short(self) -> Reading:
        """Return a query."""
        return self.text(min(64, max(3, round(self.chance.lognormvariate(np.log(SHORT_MEDIAN), SHORT_SIGMA)))))

    def long(self) -> Reading:
        """Return a chunk."""
        return self.text(min(LONG_MOST, max(65, round(self.chance.gauss(LONG_MEAN, LONG_DEVIATION)))))

    def mixed(self) -> Reading:
        """Return a query or a chunk."""
        return self.short() if self.chance.random() < SHORT_SHARE else self.long()


async def capacity(runs: Engine, texts: Sequence[Reading], seconds: float) -> float:
    """Return the texts a second that callers get who send one after another."""
    end, done = time.perf_counter() + seconds, 0
    waiting = cycle(texts)

    async def call() -> None:
        nonlocal done
        for text in waiting:
            if time.perf_counter() > end:
                return
            await runs.run([text], ["unit"])
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return done / (time.perf_counter() - started)


async def arrive(runs: Engine, arrivals: Sequence[tuple[float, Reading]]) -> list[float]:
    """Send each text at its second, whatever has become of those before, and return how long each took."""
    started = time.perf_counter()

    async def send(at: float, text: Reading) -> float:
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        due = started + at
        await runs.run([text], ["unit"])
        return time.perf_counter() - due

    return await asyncio.gather(*(send(at, text) for at, text in arrivals))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    return {name: round(float(np.percentile(seconds, share)) * 1e3, 2) for name, share in (("p50_ms", 50), ("p99_ms", 99))}


async def _mixed(options: argparse.Namespace) -> dict[str, Any]:
    source, notes = Source(), Notes()
    async with open_engine(notes) as runs:
        texts = [source.mixed() for _ in range(4000)]
        await capacity(runs, texts, 2.0)
        most = statistics.median([await capacity(runs, texts, options.seconds / 2) for _ in range(3)])
        rounds = []
        for number in range(options.rounds):
            arrivals = _poisson(source, LOAD * most, options.seconds)
            short = [(at, text) for at, text in arrivals if len(text) <= 64]
            runs_of = {"mixed": arrivals, "short alone": short}
            found = {name: await arrive(runs, runs_of[name]) for name in sorted(runs_of, reverse=bool(number % 2))}
            beside = [seconds for seconds, (_, text) in zip(found["mixed"], arrivals, strict=True) if len(text) <= 64]
            long = [seconds for seconds, (_, text) in zip(found["mixed"], arrivals, strict=True) if len(text) > 64]
            rounds.append(
                {"short alone": percentiles(found["short alone"]), "short beside long": percentiles(beside), "long": percentiles(long)}
            )
            print(f"  round {number + 1}: {rounds[-1]}", flush=True)
    ratios = [one["short beside long"]["p99_ms"] / one["short alone"]["p99_ms"] for one in rounds]
    return {
        "texts/s at most": round(most, 1),
        "load": LOAD,
        "rounds": rounds,
        "short p99, times alone": round(statistics.median(ratios), 2),
    }


def _poisson(source: Source, rate: float, seconds: float) -> list[tuple[float, Reading]]:
    """Return texts and when they come: as many as `rate` makes in so many seconds."""
    found, now = [], 0.0
    while (now := now + source.chance.expovariate(rate)) < seconds:
        found.append((now, source.mixed()))
    return found


async def _tenants(options: argparse.Namespace) -> dict[str, Any]:
    source, notes = Source(), Notes()
    async with open_engine(notes) as runs:
        alone = await _quiet(runs, source, options.seconds / 4, tenant="quiet")
        figures = {"alone": percentiles(alone)}
        for name, tenant in (("its own tenant", "quiet"), ("the flood's tenant", "flood")):
            flood = [asyncio.create_task(_flood(runs, source)) for _ in range(FLOOD_CALLERS)]
            await asyncio.sleep(1.0)
            figures[name] = percentiles(await _quiet(runs, source, options.seconds, tenant=tenant))
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
    return figures


async def _flood(runs: Engine, source: Source) -> None:
    while True:
        await runs.run([source.text(46) for _ in range(FLOOD_TEXTS)], ["unit"], standing=Standing("flood"))


async def _quiet(runs: Engine, source: Source, seconds: float, *, tenant: str) -> list[float]:
    """Send a query every 50 ms or when the last was answered."""
    end, found = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        started = time.perf_counter()
        await runs.run([source.short()], ["unit"], standing=Standing(tenant))
        found.append(time.perf_counter() - started)
        await asyncio.sleep(max(0.0, 0.05 - found[-1]))
    return found


async def _padding(options: argparse.Namespace) -> dict[str, Any]:
    """Paragraphs and queries from as many callers as fill a run, and from a few."""
    source, figures = Source(), {}
    kinds = {"paragraphs": read(corpus.paragraphs(1000)), "queries": [source.short() for _ in range(4000)]}
    for name, texts in kinds.items():
        for callers in (4, CALLERS):
            notes = Notes()
            async with open_engine(notes) as runs:
                await _closed(runs, texts, callers, options.seconds / 4)
            figures[f"{name}, {callers} callers"] = {
                "places for each token": round(notes.places / notes.tokens, 3),
                "tokens a run": round(notes.tokens / notes.runs, 1),
                "runs of 1.3 and more": round(notes.wide_views / notes.runs, 3),
            }
    return figures


async def _closed(runs: Engine, texts: Sequence[Reading], callers: int, seconds: float) -> None:
    end, waiting = time.perf_counter() + seconds, cycle(texts)

    async def call() -> None:
        while time.perf_counter() < end:
            await runs.run([next(waiting)], ["unit"])

    await asyncio.gather(*(call() for _ in range(callers)))


async def _after_pauses(port: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return how long first requests after a pause took, and the median of those that follow each."""
    first, following = [], []
    texts = cycle(corpus.paragraphs(200))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)

        async def seconds(text: str) -> float:
            started = time.perf_counter()
            await stub.Embed(embed_pb2.EmbedRequest(model="minilm", inputs=[options_pb2.Input(text=text)], truncation=RIGHT))
            return time.perf_counter() - started

        for text in islice(texts, rounds):
            for _ in range(20):
                await seconds(text)
            await asyncio.sleep(PAUSE_SECONDS)
            first.append(await seconds(text))
            following.append(statistics.median([await seconds(text) for _ in range(NEXT_REQUESTS)]))
    return first, following


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """The first request after a pause in which the worker gave its memory back, and the next ones with the same text."""
    with mesh.Mesh() as started:
        first, following = asyncio.run(_after_pauses(started.worker_port, 5 * options.rounds))
    ratios = [one / other for one, other in zip(first, following, strict=True)]
    return {
        "first, ms": round(statistics.median(first) * 1e3, 2),
        "next, ms": round(statistics.median(following) * 1e3, 2),
        "first, times the next": round(statistics.median(ratios), 2),
    }


def main() -> None:
    """Run one of the commands."""
    commands: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "mixed": lambda options: asyncio.run(_mixed(options)),
        "idle": idle,
        "tenants": lambda options: asyncio.run(_tenants(options)),
        "padding": lambda options: asyncio.run(_padding(options)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rounds", type=int, default=3, help="how often each measure is taken")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one measure")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as a worker does
    memory.settle()
    result = commands[options.command](options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
