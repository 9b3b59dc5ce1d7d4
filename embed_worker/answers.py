"""An EmbedResponse written as bytes.

A packed `repeated float` on the wire is a field of bytes, so a vector's memory is its encoding: no float becomes a Python object. What is
written here is, byte for byte, what protobuf writes for the same message; a test holds it to that.
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadrate.framing import delimited, varint
from quadrate.v1 import embed_pb2
from quadrate.vectors import FLOAT32S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embed_worker.outputs import Representation
    from quadrate.runtime.sparse import Sparse
    from quadrate.v1 import options_pb2

_EMBEDDINGS = 2
"""The number of EmbedResponse.embeddings."""
_INDEX, _VALUES, _PACKED, _SPARSE, _MULTI_VECTOR, _USAGE = b"\x08", 2, 3, 4, 5, 6
"""Of Embedding: the tag of `index`, the numbers of the rest."""
_WEIGHTS = 2
"""The number of SparseVector.weights."""
_MANY_VALUES, _MANY_PACKED = 3, 4
"""The numbers of MultiVector's `values` and `packed_values`."""
_USAGE_TOKENS, _USAGE_CUT = b"\x08", b"\x10"


def respond(
    model: str,
    found: Sequence[Representation],
    tokens: Sequence[int],
    cut: Sequence[int],
    *,
    value_type: int = 0,
    provenance: options_pb2.Provenance,
    timings: options_pb2.Timings,
) -> bytes:
    """Return the serialised EmbedResponse; `found`, `tokens` and `cut` have one entry for each input."""
    head = embed_pb2.EmbedResponse(model=model)
    tail = embed_pb2.EmbedResponse(provenance=provenance, timings=timings)
    tail.usage.tokens, tail.usage.tokens_cut = sum(tokens), sum(cut)
    parts = [head.SerializeToString()]
    is_float32 = value_type in FLOAT32S
    for index, (one, read, removed) in enumerate(zip(found, tokens, cut, strict=True)):
        usage = _USAGE_TOKENS + varint(read) + _USAGE_CUT + varint(removed)
        front = _INDEX + varint(index)
        parts.append(delimited(_EMBEDDINGS, front, *_forms(one, is_float32=is_float32), delimited(_USAGE, usage)))
    parts.append(tail.SerializeToString())
    return b"".join(parts)


def _forms(one: Representation, *, is_float32: bool) -> list[bytes]:
    """Return the fields of Embedding between its index and its usage."""
    fields = []
    if one.dense is not None:
        fields.append(_vector(_VALUES if is_float32 else _PACKED, one.dense))
    if one.sparse is not None:
        fields.append(delimited(_SPARSE, _sparse(one.sparse)))
    if one.multi_vector is not None:
        fields.append(delimited(_MULTI_VECTOR, *_many(one.multi_vector, _MANY_VALUES if is_float32 else _MANY_PACKED)))
    return fields


def _vector(number: int, values: NDArray[Any]) -> bytes:
    """Return a field of numbers as they lie in memory: little-endian, on every machine that ONNX Runtime is built for."""
    return delimited(number, values.tobytes())


def _sparse(found: Sparse) -> bytes:
    if not len(found.ids):
        return b""
    return embed_pb2.SparseVector(token_ids=found.ids.tolist()).SerializeToString() + _vector(_WEIGHTS, found.weights)


def _many(matrix: NDArray[Any], number: int) -> list[bytes]:
    """Return the fields of MultiVector."""
    rows, width = matrix.shape
    shape = embed_pb2.MultiVector(rows=rows, width=width).SerializeToString()
    return [shape, _vector(number, matrix)] if matrix.size else [shape]
