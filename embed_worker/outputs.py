"""From what a graph gives to what was asked for: cuts, lengths, number formats, sparse vectors, the rows of multi-vectors.

All of it is arithmetic on one text's own values, so that a text's answer does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.runtime import sparse
from quadrate.v1.options_pb2 import DENSE, MULTI_VECTOR, SPARSE
from quadrate.vectors import convert

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.forms import Wanted
    from quadrate.runtime.folder import Head

    Rows = Mapping[str, Sequence[NDArray[np.float32]]]
    """What a run gave: for each output by name an array for each text."""

SKIPPED_TOKENS: Mapping[str, int] = {"bge_m3": 1}
"""By head, how many of the first tokens have no row: bge-m3's multi-vectors begin behind `<s>` and hold `</s>`, as FlagEmbedding's do."""
_SHORTEST = 1e-12
"""Vectors shorter than this stay as they are: zero has no direction."""


@dataclass(frozen=True, slots=True, eq=False)
class Representation:
    """What one text gave. None: was not asked for.

    Attributes:
        dense: `[width]`, in the value type that was asked for.
        sparse: Weights of vocabulary entries.
        multi_vector: `[rows, width]`, in that value type, each row of length one before it was put into it.
    """

    dense: NDArray[Any] | None = None
    sparse: sparse.Sparse | None = None
    multi_vector: NDArray[Any] | None = None


def rows_of(tokens: int, head: Head) -> int:
    """Return how many rows the multi-vector of a text of so many tokens has."""
    return tokens - SKIPPED_TOKENS.get(head, 0)


def graph_outputs(wanted: Wanted, available: Collection[str]) -> list[str]:
    """Return the names of the graph's outputs that are needed; one run gives them all."""
    dense = "unit" if wanted.normalize and wanted.dimensions is None else "pooled"
    if wanted.is_plain:
        return [dense]
    weights = "vocabulary" if "vocabulary" in available else "sparse_weights"
    names = {DENSE: dense, SPARSE: weights, MULTI_VECTOR: "multi_vector"}
    return [name for output, name in names.items() if output in wanted.outputs]


def represent(
    wanted: Wanted, rows: Rows, ids: Sequence[NDArray[np.int32]], *, head: Head, weightless: Collection[int]
) -> list[Representation]:
    """Return what was asked for of each text.

    Args:
        wanted: What was asked for.
        rows: What the run gave.
        ids: The token ids of each text as the model read them.
        head: What made the outputs.
        weightless: Ids that have no place in a sparse vector of token weights.
    """
    if wanted.is_plain:
        return [Representation(row) for row in rows["unit" if wanted.normalize else "pooled"]]
    dense = _dense(wanted, rows) if DENSE in wanted.outputs else [None] * len(ids)
    weights = _sparse(rows, ids, weightless) if SPARSE in wanted.outputs else [None] * len(ids)
    skipped = SKIPPED_TOKENS.get(head, 0)
    many = _many(wanted, rows, skipped) if MULTI_VECTOR in wanted.outputs else [None] * len(ids)
    return [Representation(*parts) for parts in zip(dense, weights, many, strict=True)]


def cut(rows: Iterable[NDArray[np.float32]], width: int, *, normalize: bool) -> list[NDArray[np.float32]]:
    """Return the first `width` values of pooled vectors, brought back to length one if asked (Kusupati et al. 2022)."""
    kept = np.stack([row[:width] for row in rows])
    if normalize:
        kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), _SHORTEST)
    return list(kept.astype(np.float32, copy=False))


def _dense(wanted: Wanted, rows: Rows) -> list[NDArray[Any]]:
    if wanted.dimensions is None:
        found: Sequence[NDArray[np.float32]] = rows["unit" if wanted.normalize else "pooled"]
    else:
        found = cut(rows["pooled"], wanted.dimensions, normalize=wanted.normalize)
    return [convert(row, wanted.value_type) for row in found]


def _sparse(rows: Rows, ids: Sequence[NDArray[np.int32]], weightless: Collection[int]) -> list[sparse.Sparse]:
    if "vocabulary" in rows:
        return [sparse.of_vocabulary(row) for row in rows["vocabulary"]]
    return [sparse.of_tokens(own, weights, weightless) for own, weights in zip(ids, rows["sparse_weights"], strict=True)]


def _many(wanted: Wanted, rows: Rows, skipped: int) -> list[NDArray[Any]]:
    return [convert(found[skipped:], wanted.value_type) for found in rows["multi_vector"]]
