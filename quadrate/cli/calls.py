"""`quadrate embed` and `quadrate rerank`: the project's own client at the command line."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from quadrate.client import Client
from quadrate.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.client.requests import Role, Truncation

_SHOWN_VALUES = 4


def embed(
    url: str, key: str | None, texts: Sequence[str], *, model: str, role: Role | None, truncation: Truncation | None, as_json: bool
) -> int:
    """Print a vector for each text: its beginning for people, or one JSON object a line."""
    given = _given(texts)
    with Client(url, api_key=key) as client:
        answer = client.embed(given, model=model, role=role, truncation=truncation)
    for index, (text, vector, usage) in enumerate(zip(given, answer.vectors, answer.usages, strict=True)):
        if as_json:
            print(json.dumps({"index": index, "text": text, "tokens": usage.tokens, "embedding": vector.tolist()}, ensure_ascii=False))
        else:
            values = ", ".join(f"{value:+.4f}" for value in vector[:_SHOWN_VALUES])
            print(f"[{values}, …] {len(vector)} wide, {usage.tokens} tokens: {text}")
    return 0


def rerank(  # noqa: PLR0913 - what the command offers
    url: str,
    key: str | None,
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
    with Client(url, api_key=key) as client:
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
