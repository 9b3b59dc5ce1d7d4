"""How a score is made from what the model gives for the query and for each document. A scorer is a function; a card names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Scorer = Callable[[NDArray[np.float32], Sequence[NDArray[np.float32]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """One way to score.

    Attributes:
        output: What the model gives for each text.
        score: Makes one raw score, from -1 to 1, for each document.
    """

    output: str
    score: Scorer


def cosine(query: NDArray[np.float32], documents: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the cosine of the query's vector `[H]` and each document's `[H]`, all of length one: float32 `[n]`."""
    return np.asarray(np.stack(documents) @ query, np.float32)


def late_interaction(query: NDArray[np.float32], documents: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return MaxSim averaged over the query's tokens (Khattab & Zaharia 2020): float32 `[n]`.

    Args:
        query: The query's token states `[tokens, H]`, of length one.
        documents: Each document's, likewise.
    """
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    similarities = query @ np.concatenate(documents).T  # [query tokens, all documents' tokens]
    best = np.maximum.reduceat(similarities, starts, axis=1)  # [query tokens, documents]
    return np.asarray(best.mean(axis=0), np.float32)


def relevance(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring raw scores from -1…1 to 0…1."""
    return np.asarray(np.clip((1.0 + raw) / 2.0, 0.0, 1.0), np.float32)


def order(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the documents' places, best first; equal scores by place, ascending."""
    return np.argsort(-scores, kind="stable")


SCORINGS: dict[str, Scoring] = {
    "cosine": Scoring("unit", cosine),
    "late_interaction": Scoring("multi_vector", late_interaction),
}
"""By the name that a card's `scoring` uses."""
