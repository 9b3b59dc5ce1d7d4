"""Reranking by itself: a query and 50 documents in, their order out, side by side with CrossEncoder.predict, in one process and in turn.

    python benchmarks/reranking.py [--rounds 5] [--requests 20] [--documents 50] [--precision exact] [--callers 1] [--json FILE]

The model has the sizes of ms-marco-MiniLM-L2-v2 (two layers of 384) and random weights, which cost as much as the trained ones, and
the tokenizer of all-MiniLM-L6-v2, which is the same as its own. Documents are the corpus's paragraphs, queries their first words.

- *engine*: what a rerank worker does between its door and its answer: templates, tokens, pairs, scheduler, sessions, scores, order.
- *CrossEncoder*: sentence-transformers' own, fp32, batch 32, all cores, in process.

Both tokenise what they score. Beside the speeds stand the largest difference between the two's raw scores, relative to the largest
score, and the lowest rank correlation (Spearman) of a request: random weights set documents apart less than trained ones do. CrossEncoder
needs the parity extra (make install-parity); without it it is left out. Keep the machine quiet: compare ratios of one run, never figures
of two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus
from engine import alternate, load_model, machine

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import RerankSettings
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.runtime import engine, memory
from quadrate.runtime.engine import Engine
from quadrate.runtime.scheduler import Scheduler
from quadrate.runtime.scoring import SCORINGS, order
from quadrate.runtime.store import StoredModel
from quadrate.testing.model_folder import tiny_config, tiny_weights
from quadrate.v1.options_pb2 import RIGHT
from quadrate.worker.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentence_transformers import CrossEncoder

    from quadrate.runtime.jobs import Batch, Lane

SIZES = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 1536}
MAX_TOKENS = 512
QUERY_WORDS = 8
CHARACTERS = 4096
SCORING = SCORINGS["cross_encoder"]


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its documents."""

    query: str
    documents: Sequence[str]


def requests(count: int, documents: int) -> list[Request]:
    """Return requests over the corpus; the query is the beginning of a paragraph of its own."""
    texts = corpus.paragraphs(count * (documents + 1))
    parts = [texts[start : start + documents + 1] for start in range(0, len(texts), documents + 1)]
    return [Request(" ".join(part[0].split()[:QUERY_WORDS]), part[1:]) for part in parts]


