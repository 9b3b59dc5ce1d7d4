"""`quadrate embed` and `quadrate rerank`: the project's own client at the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quadrate.client import Client
from quadrate.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from quadrate.client import Embeddings
    from quadrate.client.requests import Choices, Truncation

_SHOWN_VALUES = 4


@dataclass(frozen=True, slots=True)
class Door:
    """Where to call, and as whom."""

    url: str
    key: str | None = None
    ca: Path | None = None
    identity: tuple[Path, Path] | None = None

    def client(self) -> Client:
        """Return a client that calls there."""
        return Client(self.url, api_key=self.key, certificates=self.ca, identity=self.identity)


def embed(where: Door, texts: Sequence[str], *, model: str, choices: Choices, as_json: bool) -> int:
    """Print what each text gave: a line for people, or one JSON object a line."""
    given = _given(texts)
    with where.client() as client:
        answer = client.embed(given, model=model, **choices)
    for index, (text, usage) in enumerate(zip(given, answer.usages, strict=True)):
        if as_json:
            print(json.dumps({"index": index, "text": text, "tokens": usage.tokens, **_row(answer, index)}, ensure_ascii=False))
        else:
            print(f"{', '.join(_shown(answer, index))}, {usage.tokens} tokens: {text}")
    return 0


def _row(answer: Embeddings, index: int) -> dict[str, Any]:
    """Return one text's forms, for JSON."""
    row: dict[str, Any] = {}
    if answer.vectors.shape[1]:
        row["embedding"] = answer.vectors[index].tolist()
    if answer.sparse:
        sparse = answer.sparse[index]
        row["sparse"] = {"token_ids": sparse.token_ids.tolist(), "weights": sparse.weights.tolist()}
    if answer.multi_vectors:
        row["multi_vector"] = answer.multi_vectors[index].tolist()
    return row


def _shown(answer: Embeddings, index: int) -> Iterator[str]:
    """Give the beginning of each of one text's forms, for people."""
    if answer.vectors.shape[1]:
        vector = answer.vectors[index]
        number = "+.4f" if vector.dtype.kind == "f" else "+d"
        values = ", ".join(format(value.item(), number) for value in vector[:_SHOWN_VALUES])
        yield f"[{values}, …] {len(vector)} wide"
    if answer.sparse:
        sparse = answer.sparse[index]
        heaviest = sorted(zip(sparse.weights.tolist(), sparse.token_ids.tolist(), strict=True), reverse=True)[:_SHOWN_VALUES]
        yield f"{{{', '.join(f'{token}: {weight:.4f}' for weight, token in heaviest)}, …}} {len(sparse)} weights"
    if answer.multi_vectors:
        yield "{} rows of {}".format(*answer.multi_vectors[index].shape)


def rerank(  # noqa: PLR0913 - what the command offers
    where: Door,
    query: str,
    documents: Sequence[str],
    *,
    model: str,
    top_n: int | None,
    truncation: Truncation | None,
    max_tokens_per_doc: int | None,
    raw_scores: bool,
    instruction: str | None,
    as_json: bool,
) -> int:
    """Print the documents by relevance, best first: a line each for people, or one JSON object a line. Warnings go to stderr."""
    with where.client() as client:
        answer = client.rerank(
            query,
            _given(documents),
            model=model,
            top_n=top_n,
            truncation=truncation,
            max_tokens_per_doc=max_tokens_per_doc,
            raw_scores=raw_scores or None,
            instruction=instruction,
        )
    for result in answer.results:
        if as_json:
            row = {"index": result.index, "relevance_score": result.relevance_score, "tokens": result.usage.tokens}
            print(json.dumps({**row, "document": result.document}, ensure_ascii=False))
        else:
            print(f"{result.relevance_score:+.4f}  {result.index:>3}  {result.document}")
    for warning in answer.warnings:
        print(warning, file=sys.stderr)
    return 0


def _given(texts: Sequence[str]) -> list[str]:
    """Return the texts; a single `-`, or none where something is piped in, means the lines of stdin."""
    if list(texts) == ["-"] or (not texts and not sys.stdin.isatty()):
        return [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise InvalidArgument("There is no text: give texts as arguments, or pipe in one a line.")
    return list(texts)
