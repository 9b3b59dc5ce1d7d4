"""What is made of an encoder's token states: vectors, token vectors, weights, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.builder import Form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.runtime.folder import Facts
    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.weights import Weights

ONLY: Mapping[str, Only] = {"cls": "first", "last": "last"}
"""The token that is pooled, by the name of the pooling, where one alone is."""


def write(packed: Packed, facts: Facts, weights: Weights) -> dict[str, tuple[str, Form]]:
    """Write encoder and head; return the value and the form of each output by name."""
    if facts.head == "token_vectors":
        return _token_vectors(packed, facts, weights)
    return _pooled(packed, facts, weights)


def _pooled(packed: Packed, facts: Facts, weights: Weights) -> dict[str, tuple[str, Form]]:
    """One vector a text: `pooled`, and `unit`, the same of length one."""
    only = ONLY.get(facts.pooling)
    states = facts.encoder.write(packed, weights, only=only)
    pooled = states if only else packed.to.node("MatMul", packed.input("shares"), states)
    form = Form("text", facts.encoder.width)
    return {"pooled": (pooled, form), "unit": (layers.unit(packed.to, pooled), form)}


def _token_vectors(packed: Packed, facts: Facts, weights: Weights) -> dict[str, tuple[str, Form]]:
    """One vector a token, of length one."""
    states = facts.encoder.write(packed, weights, only=None)
    return {"multi_vector": (layers.unit(packed.to, states), Form("token", facts.encoder.width))}
