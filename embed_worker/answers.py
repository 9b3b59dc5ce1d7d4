"""An EmbedResponse written as bytes.

A packed `repeated float` on the wire is a field of bytes, so a vector's memory is its encoding: no float becomes a Python object. What is
written here is, byte for byte, what protobuf writes for the same message; a test holds it to that.
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quadrate.framing import delimited, varint
from quadrate.v1 import embed_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quadrate.v1 import options_pb2

_EMBEDDINGS = 2
"""The number of EmbedResponse.embeddings."""
_INDEX, _VALUES, _USAGE = b"\x08", 2, 6
"""Of Embedding: the tag of `index`, the numbers of `values` and `usage`."""
_USAGE_TOKENS, _USAGE_CUT = b"\x08", b"\x10"


def respond(
    model: str,
    vectors: Sequence[NDArray[np.float32]],
    tokens: Sequence[int],
    cut: Sequence[int],
    *,
    provenance: options_pb2.Provenance,
    timings: options_pb2.Timings,
) -> bytes:
    """Return the serialised EmbedResponse; `vectors`, `tokens` and `cut` have one entry for each input."""
    head = embed_pb2.EmbedResponse(model=model)
    tail = embed_pb2.EmbedResponse(provenance=provenance, timings=timings)
    tail.usage.tokens, tail.usage.tokens_cut = sum(tokens), sum(cut)
    parts = [head.SerializeToString()]
    for index, (vector, read, removed) in enumerate(zip(vectors, tokens, cut, strict=True)):
        values = np.ascontiguousarray(vector, "<f4").tobytes()
        usage = _USAGE_TOKENS + varint(read) + _USAGE_CUT + varint(removed)
        front = _INDEX + varint(index)
        parts.append(delimited(_EMBEDDINGS, front, delimited(_VALUES, values), delimited(_USAGE, usage)))
    parts.append(tail.SerializeToString())
    return b"".join(parts)
