"""An EmbedResponse written as bytes.

A packed `repeated float` on the wire is a field of bytes, so a vector's memory is its encoding: no float becomes a Python object. What is
written here is, byte for byte, what protobuf writes for the same message; a test holds it to that.
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quadrate.v1 import embed_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quadrate.v1 import options_pb2

_INDEX, _VALUES, _USAGE = b"\x08", b"\x12", b"\x32"  # of Embedding: 1 varint, 2 and 6 length-delimited
_EMBEDDINGS = b"\x12"  # of EmbedResponse: 2
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
        front = _INDEX + varint(index) + _VALUES + varint(len(values))
        back = _USAGE + varint(len(usage)) + usage
        parts += (_EMBEDDINGS, varint(len(front) + len(values) + len(back)), front, values, back)
    parts.append(tail.SerializeToString())
    return b"".join(parts)


def varint(value: int) -> bytes:
    """Return a number of at least 0 in groups of seven bits, lowest first."""
    if value < 0x80:  # noqa: PLR2004 - one group
        return bytes((value,))
    groups = bytearray()
    while value >= 0x80:  # noqa: PLR2004
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
