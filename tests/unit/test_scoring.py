"""What a reranker's model is to read, and how its score is made of what it gives."""

from __future__ import annotations

import numpy as np
import pytest

from quadrate.pairs import PairLayout
from quadrate.runtime.scoring import ACTIVATIONS, SCORINGS, cosine, late_interaction, logits, order
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.tokenizer import TextTokenizer


def states(count: int, seed: int) -> np.ndarray:
    """Return random token states of length one."""
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_late_interaction_is_the_mean_of_each_query_tokens_best_cosine() -> None:
    """Late interaction is the mean over the query's tokens of the best cosine with a document's token."""
    query, documents = states(5, 1), [states(count, count) for count in (1, 7, 3)]
    expected = [np.mean([max(float(token @ other) for other in document) for token in query]) for document in documents]
    np.testing.assert_allclose(late_interaction([query, *documents]), expected, atol=1e-6)
    assert late_interaction([query, query])[0] == pytest.approx(1.0, abs=1e-6)


def test_cosine_is_the_product_of_unit_vectors() -> None:
    """Cosine is the product of unit vectors."""
    vectors = states(4, 2)
    np.testing.assert_allclose(cosine([vectors[0], *vectors]), vectors @ vectors[0], atol=1e-7)


def test_a_pairs_score_is_what_the_model_gave() -> None:
    """One number for each pair, in order."""
    assert logits([np.array([2.5], np.float32), np.array([-1.0], np.float32)]).tolist() == [2.5, -1.0]


def test_similarities_are_brought_between_0_and_1_in_their_order() -> None:
    """Rounding never takes them beyond."""
    assert ACTIVATIONS["rescale"](np.array([-1.0000001, -0.5, 0, 1.0000001], np.float32)).tolist() == [0.0, 0.25, 0.5, 1.0]


def test_the_sigmoid_is_exact_and_never_overflows() -> None:
    """Against its definition in double precision; far out it is 0 and 1, without a warning."""
    raw = np.array([-12.5, -1, 0, 0.3, 9], np.float32)
    np.testing.assert_allclose(ACTIVATIONS["sigmoid"](raw), 1 / (1 + np.exp(-raw.astype(np.float64))), rtol=1e-6)
    assert ACTIVATIONS["sigmoid"](np.array([-1e4, 1e4], np.float32)).tolist() == [0.0, 1.0]


def test_without_an_activation_the_relevance_is_the_raw_score() -> None:
    """Any number may come."""
    raw = np.array([-11.25, 8.5], np.float32)
    assert ACTIVATIONS["none"](raw).tolist() == raw.tolist()


def test_equal_scores_stand_by_index() -> None:
    """Equal scores stand by index, ascending."""
    assert order(np.array([0.5, 0.9, 0.5, 0.9, 0.1], np.float32)).tolist() == [1, 3, 0, 2, 4]
    many = np.random.default_rng(0).integers(0, 3, 200).astype(np.float32)
    assert order(many).tolist() == sorted(range(200), key=lambda place: (-many[place], place))


def test_a_model_reads_the_query_with_each_document_or_before_them() -> None:
    """By its layout: pairs with the place of the second text, or one text after another."""
    tokenizer = TextTokenizer.from_json(letter_tokenizer(), max_tokens=32)
    pair = PairLayout(prefix_ids=(2,), infix_ids=(3,), suffix_ids=(3,))
    paired = SCORINGS["cross_encoder"].readings([5, 6], [[7], [8, 9]], tokenizer=tokenizer, pair=pair)
    assert [(reading.ids.tolist(), reading.second) for reading in paired] == [([2, 5, 6, 3, 7, 3], 4), ([2, 5, 6, 3, 8, 9, 3], 4)]
    apart = SCORINGS["cosine"].readings([5, 6], [[7]], tokenizer=tokenizer, pair=None)
    assert [(reading.ids.tolist(), reading.second) for reading in apart] == [([2, 5, 6, 3], 4), ([2, 7, 3], 3)]
