"""Golden vectors: what a model gave where it was known to be right, compared with what it gives here whenever it is loaded.

The file holds texts and rankings of its own, with the vectors and raw scores that belong to them, made in float32; best by other software
than ours, such as the model's own. A model that was damaged, misread, or is run by arithmetic that does not suit it does not match, and is
not served. How near is near enough depends on the class of arithmetic: LIMITS.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pydantic

from quadrate.config.yamlfile import Schema
from quadrate.errors import ConfigError, QuadrateError
from quadrate.runtime import sparse
from quadrate.runtime.packing import Reading
from quadrate.runtime.scoring import SCORINGS
from quadrate.runtime.sessions import NULL
from quadrate.v1.options_pb2 import RIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.engine import Model

    Rows = Mapping[str, Sequence[NDArray[np.float32]]]
    Run = Callable[[Sequence[Reading], Sequence[str]], Rows]

SPARSE_OUTPUTS = ("sparse_weights", "vocabulary")


@dataclass(frozen=True, slots=True)
class Limit:
    """How near a vector or a list of scores must be to the golden one.

    Attributes:
        cosine: The least cosine between the two.
        difference: The most that one value may differ, as a part of the largest golden value or of 1, whichever is more. For vectors it
            counts at `exact` alone: what coarser arithmetic does to a single value says little.
    """

    cosine: float
    difference: float


LIMITS: Mapping[str, Limit] = {"exact": Limit(0.99999, 1e-4), "fast": Limit(0.999, 0.05), "small": Limit(0.99, 0.2)}
"""By the class of arithmetic."""


class GoldenSparse(Schema):
    """A sparse vector: token ids, ascending, and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class GoldenText(Schema):
    """One text; what belongs to it is left out where the model does not give it."""

    text: str
    prompt_name: str = ""
    """The prompt that stands before it. Empty: none."""
    dense: str = ""
    """Its vector: little-endian float32 in base64, of length one if the model normalises."""
    sparse: GoldenSparse | None = None
    multi_vector: str = ""
    """A vector for each token that the model reads, special tokens included, one after another; likewise in base64."""


class GoldenRanking(Schema):
    """One query and its documents, with the raw scores in the documents' order."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...]


class Golden(Schema):
    """The file."""

    revision: str
    """Of the weights that it was made with, as answers name it."""
    precision: Literal["exact"] = "exact"
    """The arithmetic it was made by."""
    made_by: str
    """The software that made it, with its version."""
    texts: tuple[GoldenText, ...] = ()
    rankings: tuple[GoldenRanking, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: what to run, and what to say of it.

    Attributes:
        name: What it is called in problems.
        readings: What the model is to read.
        outputs: The outputs that are needed.
        judge: Returns a sentence for each thing that is not as it should be.
    """

    name: str
    readings: Sequence[Reading]
    outputs: tuple[str, ...]
    judge: Callable[[Rows], list[str]]


def read(path: Path) -> Golden:
    """Read a file of golden vectors. Raises ConfigError."""
    try:
        return Golden.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}; restore it, or leave `golden` out of the model's card.") from exc
    except pydantic.ValidationError as exc:
        where = ".".join(map(str, exc.errors()[0]["loc"]))
        raise ConfigError(f"{path}: {where}: {exc.errors()[0]['msg']}; restore it, or make it again with --make-golden.") from exc


def cases(model: Model) -> list[Case]:
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
        return [*_text_cases(model, golden.texts), *_ranking_cases(model, golden.rankings)]
    except (QuadrateError, ValueError, KeyError) as exc:
        raise ConfigError(f"{path}: does not fit the model {model.alias}: {exc}; make it again with --make-golden.") from exc


def check(model: Model) -> list[str]:
    """Run a model in this thread, outside of any scheduler, and return a sentence for each comparison that fails. Raises ConfigError."""
    return [problem for case in cases(model) for problem in case.judge(_runner(model)(case.readings, case.outputs))]


def make(model: Model, *, made_by: str) -> Golden:
    """Return golden vectors of what `model` gives for TEXTS or DOCUMENTS. It should run in exact arithmetic."""
    run = _runner(model)
    if model.card.task == "rerank":
        return Golden(revision=model.revision, made_by=made_by, rankings=(_made_ranking(model, run),))
    prompts = ["", *(name for name in ("query", "document") if name in model.facts.prompts)]
    names = prompts * len(TEXTS)
    texts = tuple(_made_text(model, run, text, name) for text, name in zip(TEXTS, names, strict=False))
    return Golden(revision=model.revision, made_by=made_by, texts=texts)


