"""The engine by itself: texts in, vectors out, side by side with what it is compared to, in one process and in turn.

    python benchmarks/engine.py [--rounds 3] [--texts 1000] [--json FILE]

- *engine*: the worker's scheduler and sessions, fed as by 32 callers who send one text each and wait for the answer.
- *loop*: ONNX Runtime over everything sorted by length beforehand, which only an offline job can do; two (one for each core) one-thread
  runs at once, the best token budget of a sweep, the slow fusions off. Over our packed graph, and over transformers' own padded export.
  The better of the two is what the engine is held to.
- *sentence-transformers*: fp32, batch 32, all cores, in process.

All of them tokenise what they embed. Export and sentence-transformers need the parity extra (make install-parity); without it they are
left out.
Keep the machine quiet: compare ratios of one run, never figures of two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile
from quadrate.config.worker import EmbedSettings, usable_cores
from quadrate.runtime import engine, memory, store
from quadrate.runtime.engine import Engine, Model
from quadrate.runtime.packing import Reading
from quadrate.runtime.scheduler import Scheduler
from quadrate.v1.options_pb2 import RIGHT
from quadrate.worker.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quadrate.runtime.jobs import Batch, Lane


ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (128, 192, 256, 384, 512, 1024)
CALLERS = 32
Measure = Callable[[], float]


@cache
def load_model() -> Model:
    """Return the quick start's model, as the worker loads it."""
    card = yamlfile.load(ROOT / "configs" / "models.yaml", ModelsFile).models["minilm"]
    return engine.load("minilm", card, store.ensure("minilm", card), EmbedSettings())


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


async def _run_engine(texts: Iterable[str], *, callers: int) -> float:
    """Let callers take one text after another, and return texts a second."""
    model, settings = load_model(), EmbedSettings()
    rules = rules_of(settings, on_gpu=False)
    scheduler = Scheduler(rules, meter=_Silence(), on_failure=lambda lane: sys.exit(lane.failed))
    runs = Engine(model, scheduler)
    await runs.prove()
    waiting = iter(texts)
    answered = 0

    async def call() -> None:
        nonlocal answered
        for text in waiting:
            await runs.run(read(model, [text]), ["unit"])
            answered += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - started
    await scheduler.close()
    return answered / seconds


def texts_per_second_of_engine(texts: Sequence[str], *, seconds: float, callers: int = CALLERS) -> float:
    """Return what the engine does for so many callers, over texts taken in turn for about so many seconds."""

    def until(end: float) -> Iterable[str]:
        for text in cycle(texts):
            if time.perf_counter() > end:
                return
            yield text

    load_model()
    return asyncio.run(_run_engine(until(time.perf_counter() + seconds), callers=callers))


def sorted_batches(readings: Sequence[Reading], budget: int) -> list[list[Reading]]:
    """Cut texts, sorted by length, into runs of at most `budget` tokens."""
    batches: list[list[Reading]] = [[]]
    for reading in sorted(readings, key=len):
        if batches[-1] and sum(map(len, batches[-1])) + len(reading) > budget:
            batches.append([])
        batches[-1].append(reading)
    return batches


@dataclass(frozen=True, slots=True)
class Loop:
    """ONNX Runtime over hand-sorted batches, one one-thread run for each core at once."""

    run: Callable[[list[Reading]], object]

    def seconds(self, readings: Sequence[Reading], budget: int) -> float:
        """Return how long all texts take."""
        batches = sorted_batches(readings, budget)
        started = time.perf_counter()
        with ThreadPoolExecutor(usable_cores()) as threads:
            list(threads.map(self.run, batches))
        return time.perf_counter() - started

    def best(self, readings: Sequence[Reading]) -> int:
        """Return the budget that was fastest, each tried twice."""
        return min(BUDGETS, key=lambda budget: min(self.seconds(readings, budget), self.seconds(readings, budget)))


def packed_loop() -> Loop:
    """Return the loop over our own graph."""
    session = load_model().session
    return Loop(lambda readings: session.run(readings, ["unit"], wide=False))


def padded_loop(folder: Path) -> Loop:
    """Return the loop over transformers' own export, with padding; needs torch."""
    _export(load_model().facts.path, folder / "padded.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "padded.onnx",
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion", "EmbedLayerNormFusion"],
    )

    def run(readings: list[Reading]) -> object:
        ids = np.zeros((len(readings), max(map(len, readings))), np.int64)
        mask = np.zeros_like(ids)
        for place, reading in enumerate(readings):
            ids[place, : len(reading)] = reading.ids
            mask[place, : len(reading)] = 1
        return session.run(None, {"input_ids": ids, "attention_mask": mask})

    return Loop(run)


