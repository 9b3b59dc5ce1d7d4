"""What is run of a file of golden vectors, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import ConfigError, QuadrateError
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.runtime import sparse
from quadrate.runtime.golden.comparison import LIMITS, compare, differences
from quadrate.runtime.golden.file import read, unpacked
from quadrate.runtime.packing import Reading
from quadrate.runtime.scoring import SCORINGS
from quadrate.runtime.sessions import NULL
from quadrate.v1.options_pb2 import RIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.engine import Model
    from quadrate.runtime.golden.comparison import Limit
    from quadrate.runtime.golden.file import GoldenRanking, GoldenSparse, GoldenText

    Rows = Mapping[str, Sequence[NDArray[np.float32]]]
    Run = Callable[[Sequence[Reading], Sequence[str]], Rows]

SPARSE_OUTPUTS = ("sparse_weights", "vocabulary")
MOST_CHARACTERS = 100_000
"""Of a document of a ranking: no limit but the model's own."""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: what to run, and what to say of it.

    Attributes:
        readings: What the model is to read.
        outputs: The outputs that are needed.
        judge: Returns a sentence for each thing that is not as it should be.
    """

    readings: Sequence[Reading]
    outputs: tuple[str, ...]
    judge: Callable[[Rows], list[str]]


async def cases(model: Model) -> list[Case]:
    """Return the comparisons for a model; none if its card names no golden vectors, or no model is run.

    Raises ConfigError if the file cannot be used, or belongs to another revision.
    """
    if not model.card.golden or model.session.provider == NULL:
        return []
    path = Path(model.card.golden)
    golden = read(path)
    if golden.revision != model.revision:
        raise ConfigError(
            f"{path}: is of revision {golden.revision}, and the model's files are {model.revision}. If these are right, make it again: "
            f"`quadrate models verify {model.alias} --make-golden`."
        )
    try:
        return [*await _text_cases(model, golden.texts), *await _ranking_cases(model, golden.rankings)]
    except (QuadrateError, ValueError, KeyError) as exc:
        raise ConfigError(f"{path}: does not fit the model {model.alias}: {exc}; make it again with --make-golden.") from exc


async def check(model: Model) -> list[str]:
    """Run a model in this thread, outside of any scheduler, and return a sentence for each comparison that fails. Raises ConfigError."""
    run = runner(model)
    return [problem for case in await cases(model) for problem in case.judge(run(case.readings, case.outputs))]


def runner(model: Model) -> Run:
    """Return what runs a model in this thread."""
    return lambda readings, outputs: model.session.run(readings, outputs, wide=True)


def dense_output(model: Model) -> str:
    """Return the output that answers give as the dense vector."""
    return "unit" if model.facts.normalize else "pooled"


def sparse_output(model: Model) -> str:
    """Return the output that sparse vectors are made of; empty if the model gives none."""
    return next((name for name in SPARSE_OUTPUTS if name in model.forms), "")


def sparse_of(model: Model, reading: Reading, row: NDArray[np.float32]) -> sparse.Sparse:
    """Return the sparse vector of a text."""
    if sparse_output(model) == "vocabulary":
        return sparse.of_vocabulary(row)
    return sparse.of_tokens(reading.ids, row, model.tokenizer.weightless_ids)


async def read_text(model: Model, text: str, prompt_name: str) -> Reading:
    """Read a text as the worker does that cuts on the right. Raises KeyError for an unknown prompt."""
    prompt = model.facts.prompts[prompt_name] if prompt_name else ""
    found = await model.tokenizer.encode_async([prompt + text])
    return Reading.of(model.tokenizer.read(model.tokenizer.fit(found[0], RIGHT, param="text")[0]))


async def read_ranking(model: Model, query: str, documents: Sequence[str]) -> Sequence[Reading]:
    """Read a query and its documents as the worker does that cuts documents on the right. Raises QuadrateError."""
    pair = model.facts.pair
    question = Question(query=query, documents=documents, name=lambda place: f"document {place + 1}")
    limits = DocumentLimits(characters=MOST_CHARACTERS, truncation=RIGHT)
    tokens = await RerankReader(model.tokenizer, pair, model.facts.prompts).read(question, limits)
    scoring = SCORINGS[model.card.scoring or ""]
    return scoring.readings(tokens.query, tokens.documents, tokenizer=model.tokenizer, pair=pair)


async def _text_cases(model: Model, texts: Sequence[GoldenText]) -> list[Case]:
    return [await _text_case(model, golden, f"text {number}") for number, golden in enumerate(texts, 1)]


async def _text_case(model: Model, golden: GoldenText, name: str) -> Case:
    wanted = {
        dense_output(model): bool(golden.dense),
        sparse_output(model): golden.sparse is not None,
        "multi_vector": bool(golden.multi_vector),
    }
    outputs = tuple(output for output, is_wanted in wanted.items() if is_wanted)
    missing = [output or "sparse" for output in outputs if output not in model.forms]
    if missing or not outputs:
        raise ValueError(f"{name} asks for {missing or 'nothing'}, the model gives {', '.join(model.forms)}")
    reading = await read_text(model, golden.text, golden.prompt_name)
    return Case([reading], outputs, _text_judge(model, golden, reading, name))


def _text_judge(model: Model, golden: GoldenText, reading: Reading, name: str) -> Callable[[Rows], list[str]]:
    limit = LIMITS[model.precision]

    def judge(rows: Rows) -> list[str]:
        problems = []
        if golden.dense:
            problems += compare(f"{name}, dense", unpacked(golden.dense), rows[dense_output(model)][0], limit)
        if golden.sparse is not None:
            found = sparse_of(model, reading, rows[sparse_output(model)][0])
            problems += compare(f"{name}, sparse", *_aligned(golden.sparse, found), limit)
        if golden.multi_vector:
            problems += _compare_tokens(f"{name}, multi-vector", unpacked(golden.multi_vector), rows["multi_vector"][0], limit)
        return problems

    return judge


def _compare_tokens(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    """Compare a vector for each token, `[tokens, width]`, with as many values in a row."""
    if expected.size != found.size:
        return [f"{name}: {found.size} values, {expected.size} in the file"]
    pairs = enumerate(zip(expected.reshape(found.shape), found, strict=True), 1)
    return [problem for place, pair in pairs for problem in compare(f"{name}, token {place}", *pair, limit)]


async def _ranking_cases(model: Model, rankings: Sequence[GoldenRanking]) -> list[Case]:
    if rankings and model.card.scoring is None:
        raise ValueError("it holds rankings, and the model is no reranker")
    return [await _ranking_case(model, golden, f"ranking {number}") for number, golden in enumerate(rankings, 1)]


async def _ranking_case(model: Model, golden: GoldenRanking, name: str) -> Case:
    if len(golden.scores) != len(golden.documents):
        raise ValueError(f"{name} has {len(golden.scores)} scores for {len(golden.documents)} documents")
    scoring = SCORINGS[model.card.scoring or ""]

    def judge(rows: Rows) -> list[str]:
        found = scoring.score(rows[scoring.output])
        return differences(name, np.array(golden.scores, np.float32), found, LIMITS[model.precision])

    return Case(await read_ranking(model, golden.query, golden.documents), (scoring.output,), judge)


def _aligned(golden: GoldenSparse, found: sparse.Sparse) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both vectors over the ids that either has."""
    ids = np.union1d(np.array(golden.ids, np.int32), found.ids)
    expected, actual = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32)
    expected[np.searchsorted(ids, golden.ids)] = golden.weights
    actual[np.searchsorted(ids, found.ids)] = found.weights
    return expected, actual