def write(path: Path, golden: Golden) -> None:
    """Write a file of golden vectors. Raises ConfigError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(golden.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}; work on a copy of the configuration folder with --config.") from exc


def packed(array: NDArray[np.float32]) -> str:
    """Return values as the file holds them."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


def _runner(model: Model) -> Run:
    return lambda readings, outputs: model.session.run(readings, outputs, wide=True)


def _dense_output(model: Model) -> str:
    return "unit" if model.facts.normalize else "pooled"


def _sparse_output(model: Model) -> str:
    return next((name for name in SPARSE_OUTPUTS if name in model.forms), "")


def _read_text(model: Model, text: str, prompt_name: str) -> Reading:
    """Read a text as the worker does that cuts on the right."""
    prompt = model.facts.prompts[prompt_name] if prompt_name else ""
    ids, _ = model.tokenizer.fit(model.tokenizer.encode([prompt + text])[0], RIGHT, param="text")
    return Reading.of(model.tokenizer.read(ids))


def _read_ranking(model: Model, query: str, documents: Sequence[str]) -> list[Reading]:
    """Read a query and its documents as the worker does that cuts documents on the right."""
    pair, prompts, tokenizer = model.facts.pair, model.facts.prompts, model.tokenizer
    if pair is None:
        texts = [prompts.get("query", "") + query, *(prompts.get("document", "") + document for document in documents)]
        ids = [tokenizer.fit(found, RIGHT, param="text")[0] for found in tokenizer.encode(texts)]
        return SCORINGS[model.card.scoring or ""].readings(ids[0], ids[1:], tokenizer=tokenizer, pair=None)
    first, *others = tokenizer.encode([pair.query_text(query), *map(pair.document_text, documents)])
    room = pair.room(len(first), model.facts.max_tokens, param="query")
    kept = [room.fit(ids, RIGHT, param="document")[0] for ids in others]
    return SCORINGS[model.card.scoring or ""].readings(first, kept, tokenizer=tokenizer, pair=pair)


def _sparse_of(model: Model, reading: Reading, row: NDArray[np.float32]) -> sparse.Sparse:
    if _sparse_output(model) == "vocabulary":
        return sparse.of_vocabulary(row)
    return sparse.of_tokens(reading.ids, row, model.tokenizer.weightless_ids)


def _text_cases(model: Model, texts: Sequence[GoldenText]) -> Iterator[Case]:
    for number, golden in enumerate(texts, 1):
        wanted = {
            _dense_output(model): bool(golden.dense),
            _sparse_output(model): golden.sparse is not None,
            "multi_vector": bool(golden.multi_vector),
        }
        outputs = tuple(name for name, is_wanted in wanted.items() if is_wanted)
        missing = [name or "sparse" for name in outputs if name not in model.forms]
        if missing or not outputs:
            raise ValueError(f"text {number} asks for {missing or 'nothing'}, the model gives {', '.join(model.forms)}")
        reading = _read_text(model, golden.text, golden.prompt_name)
        yield Case(f"text {number}", [reading], outputs, _text_judge(model, golden, reading, f"text {number}"))


def _text_judge(model: Model, golden: GoldenText, reading: Reading, name: str) -> Callable[[Rows], list[str]]:
    limit = LIMITS[model.precision]

    def judge(rows: Rows) -> list[str]:
        problems = []
        if golden.dense:
            problems += _compare(f"{name}, dense", _unpacked(golden.dense), rows[_dense_output(model)][0], limit)
        if golden.sparse is not None:
            found = _sparse_of(model, reading, rows[_sparse_output(model)][0])
            problems += _compare(f"{name}, sparse", *_aligned(golden.sparse, found), limit)
        if golden.multi_vector:
            row = rows["multi_vector"][0]
            expected = _unpacked(golden.multi_vector)
            if expected.size != row.size:
                return [*problems, f"{name}, multi-vector: {row.size} values, {expected.size} in the file"]
            for place, (one, other) in enumerate(zip(expected.reshape(row.shape), row, strict=True)):
                problems += _compare(f"{name}, multi-vector, token {place}", one, other, limit)
        return problems

    return judge


