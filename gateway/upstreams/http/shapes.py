"""The shapes of embeddings and reranking over HTTP: bodies out of requests, vectors and scores out of answers.

An answer is taken as it should be, or refused with what is wrong about it. Nothing is mended: a vector at the wrong place lies in an index
for ever.

OpenAI  https://platform.openai.com/docs/api-reference/embeddings
Cohere  https://docs.cohere.com/reference/rerank, and Jina's and infinity's, which differ in names of what is told besides
TEI     https://huggingface.github.io/text-embeddings-inference, route `/rerank`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    RerankShape = Literal["cohere", "tei"]

_LARGEST_COUNT = 2**31 - 1
_NUMBERS = frozenset({float, int})
"""What JSON's numbers become. numpy would take words and `true` for numbers, too."""


class ShapeError(Exception):
    """An answer that is none. Its text says what is wrong, as the rest of a sentence that begins with whose answer it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What an answer to texts holds.

    Attributes:
        rows: One for each text, in order: float32[n, width].
        tokens: How many the server says that it read; None if it says nothing.
    """

    rows: NDArray[np.float32]
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Scores:
    """What an answer to a query and documents holds.

    Attributes:
        ranked: Index and score of each document that was answered, best first, ties by index.
        tokens: As in Vectors.
    """

    ranked: list[tuple[int, float]]
    tokens: int | None


def embeddings_body(model: str, contents: Sequence[str] | Sequence[list[int]]) -> bytes:
    """Return a request for embeddings in OpenAI's shape."""
    return orjson.dumps({"model": model, "input": contents, "encoding_format": "float"})


def rerank_body(shape: RerankShape, model: str, query: str, documents: Sequence[str], top_n: int | None) -> bytes:
    """Return a request to order documents. What a server adds to its answer unasked, such as the documents, is passed over."""
    if shape == "tei":
        return orjson.dumps({"query": query, "texts": documents, "raw_scores": False, "truncate": False})
    body: dict[str, Any] = {"model": model, "query": query, "documents": documents}
    return orjson.dumps(body if top_n is None else {**body, "top_n": top_n})


def read_vectors(data: bytes, count: int) -> Vectors:
    """Return the vectors of an answer to `count` texts. Raises ShapeError."""
    answer = _parse(data)
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ShapeError("has no list `data` of embeddings")
    if len(items) != count:
        raise ShapeError(f"holds {len(items)} embeddings for {count} texts")
    places = _places(items, count)
    rows = _matrix([item.get("embedding") for item in items])
    return Vectors(rows if places is None else rows[places], _tokens(answer))


def read_scores(data: bytes, count: int, top_n: int | None) -> Scores:
    """Return the scores of an answer to `count` documents of which the best `top_n` were asked for; None: all. Raises ShapeError."""
    answer = _parse(data)
    items = answer.get("results", answer.get("data")) if isinstance(answer, dict) else answer
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ShapeError("has no list `results` of documents")
    due = count if top_n is None else min(top_n, count)
    if not due <= len(items) <= count:
        raise ShapeError(f"holds {len(items)} results where {due} were due")
    values = [item.get("relevance_score", item.get("score")) for item in items]
    if not _NUMBERS.issuperset(map(type, values)):
        raise ShapeError("holds a score that is no number")
    scores = _finite(values, "a score")
    indexes = [_index(item, count) for item in items]
    if len(set(indexes)) != len(indexes):
        raise ShapeError("names a document twice")
    ranked = sorted(zip(indexes, scores.tolist(), strict=True), key=lambda one: (-one[1], one[0]))
    return Scores(ranked[:due], _tokens(answer) if isinstance(answer, dict) else None)


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        page = data[:1024].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
        raise ShapeError("is a page, not JSON" if page else "is no JSON") from exc


def _places(items: Sequence[dict[str, Any]], count: int) -> list[int] | None:
    """Return where each text's item stands; None if they stand in the texts' order."""
    if all("index" not in item for item in items):
        return None
    indexes = [_index(item, count) for item in items]
    if indexes == list(range(count)):
        return None
    if len(set(indexes)) != count:
        raise ShapeError("names a text twice")
    return [place for _, place in sorted(zip(indexes, range(count), strict=True))]


def _index(item: dict[str, Any], count: int) -> int:
    index = item.get("index")
    if type(index) is not int or not 0 <= index < count:
        raise ShapeError(f"holds an index that is not from 0 to {count - 1}")
    return index


def _matrix(rows: list[Any]) -> NDArray[np.float32]:
    if not all(isinstance(row, list) and row for row in rows):
        raise ShapeError("holds an embedding that is no list of numbers")
    if len({len(row) for row in rows}) != 1:
        raise ShapeError("holds vectors of several widths")
    if not all(_NUMBERS.issuperset(map(type, row)) for row in rows):
        raise ShapeError("holds a value that is no number")
    return _finite(rows, "a value")


def _finite(values: list[Any], kind: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found = np.asarray(values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise ShapeError(f"holds {kind} that is no finite number")
    return found


def _tokens(answer: dict[str, Any]) -> int | None:
    """Return how many tokens were read, by whichever of its names the server tells it."""
    usage, meta = answer.get("usage"), answer.get("meta")
    told = meta.get("tokens") if isinstance(meta, dict) else None
    for where, name in ((usage, "total_tokens"), (usage, "prompt_tokens"), (told, "input_tokens")):
        count = where.get(name) if isinstance(where, dict) else None
        if type(count) is int and 0 < count <= _LARGEST_COUNT:
            return count
    return None
