"""A model's whole graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.graphs import heads
from quadrate.runtime.graphs.builder import Builder, Graph
from quadrate.runtime.graphs.packed import Packed

if TYPE_CHECKING:
    from quadrate.runtime.folder import Facts
    from quadrate.runtime.graphs.builder import Arithmetic, Kernels
    from quadrate.runtime.weights import Weights


def build(facts: Facts, weights: Weights, arithmetic: Arithmetic = "float32", kernels: Kernels = "onnxruntime") -> Graph:
    """Write the graph of encoder and head. Raises ConfigError if the weights do not fit the facts."""
    packed = Packed(Builder(weights, arithmetic, kernels), pairs=facts.head == "classification" and facts.has_pair_types)
    return packed.to.finish(heads.write(packed, facts, weights))