def _ranking_cases(model: Model, rankings: Sequence[GoldenRanking]) -> Iterator[Case]:
    if rankings and model.card.scoring is None:
        raise ValueError("it holds rankings, and the model is no reranker")
    for number, golden in enumerate(rankings, 1):
        if len(golden.scores) != len(golden.documents):
            raise ValueError(f"ranking {number} has {len(golden.scores)} scores for {len(golden.documents)} documents")
        scoring, name = SCORINGS[model.card.scoring or ""], f"ranking {number}"

        def judge(rows: Rows, golden: GoldenRanking = golden, name: str = name) -> list[str]:
            found = scoring.score(rows[scoring.output])  # noqa: B023 - one model has one scoring
            return _compare_scores(name, np.array(golden.scores, np.float32), found, LIMITS[model.precision])

        yield Case(name, _read_ranking(model, golden.query, golden.documents), (scoring.output,), judge)


def _aligned(golden: GoldenSparse, found: sparse.Sparse) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both vectors over the ids that either has."""
    ids = np.union1d(np.array(golden.ids, np.int32), found.ids)
    expected, actual = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32)
    expected[np.searchsorted(ids, golden.ids)] = golden.weights
    actual[np.searchsorted(ids, found.ids)] = found.weights
    return expected, actual


def _compare(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    if expected.shape != found.shape:
        return [f"{name}: {found.size} values, {expected.size} in the file"]
    cosine = _cosine(expected, found)
    if not cosine >= limit.cosine:
        return [f"{name}: the cosine to the golden vector is {cosine:.6f}, it must be at least {limit.cosine}"]
    return _differences(name, expected, found, limit) if limit is LIMITS["exact"] else []


def _compare_scores(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    return _differences(name, expected, found, limit)


def _differences(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    allowed = limit.difference * max(1.0, float(np.abs(expected).max(initial=0.0)))
    worst = float(np.abs(expected - found).max(initial=0.0))
    return [] if worst <= allowed else [f"{name}: a value differs by {worst:.2g} from the golden one, {allowed:.2g} is allowed"]


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))


def _made_text(model: Model, run: Run, text: str, prompt_name: str) -> GoldenText:
    reading = _read_text(model, text, prompt_name)
    dense, weights = _dense_output(model), _sparse_output(model)
    outputs = [name for name in (dense, weights, "multi_vector") if name in model.forms]
    rows = {name: found[0] for name, found in run([reading], outputs).items()}
    found = _sparse_of(model, reading, rows[weights]) if weights else None
    return GoldenText(
        text=text,
        prompt_name=prompt_name,
        dense=packed(rows[dense]) if dense in rows else "",
        sparse=GoldenSparse(ids=tuple(found.ids.tolist()), weights=tuple(found.weights.tolist())) if found else None,
        multi_vector=packed(rows["multi_vector"]) if "multi_vector" in rows and len(text) < LONGEST_MULTI_VECTOR else "",
    )


def _made_ranking(model: Model, run: Run) -> GoldenRanking:
    scoring = SCORINGS[model.card.scoring or ""]
    rows = run(_read_ranking(model, QUERY, DOCUMENTS), [scoring.output])
    scores = scoring.score(rows[scoring.output])
    return GoldenRanking(query=QUERY, documents=DOCUMENTS, scores=tuple(scores.tolist()))


LONGEST_MULTI_VECTOR = 50
"""Characters of a text for which a vector a token is kept: the file would grow to megabytes."""

_PARAGRAPH = (
    "The lighthouse stood on a rock that the sea covered twice a day. Its keeper wrote down the weather every morning, the ships that "
    "passed, and what he had heard at night. In the seventh year he noticed that the gulls came back one day earlier than the year before, "
    "and began to count. "
)

TEXTS = (
    "yes",
    "The quick brown fox jumps over the lazy dog.",
    "How long does the battery last at ten degrees below zero?",
    "def mean(values): return sum(values) / len(values)  # 3.14159, 50 %, $5, https://example.org/a?b=1",
    "Ä ö ü ß é ñ ç: Der Zug an die Küste fährt um neun Uhr ab.",
    "这是一个句子。今天天气很好。我们去公园散步。",
    "Привет, мир! Поезд на побережье отправляется в девять часов.",
    "हिन्दी, العربية, עברית, Ελληνικά, ไทย, 한국어, 日本語, and an emoji 🙂.",
    _PARAGRAPH,
    _PARAGRAPH * 8,
)
"""What golden vectors are made of: short and long texts, code and signs, several scripts; the last one is cut by models of 512 tokens."""

QUERY = "Which fruits are red?"
DOCUMENTS = (
    "Bananas are yellow when they are ripe.",
    "An apple may be red, green or yellow, and tastes sweet.",
    "The train to the coast leaves at nine.",
    "Tomatoes are red, and to a botanist they are fruits.",
    "Помидоры красные, бананы жёлтые.",
    _PARAGRAPH * 8,
)
