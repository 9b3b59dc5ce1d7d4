"""How a reranker's score is made: what the model is to read for a query and its documents, and what becomes of what it gives.

Some scorings let the model read query and document together and give the score themselves; others let it read them apart and compare
what it made of each. A card names one of SCORINGS. The raw score becomes the relevance by the activation that the model was trained for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.runtime.packing import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.pairs import PairLayout
    from quadrate.runtime.folder import Facts
    from quadrate.tokenizer import TextTokenizer

    Ids = Sequence[int] | NDArray[np.int32]
    Rows = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """One way to score.

    Attributes:
        output: What the model gives for each reading.
        score: Makes one raw score for each document of what it gave, in the order of `readings`: float32 `[documents]`.
        is_paired: Whether the model reads the query together with each document.
    """

    output: str
    score: Callable[[Rows], NDArray[np.float32]]
    is_paired: bool = False

    def readings(self, query: Ids, documents: Sequence[Ids], *, tokenizer: TextTokenizer, pair: PairLayout | None) -> list[Reading]:
        """Return what the model is to read for content ids: a pair for each document, or the query and then each document."""
        if pair is None:
            return [Reading.of(tokenizer.read(ids)) for ids in (query, *documents)]  # type: ignore[arg-type]  # ids of either kind
        pairs = (pair.read(query, document) for document in documents)
        return [Reading(found.ids, found.second) for found in pairs]


def cosine(rows: Rows) -> NDArray[np.float32]:
    """Return the cosine of the query's vector, the first row `[H]`, and each document's `[H]`, all of length one: float32 `[n]`."""
    return np.asarray(np.stack(rows[1:]) @ rows[0], np.float32)


def late_interaction(rows: Rows) -> NDArray[np.float32]:
    """Return MaxSim averaged over the query's tokens (Khattab & Zaharia 2020): float32 `[n]`.

    Args:
        rows: The query's token states `[tokens, H]`, of length one, and each document's.
    """
    query, documents = rows[0], rows[1:]
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    similarities = query @ np.concatenate(documents).T  # [query tokens, all documents' tokens]
    best = np.maximum.reduceat(similarities, starts, axis=1)  # [query tokens, documents]
    return np.asarray(best.mean(axis=0), np.float32)


def logits(rows: Rows) -> NDArray[np.float32]:
    """Return the scores that the model gave itself, `[1]` for each pair: float32 `[n]`."""
    return np.concatenate(rows).astype(np.float32, copy=False)


def _identity(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    return raw


def _sigmoid(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.exp(-np.logaddexp(0.0, -raw.astype(np.float64))).astype(np.float32)


def _rescale(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.clip((1.0 + raw) / 2.0, 0.0, 1.0), np.float32)


SCORINGS: Mapping[str, Scoring] = {
    "cosine": Scoring("unit", cosine),
    "late_interaction": Scoring("multi_vector", late_interaction),
    "cross_encoder": Scoring("score", logits, is_paired=True),
    "causal": Scoring("score", logits, is_paired=True),
}
"""By the name that a card's `scoring` uses."""

ACTIVATIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "none": _identity,
    "sigmoid": _sigmoid,
    "rescale": _rescale,
}
"""What makes the relevance of raw scores: nothing, so that it may be any number; the logistic function; or (1 + score) / 2, which brings
similarities from -1…1 to 0…1."""


def activation_of(scoring: Scoring, facts: Facts) -> str:
    """Return the name of a model's activation: its own if it scores pairs; similarities are brought to 0…1."""
    return facts.activation if scoring.is_paired else "rescale"


def order(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the documents' places, best first; equal scores by place, ascending."""
    return np.argsort(-scores, kind="stable")
