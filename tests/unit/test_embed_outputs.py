"""From a graph's outputs to what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from embed_worker.outputs import cut, graph_outputs, represent, rows_of
from quadrate.forms import Wanted
from quadrate.v1.options_pb2 import BINARY, DENSE, FLOAT16, FLOAT32, INT8, MULTI_VECTOR, SPARSE
from quadrate.vectors import convert

if TYPE_CHECKING:
    from embed_worker.outputs import Rows

IDS = [np.array([0, 7, 9, 7, 2], np.int32), np.array([0, 5, 2], np.int32)]
SPECIAL = frozenset({0, 2})


def run() -> Rows:
    """Return what a run of bge-m3's head gives for IDS."""
    random = np.random.default_rng(1)
    pooled = [random.standard_normal(16).astype(np.float32) for _ in IDS]
    many = [random.standard_normal((len(ids), 16)).astype(np.float32) for ids in IDS]
    return {
        "pooled": pooled,
        "unit": [row / np.linalg.norm(row) for row in pooled],
        "sparse_weights": [np.array([[9], [0.5], [0.25], [0.75], [9]], np.float32), np.array([[9], [0], [9]], np.float32)],
        "multi_vector": [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in many],
    }


def test_one_run_gives_all_forms_of_a_text() -> None:
    """Dense, sparse and multi-vector come from the outputs of one run, each text's own."""
    rows = run()
    wanted = Wanted(outputs=(DENSE, SPARSE, MULTI_VECTOR))
    assert graph_outputs(wanted, rows) == ["unit", "sparse_weights", "multi_vector"]
    first, second = represent(wanted, rows, IDS, head="bge_m3", weightless=SPECIAL)
    assert np.array_equal(first.dense, rows["unit"][0])
    assert first.sparse is not None
    assert second.sparse is not None
    assert (first.sparse.ids.tolist(), first.sparse.weights.tolist()) == ([7, 9], [0.75, 0.25])
    assert second.sparse.ids.tolist() == []
    assert np.array_equal(first.multi_vector, rows["multi_vector"][0][1:])
    assert second.multi_vector.shape == (2, 16) == (rows_of(3, "bge_m3"), 16)


def test_what_was_not_asked_for_is_not_there() -> None:
    """Each form alone, and no output of the graph that nobody needs."""
    rows = run()
    for output, name in ((DENSE, "dense"), (SPARSE, "sparse"), (MULTI_VECTOR, "multi_vector")):
        wanted = Wanted(outputs=(output,))
        needed = {key: rows[key] for key in graph_outputs(wanted, rows)}
        assert len(needed) == 1
        found = represent(wanted, needed, IDS, head="bge_m3", weightless=SPECIAL)
        assert all([field for field in ("dense", "sparse", "multi_vector") if getattr(one, field) is not None] == [name] for one in found)


def test_every_row_is_kept_of_other_heads() -> None:
    """Only bge-m3's multi-vectors begin behind the first token."""
    rows = {"multi_vector": run()["multi_vector"]}
    found = represent(Wanted(outputs=(MULTI_VECTOR,)), rows, IDS, head="token_vectors", weightless=SPECIAL)
    assert [one.multi_vector.shape[0] for one in found] == [5, 3] == [rows_of(5, "token_vectors"), rows_of(3, "token_vectors")]


def test_splade_gives_its_vocabulary_where_it_is_positive() -> None:
    """Sparse vectors of a model with a row over the vocabulary."""
    rows = {"vocabulary": [np.array([0, 1.5, 0, 0.5], np.float32), np.zeros(4, np.float32)]}
    wanted = Wanted(outputs=(SPARSE,))
    assert graph_outputs(wanted, rows) == ["vocabulary"]
    first, second = represent(wanted, rows, IDS, head="splade", weightless=SPECIAL)
    assert first.sparse is not None
    assert second.sparse is not None
    assert (first.sparse.ids.tolist(), second.sparse.ids.tolist()) == ([1, 3], [])


@pytest.mark.parametrize("value_type", [FLOAT32, FLOAT16, INT8, BINARY])
def test_value_types_are_made_of_the_finished_vectors(value_type: int) -> None:
    """Dense vectors are cut and brought to length one first; the rows of multi-vectors are as they are."""
    rows = run()
    wanted = Wanted(outputs=(DENSE, MULTI_VECTOR), value_type=value_type, dimensions=8)
    assert graph_outputs(wanted, rows) == ["pooled", "multi_vector"]
    found = represent(wanted, rows, IDS, head="bge_m3", weightless=SPECIAL)
    for one, pooled, many in zip(found, rows["pooled"], rows["multi_vector"], strict=True):
        assert np.array_equal(one.dense, convert(cut([pooled], 8, normalize=True)[0], value_type))
        assert np.array_equal(one.multi_vector, convert(many[1:], value_type))


def test_a_matryoshka_cut_comes_before_the_length_is_made_one() -> None:
    """A Matryoshka cut comes before the length is made one, of long and of short vectors; a row of zeros stays one."""
    rows = [np.array([3, 4, 12], np.float32), np.array([0.03, 0.04, 0.99], np.float32), np.zeros(3, np.float32)]
    assert np.allclose(cut(rows, 2, normalize=True), [[0.6, 0.8], [0.6, 0.8], [0, 0]])
    assert np.allclose(cut(rows, 2, normalize=False), [[3, 4], [0.03, 0.04], [0, 0]])
