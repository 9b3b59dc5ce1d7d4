"""Golden vectors of what a model gives, for models that no other software was asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.golden.cases import dense_output, read_ranking, read_text, runner, sparse_of, sparse_output
from quadrate.runtime.golden.file import Golden, GoldenRanking, GoldenSparse, GoldenText, packed
from quadrate.runtime.scoring import SCORINGS

if TYPE_CHECKING:
    from quadrate.runtime.engine import Model
    from quadrate.runtime.golden.cases import Run

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


async def make(model: Model, *, made_by: str) -> Golden:
    """Return golden vectors of what `model` gives for TEXTS or DOCUMENTS. It should run in exact arithmetic."""
    run = runner(model)
    if model.card.task == "rerank":
        return Golden(revision=model.revision, made_by=made_by, rankings=(await _made_ranking(model, run),))
    prompts = ["", *(name for name in ("query", "document") if name in model.facts.prompts)]
    names = prompts * len(TEXTS)
    texts = [await _made_text(model, run, text, name) for text, name in zip(TEXTS, names, strict=False)]
    return Golden(revision=model.revision, made_by=made_by, texts=tuple(texts))


async def _made_text(model: Model, run: Run, text: str, prompt_name: str) -> GoldenText:
    reading = await read_text(model, text, prompt_name)
    dense, weights = dense_output(model), sparse_output(model)
    outputs = [name for name in (dense, weights, "multi_vector") if name in model.forms]
    rows = {name: found[0] for name, found in run([reading], outputs).items()}
    found = sparse_of(model, reading, rows[weights]) if weights else None
    return GoldenText(
        text=text,
        prompt_name=prompt_name,
        dense=packed(rows[dense]) if dense in rows else "",
        sparse=GoldenSparse(ids=tuple(found.ids.tolist()), weights=tuple(found.weights.tolist())) if found else None,
        multi_vector=packed(rows["multi_vector"]) if "multi_vector" in rows and len(text) < LONGEST_MULTI_VECTOR else "",
    )


async def _made_ranking(model: Model, run: Run) -> GoldenRanking:
    scoring = SCORINGS[model.card.scoring or ""]
    rows = run(await read_ranking(model, QUERY, DOCUMENTS), [scoring.output])
    scores = scoring.score(rows[scoring.output])
    return GoldenRanking(query=QUERY, documents=DOCUMENTS, scores=tuple(scores.tolist()))
