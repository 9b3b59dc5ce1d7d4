"""The answer written as bytes is the message's own encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_worker.answers import respond
from embed_worker.outputs import Representation
from quadrate.framing import varint
from quadrate.runtime.sparse import Sparse
from quadrate.v1 import embed_pb2, options_pb2
from quadrate.vectors import convert

PROVENANCE = options_pb2.Provenance(
    revision="sha256:0123456789ab", precision=options_pb2.EXACT, provider="CPUExecutionProvider", pooling="mean"
)
TIMINGS = options_pb2.Timings(tokenize_seconds=0.0, queue_seconds=0.5, inference_seconds=0.25, total_seconds=1.0)


@given(
    st.text(max_size=20),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=200),
    st.sampled_from([1, 31, 32, 384, 5000]),
)
def test_the_answer_is_byte_for_byte_the_message(model: str, usages: list[tuple[int, int]], width: int) -> None:
    """The answer is byte for byte what protobuf writes for the same message."""
    vectors = [np.random.default_rng(place).standard_normal(width).astype(np.float32) for place in range(len(usages))]
    total = sum(tokens for tokens, _ in usages), sum(removed for _, removed in usages)
    if max(total) >= 2**31:
        usages = [(tokens % 1000, removed % 1000) for tokens, removed in usages]
        total = sum(tokens for tokens, _ in usages), sum(removed for _, removed in usages)
    message = embed_pb2.EmbedResponse(model=model, provenance=PROVENANCE, timings=TIMINGS)
    for place, (vector, (tokens, removed)) in enumerate(zip(vectors, usages, strict=True)):
        message.embeddings.add(index=place, values=vector.tolist(), usage=options_pb2.Usage(tokens=tokens, tokens_cut=removed))
    message.usage.tokens, message.usage.tokens_cut = total
    tokens, removed = [tokens for tokens, _ in usages], [removed for _, removed in usages]
    found = [Representation(vector) for vector in vectors]
    written = respond(model, found, tokens, removed, provenance=PROVENANCE, timings=TIMINGS)
    assert embed_pb2.EmbedResponse.FromString(written) == message
    assert written == message.SerializeToString()


@given(st.integers(0, 2**63))
def test_varints_are_those_of_protobuf(value: int) -> None:
    """Numbers are written in groups of seven bits, lowest first."""
    groups = varint(value)
    assert sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(groups)) == value
    assert all(byte >= 0x80 for byte in groups[:-1])
    assert groups[-1] < 0x80


@pytest.mark.parametrize("value_type", [number for number in options_pb2.ValueType.values() if number])
@pytest.mark.parametrize("entries", [0, 1, 200])
def test_every_form_is_byte_for_byte_the_message(value_type: int, entries: int) -> None:
    """Sparse vectors and multi-vectors, empty ones too, beside a dense vector or alone, in each value type."""
    random = np.random.default_rng(entries)
    dense = convert(random.standard_normal(20).astype(np.float32), value_type)
    many = convert(random.standard_normal((entries, 20)).astype(np.float32), value_type)
    sparse = Sparse(np.arange(entries, dtype=np.int32) * 1000, random.random(entries).astype(np.float32))
    found = [Representation(dense, sparse, many), Representation(sparse=sparse), Representation(multi_vector=many)]
    message = embed_pb2.EmbedResponse(model="m", provenance=PROVENANCE, timings=TIMINGS)
    is_float32 = value_type == options_pb2.FLOAT32
    for place, one in enumerate(found):
        entry = message.embeddings.add(index=place, usage=options_pb2.Usage(tokens=7, tokens_cut=0))
        if one.dense is not None:
            entry.MergeFrom(
                embed_pb2.Embedding(values=dense.tolist()) if is_float32 else embed_pb2.Embedding(packed_values=dense.tobytes())
            )
        if one.sparse is not None:
            entry.sparse.CopyFrom(embed_pb2.SparseVector(token_ids=sparse.ids.tolist(), weights=sparse.weights.tolist()))
        if one.multi_vector is not None:
            values = {"values": many.ravel().tolist()} if is_float32 else {"packed_values": many.tobytes()}
            entry.multi_vector.CopyFrom(embed_pb2.MultiVector(rows=many.shape[0], width=many.shape[1], **values))
    message.usage.tokens, message.usage.tokens_cut = 21, 0
    written = respond("m", found, [7] * 3, [0] * 3, value_type=value_type, provenance=PROVENANCE, timings=TIMINGS)
    assert embed_pb2.EmbedResponse.FromString(written) == message
    assert written == message.SerializeToString()
