"""Scores and their order."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_worker.scoring import cosine, late_interaction, order, relevance


def states(count: int, seed: int) -> np.ndarray:
    """Return random token states of length one."""
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_late_interaction_is_the_mean_of_each_query_tokens_best_cosine() -> None:
    """Late interaction is the mean over the query's tokens of the best cosine with a document's token."""
    query, documents = states(5, 1), [states(count, count) for count in (1, 7, 3)]
    expected = [np.mean([max(float(token @ other) for other in document) for token in query]) for document in documents]
    np.testing.assert_allclose(late_interaction(query, documents), expected, atol=1e-6)
    assert late_interaction(query, [query])[0] == pytest.approx(1.0, abs=1e-6)


def test_cosine_is_the_product_of_unit_vectors() -> None:
    """Cosine is the product of unit vectors."""
    vectors = states(4, 2)
    np.testing.assert_allclose(cosine(vectors[0], list(vectors)), vectors @ vectors[0], atol=1e-7)


def test_relevance_lies_between_0_and_1_and_keeps_the_order() -> None:
    """Relevance lies between 0 and 1 and keeps the order."""
    assert relevance(np.array([-1.0000001, -0.5, 0, 1.0000001], np.float32)).tolist() == [0.0, 0.25, 0.5, 1.0]


def test_equal_scores_stand_by_index() -> None:
    """Equal scores stand by index, ascending."""
    assert order(np.array([0.5, 0.9, 0.5, 0.9, 0.1], np.float32)).tolist() == [1, 3, 0, 2, 4]
