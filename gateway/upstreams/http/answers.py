"""Answers of servers over HTTP as quadrate.v1 has them: vectors cut, brought to length one and into a value type as a worker does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quadrate.framing import delimited, varint
from quadrate.v1 import embed_pb2, rerank_pb2
from quadrate.vectors import FLOAT32S, convert

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from gateway.upstreams.http.shapes import Scores
    from quadrate.v1 import model_pb2

PROVIDER = "HTTP"
"""What answers name as the provider: what runs behind the server's door is not known."""
_EMBEDDINGS, _INDEX, _VALUES, _PACKED = 2, b"\x08", 2, 3
"""EmbedResponse.embeddings; of Embedding: the tag of `index`, the numbers of `values` and `packed_values`."""
_SHORTEST = 1e-12
"""Vectors shorter than this stay as they are: zero has no direction."""


def embeddings(
    request: embed_pb2.EmbedRequest, card: model_pb2.Model, rows: NDArray[np.float32], tokens: int | None
) -> embed_pb2.EmbedResponse:
    """Return the answer to a request: `rows` in the form that it asks for, and the tokens that the server told, if it did."""
    wants_unit = request.normalize if request.HasField("normalize") else card.normalized
    is_cut = request.HasField("dimensions") and request.dimensions < rows.shape[1]
    if is_cut:
        rows = rows[:, : request.dimensions]
    if wants_unit and (is_cut or not card.normalized):
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SHORTEST)
    number = _VALUES if request.value_type in FLOAT32S else _PACKED
    values = convert(np.ascontiguousarray(rows, dtype=np.float32), request.value_type)
    parts = [delimited(_EMBEDDINGS, _INDEX, varint(place), delimited(number, row.tobytes())) for place, row in enumerate(values)]
    answer = embed_pb2.EmbedResponse.FromString(b"".join(parts))
    answer.provenance.provider = PROVIDER
    answer.provenance.normalized = wants_unit or (card.normalized and not is_cut)
    if tokens is not None:
        answer.usage.tokens = tokens
    return answer


def reranking(scores: Scores) -> rerank_pb2.RerankResponse:
    """Return the answer that scores make."""
    answer = rerank_pb2.RerankResponse()
    for index, score in scores.ranked:
        answer.results.add(index=index, relevance_score=score)
    answer.provenance.provider = PROVIDER
    if scores.tokens is not None:
        answer.usage.tokens = scores.tokens
    return answer


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of what was told; None if one was not."""
    found = list(counts)
    return None if None in found else sum(count for count in found if count is not None)