def _export(folder: Path, target: Path) -> None:
    import torch  # noqa: PLC0415 - only where the parity extra is
    import transformers  # noqa: PLC0415

    class Pooled(torch.nn.Module):  # type: ignore[misc]  # torch may not be there for the type checker
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(states.dtype)
            return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1)

    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    example = tuple(torch.ones(2, 7, dtype=torch.long) for _ in names)
    torch.onnx.export(Pooled(), example, str(target), input_names=names, dynamic_axes=axes, opset_version=17, dynamo=False)


def sentence_transformers_encode(texts: Sequence[str]) -> Callable[[], float]:
    """Return a measure of sentence-transformers in process."""
    import sentence_transformers  # noqa: PLC0415 - only where the parity extra is

    model = sentence_transformers.SentenceTransformer(str(load_model().facts.path), device="cpu")
    model.encode(list(texts[:64]), batch_size=32)

    def measure() -> float:
        started = time.perf_counter()
        model.encode(list(texts), batch_size=32)
        return len(texts) / (time.perf_counter() - started)

    return measure


def measures(texts: Sequence[str], folder: Path) -> tuple[dict[str, Measure], dict[str, int]]:
    """Return what is measured by name, and the best budget of each loop."""
    found: dict[str, Measure] = {"engine": lambda: asyncio.run(_run_engine(texts, callers=CALLERS))}
    budgets: dict[str, int] = {}
    sample = read(load_model(), texts[: len(texts) // 2])
    for name, make in (("loop, packed", packed_loop), ("loop, padded export", lambda: padded_loop(folder))):
        with contextlib.suppress(ImportError):
            loop = make()
            budgets[name] = loop.best(sample)
            found[name] = partial(_texts_per_second_of_loop, loop, texts, budgets[name])
    try:
        found["sentence-transformers"] = sentence_transformers_encode(texts)
    except ImportError as missing:
        print(f"left out, for want of the parity extra: {missing}")
    return found, budgets


def _texts_per_second_of_loop(loop: Loop, texts: Sequence[str], budget: int) -> float:
    started = time.perf_counter()
    readings = read(load_model(), texts)
    return len(texts) / (time.perf_counter() - started + loop.seconds(readings, budget))


def alternate(rounds: int, what: dict[str, Measure], *, unit: str = "texts/s") -> dict[str, list[float]]:
    """Take each measure once a round, in turn and then in reverse, and return the figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds):
        for name in list(what)[:: -1 if number % 2 else 1]:
            figures[name].append(what[name]())
            print(f"  round {number + 1}: {name}: {figures[name][-1]:.1f} {unit}", flush=True)
    return figures


def report(figures: dict[str, list[float]], budgets: dict[str, int], texts: Sequence[str]) -> dict[str, Any]:
    """Return medians, ratios and what they were measured on."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    loop = max(value for name, value in medians.items() if name.startswith("loop"))
    lengths = [len(reading) for reading in read(load_model(), texts)]
    return {
        "texts_per_second": medians,
        "rounds": figures,
        "engine_to_loop": medians["engine"] / loop,
        "engine_to_sentence_transformers": medians["engine"] / medians["sentence-transformers"]
        if "sentence-transformers" in medians
        else None,
        "best_budget": budgets,
        "tokens": {"texts": len(texts), "mean": float(np.mean(lengths)), "p95": float(np.percentile(lengths, 95)), "most": max(lengths)},
        "machine": machine(),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "tokenizers")},
    }


def machine() -> dict[str, Any]:
    """Return what figures were measured on."""
    return {"processor": _processor(), "cores": usable_cores(), "python": platform.python_version()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []  # noqa: PTH110 - reads as it is
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    memory.settle()
    texts = corpus.paragraphs(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        what, budgets = measures(texts, Path(folder))
        found = report(alternate(options.rounds, what), budgets, texts)
    print("\n| what | texts/s |\n|---|---|")
    for name, value in found["texts_per_second"].items():
        budget = f", {budgets[name]} tokens a run" if name in budgets else ""
        print(f"| {name}{budget} | {value:.1f} |")
    print(f"\nengine to the better loop: {found['engine_to_loop']:.3f}")
    if found["engine_to_sentence_transformers"]:
        print(f"engine to sentence-transformers: {found['engine_to_sentence_transformers']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
