"""Sparse vectors: what a model's output for one text says of vocabulary entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Weights of vocabulary entries.

    Attributes:
        ids: Token ids, ascending, each once: int32[n].
        weights: One for each id, greater than zero: float32[n].
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


def of_tokens(ids: NDArray[np.int32], weights: NDArray[np.float32], ignored: Collection[int]) -> Sparse:
    """Return bge-m3's lexical weights: for each token id the largest weight among its places, if it is positive.

    As FlagEmbedding's `BGEM3FlagModel` does: a word said twice counts as its stronger place, and special tokens have no weight.

    Args:
        ids: The text's token ids as the model read them: int32[tokens].
        weights: One for each: float32[tokens] or [tokens, 1].
        ignored: Ids that never have a weight: `TextTokenizer.weightless_ids`.
    """
    flat = weights.reshape(-1)
    kept = (flat > 0) & ~np.isin(ids, list(ignored))
    unique, places = np.unique(ids[kept], return_inverse=True)
    strongest = np.zeros(len(unique), np.float32)
    np.maximum.at(strongest, places, flat[kept])
    return Sparse(unique.astype(np.int32, copy=False), strongest)


def of_vocabulary(row: NDArray[np.float32]) -> Sparse:
    """Return SPLADE's vector from its row over the whole vocabulary, float32[vocabulary]: the entries with a weight above zero."""
    ids = np.flatnonzero(row > 0)
    return Sparse(ids.astype(np.int32), row[ids].astype(np.float32, copy=False))