def write_cross_encoder(path: Path) -> Path:
    """Write the folder of a random cross-encoder and return it."""
    source = load_model().facts.path
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, path / name)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    positions = {"vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS}
    config = tiny_config(**SIZES, **positions, architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    random = np.random.default_rng(2)
    width = SIZES["hidden_size"]
    head = {"bert.pooler.dense.weight": (width, width), "bert.pooler.dense.bias": (width,), "classifier.weight": (1, width)}
    weights = {name: values * np.float32(0.1) for name, values in tiny_weights(config, prefix="bert.").items()}
    weights |= {name: np.ones_like(values) for name, values in weights.items() if name.endswith("LayerNorm.weight")}
    weights |= {name: random.standard_normal(shape).astype(np.float32) * np.float32(0.05) for name, shape in head.items()}
    weights["classifier.bias"] = np.zeros(1, np.float32)
    save_file(weights, path / "model.safetensors")
    return path


class _Silence:
    """A meter that hears nothing."""

    def ran(self, batch: Batch) -> None:
        """See Meter."""

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """See Meter."""
        raise RuntimeError(f"{texts} texts of {lane.name} were dropped: {reason}")


class Reranker:
    """The worker's way from a request to raw scores, without its door."""

    def __init__(self, path: Path, precision: str) -> None:
        self._settings = RerankSettings(precision=precision)
        card = ModelCard(
            served_name="bench",
            task="rerank",
            scoring="cross_encoder",
            max_tokens=MAX_TOKENS,
            source=FolderSource(type="folder", path=path),
        )
        self.model = engine.load("bench", card, StoredModel(path, "bench"), self._settings)
        self._reader = RerankReader(self.model.tokenizer, self.model.facts.pair, {})

    def run(self, asked: Sequence[Request], *, callers: int) -> list[np.ndarray]:
        """Return each request's raw scores; so many callers take one request after another."""
        return asyncio.run(self._run(asked, callers))

    async def _run(self, asked: Sequence[Request], callers: int) -> list[np.ndarray]:
        settings = self._settings
        rules = rules_of(settings, on_gpu=False)
        scheduler = Scheduler(rules, meter=_Silence(), on_failure=lambda lane: sys.exit(lane.failed))
        runs = Engine(self.model, scheduler)
        await runs.prove()
        found: dict[int, np.ndarray] = {}
        waiting = iter(enumerate(asked))

        async def call() -> None:
            for place, request in waiting:
                found[place] = await self._score(runs, request)

        await asyncio.gather(*(call() for _ in range(callers)))
        await scheduler.close()
        return [found[place] for place in range(len(asked))]

    async def _score(self, runs: Engine, request: Request) -> np.ndarray:
        question = Question(query=request.query, documents=request.documents, name=str)
        tokens = await self._reader.read(question, DocumentLimits(characters=CHARACTERS, truncation=RIGHT))
        readings = SCORING.readings(tokens.query, tokens.documents, tokenizer=self.model.tokenizer, pair=self.model.facts.pair)
        result = await runs.run(readings, [SCORING.output])
        raw = SCORING.score(result.rows[SCORING.output])
        order(raw)
        return raw


def predict(encoder: CrossEncoder, asked: Sequence[Request]) -> list[np.ndarray]:
    """Return each request's raw scores by CrossEncoder."""
    import torch  # noqa: PLC0415 - only where the parity extra is

    identity = torch.nn.Identity()
    pairs = ([(request.query, document) for document in request.documents] for request in asked)
    return [np.asarray(encoder.predict(list(group), batch_size=32, activation_fn=identity)) for group in pairs]


def documents_per_second(run: Callable[[], list[np.ndarray]]) -> float:
    """Return how fast a run goes."""
    started = time.perf_counter()
    scores = run()
    return sum(map(len, scores)) / (time.perf_counter() - started)


def agreement(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the largest difference relative to the largest score, and the lowest rank correlation of a request."""
    largest = max(float(np.abs(scores).max()) for scores in expected)
    difference = max(float(np.abs(one - two).max()) for one, two in zip(found, expected, strict=True))
    ranks = ((np.argsort(order(one)), np.argsort(order(two))) for one, two in zip(found, expected, strict=True))
    return {"largest_difference": difference / largest, "lowest_rank_correlation": min(float(np.corrcoef(*pair)[0, 1]) for pair in ranks)}


def measure(*, rounds: int, count: int, documents: int, precision: str, callers: int) -> dict[str, Any]:
    """Measure both in turn and return speeds, their ratio, how far they agree, and what it was measured on."""
    asked = requests(count, documents)
    with tempfile.TemporaryDirectory() as folder:
        path = write_cross_encoder(Path(folder) / "cross")
        reranker = Reranker(path, precision)
        what = {"engine": lambda: documents_per_second(lambda: reranker.run(asked, callers=callers))}
        scores = reranker.run(asked, callers=callers)
        agreed = None
        try:
            from sentence_transformers import CrossEncoder  # noqa: PLC0415 - only where the parity extra is

            encoder = CrossEncoder(str(path), device="cpu", max_length=MAX_TOKENS)
            agreed = agreement(scores, predict(encoder, asked))
            what["CrossEncoder"] = lambda: documents_per_second(lambda: predict(encoder, asked))
        except ImportError as missing:
            print(f"left out, for want of the parity extra: {missing}")
        figures = alternate(rounds, what, unit="documents/s")
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "documents_per_second": medians,
        "rounds": figures,
        "engine_to_cross_encoder": medians["engine"] / medians["CrossEncoder"] if "CrossEncoder" in medians else None,
        "agreement": agreed,
        "precision": precision,
        "provider": reranker.model.session.provider,
        "callers": callers,
        "documents": documents,
        "tokens_a_pair": _tokens(reranker, asked),
        "machine": machine(),
    }


def _tokens(reranker: Reranker, asked: Sequence[Request]) -> dict[str, float]:
    tokenizer, pair = reranker.model.tokenizer, reranker.model.facts.pair
    if pair is None:
        raise RuntimeError("the cross-encoder reads no pairs")
    lengths = [
        pair.count(len(query), len(document))
        for request in asked
        for query, *documents in [tokenizer.encode([request.query, *request.documents])]
        for document in documents
    ]
    return {"mean": float(np.mean(lengths)), "p95": float(np.percentile(lengths, 95)), "most": float(max(lengths))}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--precision", choices=("exact", "fast", "small"), default="exact")
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    memory.settle()
    found = measure(
        rounds=options.rounds, count=options.requests, documents=options.documents, precision=options.precision, callers=options.callers
    )
    print("\n| what | documents/s |\n|---|---|")
    for name, value in found["documents_per_second"].items():
        print(f"| {name} | {value:.1f} |")
    if found["engine_to_cross_encoder"]:
        print(f"\nengine to CrossEncoder: {found['engine_to_cross_encoder']:.2f}")
        print(f"largest difference of raw scores: {found['agreement']['largest_difference']:.2e} of the largest")
        print(f"lowest rank correlation: {found['agreement']['lowest_rank_correlation']:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
