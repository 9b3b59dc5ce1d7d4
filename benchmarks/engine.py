"""The engine by itself: texts in, vectors out, side by side with what it is compared to, in one process and in turn.

    python benchmarks/engine.py [--rounds 3] [--texts 1000] [--only exact fast …] [--json FILE] [--plot FILE]

*engine exact*, *fast*, *small*: the worker's scheduler and sessions in each class of precision that this machine gives, fed in two ways:
*all at once*, as its peers are, by one caller whose request has all texts; and as by *32 callers* who send one text each and wait for the
answer, which no peer can do. Its peers: see benchmarks/peers.py. All of them tokenise what they embed. Beside each speed stands the
lowest cosine of any text's vector to the same text's by sentence-transformers in fp32 (by *exact* without it).

Peers need the parity extra (make install-parity); without it most are left out. Keep the machine quiet: compare ratios of one run, never
figures of two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus
import peers

from quadrate.config import lock
from quadrate.config.worker import EmbedSettings, Precision, usable_cores
from quadrate.errors import ConfigError
from quadrate.runtime import engine, memory, processor, store
from quadrate.runtime.engine import Engine, Model
from quadrate.runtime.packing import Reading
from quadrate.runtime.scheduler import Scheduler
from quadrate.v1.options_pb2 import RIGHT
from quadrate.worker.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from peers import Encode, Loop

    from quadrate.runtime.jobs import Batch, Lane

    Array = NDArray[np.float32]

ROOT = Path(__file__).resolve().parent.parent
BASE = "sentence-transformers fp32"
"""What others are compared with, where it is there."""
PACKAGES = ("onnxruntime", "openvino", "numpy", "tokenizers", "torch", "transformers", "sentence-transformers")
CALLERS = 32
EXACT = f"engine exact, {CALLERS} callers"
"""What is compared with sorted loops, although nobody sorts for it; the base without the other one."""
Measure = Callable[[], float]


@cache
def load_model(precision: Precision = "exact") -> Model:
    """Return the quick start's model, as the worker loads it. Raises ConfigError where this machine cannot give the class."""
    card = lock.load(ROOT / "configs" / "models.yaml").models["minilm"]
    return engine.load("minilm", card, store.ensure("minilm", card), EmbedSettings(precision=precision))


def read(model: Model, texts: Sequence[str]) -> list[Reading]:
    """Tokenise texts, cut on the right."""
    return [Reading.of(model.tokenizer.read(model.tokenizer.fit(ids, RIGHT, param="text")[0])) for ids in model.tokenizer.encode(texts)]


class _Silence:
    """A meter that hears nothing."""

    def ran(self, batch: Batch) -> None:
        """See Meter."""

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """See Meter."""
        raise RuntimeError(f"{texts} texts of {lane.name} were dropped: {reason}")


async def _run_engine(texts: Iterable[str], *, callers: int, precision: Precision, each: int = 1) -> tuple[float, Array]:
    """Let callers take so many texts `each`, time after time; return texts a second, and the vectors in order."""
    model, settings = load_model(precision), EmbedSettings(precision=precision)
    scheduler = Scheduler(rules_of(settings, on_gpu=False), meter=_Silence(), on_failure=lambda lane: sys.exit(lane.failed))
    runs = Engine(model, scheduler)
    await runs.prove()
    waiting = enumerate(texts)
    found: dict[int, Array] = {}

    async def call() -> None:
        while mine := list(islice(waiting, each)):
            rows = (await runs.run(read(model, [text for _, text in mine]), ["unit"])).rows["unit"]
            found.update(zip((place for place, _ in mine), rows, strict=True))

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - started
    await scheduler.close()
    return len(found) / seconds, np.stack([found[place] for place in range(len(found))])


def texts_per_second_of_engine(texts: Sequence[str], *, seconds: float, callers: int = CALLERS, precision: Precision = "exact") -> float:
    """Return what the engine does for so many callers, over texts taken in turn for about so many seconds."""

    def until(end: float) -> Iterable[str]:
        for text in cycle(texts):
            if time.perf_counter() > end:
                return
            yield text

    load_model(precision)
    return asyncio.run(_run_engine(until(time.perf_counter() + seconds), callers=callers, precision=precision))[0]


