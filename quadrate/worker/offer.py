"""What a loaded model offers to requests, read from its graph's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.forms import Offer
from quadrate.v1.options_pb2 import DENSE, MULTI_VECTOR, SPARSE, Output

if TYPE_CHECKING:
    from collections.abc import Collection

    from quadrate.runtime.engine import Model

_WAYS: dict[Output, frozenset[str]] = {
    DENSE: frozenset({"pooled"}),
    SPARSE: frozenset({"sparse_weights", "vocabulary"}),
    MULTI_VECTOR: frozenset({"multi_vector"}),
}
"""The graph outputs that each form is made from; see quadrate.runtime.graphs.heads."""


def outputs_of(graph_outputs: Collection[str]) -> list[Output]:
    """Return the forms that a graph with outputs of these names can give."""
    return [output for output, names in _WAYS.items() if not names.isdisjoint(graph_outputs)]


def offer(model: Model) -> Offer:
    """Return what an embedding model gives."""
    dense = model.forms.get("pooled")
    return Offer(
        name=model.alias,
        outputs=outputs_of(model.forms),
        width=dense.width if dense is not None else 0,
        matryoshka=model.card.matryoshka_dimensions,
        matryoshka_from=model.card.matryoshka_dimensions_from or 0,
        normalized=model.facts.normalize,
    )
