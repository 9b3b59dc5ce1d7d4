"""The answer written as bytes is the message's own encoding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embed_worker.answers import respond, varint
from embed_worker.service import cut
from quadrate.v1 import embed_pb2, options_pb2

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
    written = respond(model, vectors, tokens, removed, provenance=PROVENANCE, timings=TIMINGS)
    assert embed_pb2.EmbedResponse.FromString(written) == message
    assert written == message.SerializeToString()


@given(st.integers(0, 2**63))
def test_varints_are_those_of_protobuf(value: int) -> None:
    """Numbers are written in groups of seven bits, lowest first."""
    groups = varint(value)
    assert sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(groups)) == value
    assert all(byte >= 0x80 for byte in groups[:-1])
    assert groups[-1] < 0x80


def test_a_matryoshka_cut_comes_before_the_length_is_made_one() -> None:
    """A Matryoshka cut comes before the length is made one; a row of zeros stays one."""
    rows = [np.array([3, 4, 12], np.float32), np.zeros(3, np.float32)]
    assert np.allclose(cut(rows, 2, normalize=True), [[0.6, 0.8], [0, 0]])
    assert np.allclose(cut(rows, 2, normalize=False), [[3, 4], [0, 0]])
