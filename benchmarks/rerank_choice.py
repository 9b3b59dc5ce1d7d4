"""Cosine or late interaction: how `minilm-rerank` should score, measured on texts whose right answer is certain.

One forward pass of all-MiniLM-L6-v2 gives the token states of queries and passages; the ways of scoring differ only in what they do
with those states:

- cosine: the mean of the states, brought to length one, dot product. What the model was trained for.
- late interaction: for each query token the best cosine with a passage token, averaged over the query (MaxSim of ColBERT, Khattab &
  Zaharia 2020). The average is the sum divided by the query's length: the order of the passages is the same, only the range differs.

Two sets, every query against all passages of its set: the questions of questions.yaml, and the documentation of Python's and numpy's
own functions, where a function's summary line has to find the rest of its documentation.

Needs the `parity` extra, because transformers is the reference here. Usage:

    python benchmarks/rerank_choice.py --model FOLDER_WITH_MINILM
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUESTIONS = Path(__file__).with_name("questions.yaml")
RESAMPLES = 2000
MAX_TOKENS = 256
MODULES = """
    numpy numpy.linalg numpy.fft os os.path shutil itertools functools statistics math random re json csv subprocess threading socket ssl
    zipfile tarfile pathlib datetime decimal fractions heapq bisect textwrap difflib collections asyncio logging urllib.parse
    urllib.request tempfile glob struct inspect ast string locale gettext contextlib
"""

Matrix = np.ndarray
"""Scores, float [queries, passages]."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the one passage that answers it."""

    query: str
    passage: str


def questions() -> list[Pair]:
    """The hand-made questions."""
    families = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8")).values()
    return [Pair(entry["question"], entry["passage"]) for family in families for entry in family]


def documentation() -> list[Pair]:
    """Summary line and remaining text of every public callable in MODULES whose documentation has both. Each text once."""
    pairs: dict[str, Pair] = {}
    for text in _docstrings():
        paragraphs = re.split(r"\n\s*\n", text)
        if re.match(r"^[\w.]+\(.*\)", paragraphs[0]):  # a C function tells its signature first
            paragraphs = paragraphs[1:]
        summary, rest = (" ".join(part.split()) for part in (" ".join(paragraphs[:1]), " ".join(paragraphs[1:])))
        if len(summary.split()) >= 4 and len(rest.split()) >= 15 and not any(pair.passage == rest for pair in pairs.values()):
            pairs.setdefault(summary, Pair(summary, rest[:1500]))
    return list(pairs.values())


def _docstrings() -> Iterator[str]:
    for module in map(importlib.import_module, MODULES.split()):
        for name, thing in vars(module).items():
            if callable(thing) and not name.startswith("_"):
                yield inspect.getdoc(thing) or ""


class Encoder:
    """all-MiniLM-L6-v2 through transformers, fp32, one text at a time so that nothing depends on padding."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def __call__(self, text: str) -> np.ndarray:
        """The token states of `text`, cut on the right: float32 [tokens, width], special tokens first and last."""
        with torch.inference_mode():
            read = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
            return self._model(**read).last_hidden_state[0].numpy()


def unit(values: np.ndarray) -> np.ndarray:
    """The same directions with length one, along the last axis."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def cosine(queries: Sequence[np.ndarray], passages: Sequence[np.ndarray]) -> Matrix:
    """Cosine of the pooled vectors."""
    pooled = [unit(np.stack([states.mean(axis=0) for states in side])) for side in (queries, passages)]
    return pooled[0] @ pooled[1].T


def late_interaction(*, special: bool, unit_length: bool) -> Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Matrix]:
    """MaxSim averaged over the query's tokens, with or without [CLS] and [SEP], on states of length one or as they come."""

    def prepared(states: np.ndarray) -> np.ndarray:
        kept = states if special else states[1:-1]
        return unit(kept) if unit_length else kept

    def score(queries: Sequence[np.ndarray], passages: Sequence[np.ndarray]) -> Matrix:
        sides = [prepared(passage) for passage in passages]
        starts = np.cumsum([0, *map(len, sides)])[:-1]
        every = np.concatenate(sides).T
        return np.stack([np.maximum.reduceat(prepared(query) @ every, starts, axis=1).mean(axis=0) for query in queries])

    return score


WAYS = {
    "cosine": cosine,
    "late interaction, unit states": late_interaction(special=True, unit_length=True),
    "the same without [CLS] and [SEP]": late_interaction(special=False, unit_length=True),
    "late interaction, raw states": late_interaction(special=True, unit_length=False),
    "the same without [CLS] and [SEP] (raw)": late_interaction(special=False, unit_length=False),
}


def places(scores: Matrix) -> np.ndarray:
    """The place of each query's own passage, from 1; a tie counts against it. int [queries]."""
    return (scores >= np.diagonal(scores)[:, None]).sum(axis=1)


def reciprocal(ranks: np.ndarray) -> np.ndarray:
    """1/rank up to the tenth place, 0 beyond it."""
    return np.where(ranks <= 10, 1 / ranks, 0.0)


def interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the difference in MRR@10, second less first, by resampling queries (fixed seed)."""
    gains = reciprocal(second) - reciprocal(first)
    draws = np.random.default_rng(7).integers(0, len(gains), size=(RESAMPLES, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def compare(title: str, pairs: list[Pair], encode: Encoder) -> None:
    """Prints one row for each way of scoring, with the cost of the forward pass and of the scoring itself."""
    queries = [encode(pair.query) for pair in pairs]
    started = time.perf_counter()
    passages = [encode(pair.passage) for pair in pairs]
    forward_ms = (time.perf_counter() - started) / len(pairs) * 1e3
    tokens, width = float(np.mean([len(passage) for passage in passages])), passages[0].shape[1]
    print(f"\n{title}: {len(pairs)} queries, each against {len(pairs)} passages of {tokens:.0f} tokens on average.")
    print(f"Forward pass {forward_ms:.1f} ms a passage; kept of it: cosine {width * 4} bytes, states {tokens * width * 4:,.0f}.\n")
    print("\n| way | hit@1 | MRR@10 | nDCG@10 | MRR@10 less cosine's, 95 % interval | scoring a passage |")
    print("|---|---|---|---|---|---|")
    reference = places(cosine(queries, passages))
    for name, way in WAYS.items():
        started = time.perf_counter()
        scores = way(queries, passages)
        micros = (time.perf_counter() - started) / scores.size * 1e6
        ranks = places(scores)
        gain = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0).mean()
        low, high = interval(reference, ranks)
        figures = f"{(ranks == 1).mean():.3f} | {reciprocal(ranks).mean():.3f} | {gain:.3f}"
        print(f"| {name} | {figures} | {low:+.3f} to {high:+.3f} | {micros:.1f} µs |")


def main() -> None:
    """Measures every way of scoring on both sets."""
    parser = argparse.ArgumentParser(description="Compare ways of scoring for minilm-rerank.")
    parser.add_argument("--model", type=Path, required=True, help="folder with all-MiniLM-L6-v2 (config, tokenizer, safetensors)")
    encode = Encoder(parser.parse_args().model)
    torch.set_num_threads(1)
    compare("Questions", questions(), encode)
    compare("Documentation", documentation(), encode)


if __name__ == "__main__":
    main()