class Contest:
    """The contenders over the same texts, and the vectors that each gave.

    Args:
        texts: What is embedded.
        folder: Where a graph may be written.
    """

    def __init__(self, texts: Sequence[str], folder: Path) -> None:
        self.texts = texts
        self.vectors: dict[str, Array] = {}
        self.budgets: dict[str, int] = {}
        """Of each loop: the tokens of a run."""
        self.left_out: dict[str, str] = {}
        """Who could not take part, and why."""
        self._folder = folder

    def measures(self, only: Sequence[str] | None) -> dict[str, Measure]:
        """Return a measure of each contender, by name, all of them warm; with `only`, of those whose names have one of these words."""
        classes: tuple[Precision, ...] = get_args(Precision)
        entries: dict[str, Callable[[], Measure]] = {
            name: partial(self._engine, name, precision, callers, each)
            for precision in classes
            for name, callers, each in (
                (f"engine {precision}, all at once", 1, len(self.texts)),
                (f"engine {precision}, {CALLERS} callers", CALLERS, 1),
            )
        }
        entries |= {name: partial(self._peer, name, make) for name, make in self._peers().items()}
        found: dict[str, Measure] = {}
        for name, enter in entries.items():
            if only and not any(word in name for word in only):
                continue
            try:
                found[name] = enter()
            except (ImportError, ConfigError) as reason:
                self.left_out[name] = str(reason).partition("\n")[0]
                print(f"left out: {name}: {self.left_out[name]}")
        return found

    def _engine(self, name: str, precision: Precision, callers: int, each: int) -> Measure:
        load_model(precision)

        def measure() -> float:
            speed, self.vectors[name] = asyncio.run(_run_engine(self.texts, callers=callers, precision=precision, each=each))
            return speed

        return measure

    def _peer(self, name: str, make: Callable[[], Encode]) -> Measure:
        encode = make()
        encode(self.texts[:64])

        def measure() -> float:
            started = time.perf_counter()
            self.vectors[name] = encode(self.texts)
            return len(self.texts) / (time.perf_counter() - started)

        return measure

    def _peers(self) -> dict[str, Callable[[], Encode]]:
        model = load_model()
        tokenise = partial(read, model)
        kinds = ("fp32", "bf16", "onnx", "openvino")
        return {
            **{f"sentence-transformers {kind}": partial(peers.sentence_transformers, model, kind) for kind in kinds},
            "ONNX Runtime as fastembed": partial(peers.as_fastembed, model, self._folder, tokenise),
            "ONNX Runtime as infinity": partial(peers.as_infinity, model, self._folder, tokenise),
            "loop, packed": lambda: self._loop("loop, packed", peers.packed_loop(model)),
            "loop, padded export": lambda: self._loop("loop, padded export", peers.padded_loop(model, self._folder)),
        }

    def _loop(self, name: str, loop: Loop) -> Encode:
        budget = self.budgets[name] = loop.best(read(load_model(), self.texts[: len(self.texts) // 2]))
        return lambda texts: loop.vectors(read(load_model(), texts), budget)


def alternate(rounds: int, what: dict[str, Measure], *, unit: str = "texts/s") -> dict[str, list[float]]:
    """Take each measure once a round, in turn and then in reverse, and return the figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds):
        for name in list(what)[:: -1 if number % 2 else 1]:
            figures[name].append(what[name]())
            print(f"  round {number + 1}: {name}: {figures[name][-1]:.1f} {unit}", flush=True)
    return figures


def report(contest: Contest, figures: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, ratios, cosines, and what they were measured on."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    base = next(name for name in (BASE, EXACT) if name in medians)
    loops = [value for name, value in medians.items() if name.startswith("loop")]
    lengths = [len(reading) for reading in read(load_model(), contest.texts)]
    return {
        "texts_per_second": medians,
        "tokens_per_second": {name: value * float(np.mean(lengths)) for name, value in medians.items()},
        "rounds": figures,
        "base": base,
        "ratio_to_base": {name: value / medians[base] for name, value in medians.items()},
        "lowest_cosine_to_base": {name: lowest_cosine(vectors, contest.vectors[base]) for name, vectors in contest.vectors.items()},
        "exact_to_best_loop": medians[EXACT] / max(loops) if loops and EXACT in medians else None,
        "best_budget": contest.budgets,
        "left_out": contest.left_out,
        "tokens": {"texts": len(lengths), "mean": float(np.mean(lengths)), "p95": float(np.percentile(lengths, 95)), "most": max(lengths)},
        "machine": machine(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def lowest_cosine(vectors: Array, others: Array) -> float:
    """Return the lowest cosine of any row to the same row of the others."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return float(((vectors * others).sum(axis=1) / lengths).min())


def installed(package: str) -> str:
    """Return a package's version; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a table in Markdown."""
    lines = [f"| what | texts/s | tokens/s | times {found['base']} | lowest cosine |", "|---|---|---|---|---|"]
    for name, value in found["texts_per_second"].items():
        budget = f", {found['best_budget'][name]} tokens a run" if name in found["best_budget"] else ""
        speeds = f"{value:.1f} | {found['tokens_per_second'][name]:,.0f} | {found['ratio_to_base'][name]:.2f}"
        lines.append(f"| {name}{budget} | {speeds} | {found['lowest_cosine_to_base'][name]:.5f} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the speeds as bars, the engine's in another colour, with the lowest cosine beside each. Needs matplotlib (the extra bench)."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    names = sorted(found["tokens_per_second"], key=found["tokens_per_second"].__getitem__)
    speeds = [found["tokens_per_second"][name] for name in names]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(names) + 1.5), layout="constrained")
    bars = axes.barh(names, speeds, color=["#1f6feb" if name.startswith("engine") else "#9aa4b2" for name in names])
    labels = [f"{found['ratio_to_base'][name]:.2f} x, cosine {found['lowest_cosine_to_base'][name]:.5f}" for name in names]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_xlim(right=max(speeds) * 1.35)
    axes.set_xlabel(f"tokens a second, {found['machine']['cores']} cores of {found['machine']['processor']}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def machine() -> dict[str, Any]:
    """Return what figures were measured on."""
    return {"processor": processor.name(), "cores": usable_cores(), "python": platform.python_version()}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only contenders whose names have one of these words")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a picture; needs matplotlib, the extra bench")
    options = parser.parse_args()
    memory.settle()
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(corpus.paragraphs(options.texts), Path(folder))
        found = report(contest, alternate(options.rounds, contest.measures(options.only)))
    print(f"\n{table(found)}")
    if found["exact_to_best_loop"]:
        print(f"\nengine exact to the better loop: {found['exact_to_best_loop']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
