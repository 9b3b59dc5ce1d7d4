"""Sparse vectors from what models give."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quadrate.runtime import sparse


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-1, 1, width=32)), min_size=1), st.sets(st.integers(0, 9)))
def test_a_tokens_weight_is_its_largest_where_positive(pairs: list[tuple[int, float]], ignored: set[int]) -> None:
    """For each id the strongest of its places; special ids and what is not above zero have none; ids ascend."""
    wanted: dict[int, float] = defaultdict(float)
    for token, weight in pairs:
        if token not in ignored and weight > 0:
            wanted[token] = max(wanted[token], weight)
    ids = np.array([token for token, _ in pairs], np.int32)
    found = sparse.of_tokens(ids, np.array([[weight] for _, weight in pairs], np.float32), ignored)
    assert (found.ids.dtype, found.weights.dtype) == (np.int32, np.float32)
    assert list(zip(found.ids.tolist(), found.weights.tolist(), strict=True)) == sorted(wanted.items())


def test_a_row_over_the_vocabulary_keeps_what_is_above_zero() -> None:
    """Ids in order, with their weights."""
    found = sparse.of_vocabulary(np.array([0, 0.5, 0, -1, 2], np.float32))
    assert (found.ids.tolist(), found.weights.tolist()) == ([1, 4], [0.5, 2.0])
    assert (found.ids.dtype, found.weights.dtype) == (np.int32, np.float32)


def test_a_text_may_have_no_weight_at_all() -> None:
    """Nothing but special tokens gives an empty vector."""
    found = sparse.of_tokens(np.array([0, 2], np.int32), np.ones((2, 1), np.float32), {0, 2})
    assert (found.ids.tolist(), found.weights.tolist()) == ([], [])
