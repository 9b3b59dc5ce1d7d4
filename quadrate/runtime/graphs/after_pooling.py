"""Layers between the pooling and the normalisation, as sentence-transformers' modules have them. Each writes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.runtime.graphs import layers

if TYPE_CHECKING:
    from quadrate.runtime.graphs.builder import Builder
    from quadrate.runtime.weights import Weights

EPSILON = 1e-5
"""Of the layer norm: torch's default, which the modules keep."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer.

    Attributes:
        folder: Where it lies; its weights are `<folder>/linear.weight`, `[outputs, inputs]`, and `<folder>/linear.bias`.
        inputs: The width it takes.
        outputs: The width it gives.
        bias: Whether it has a bias.
        activation: What follows.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: layers.Activation

    def write(self, to: Builder, weights: Weights, rows: str, width: int) -> tuple[str, int]:
        """Return the layer's rows, `[B, width]` to `[B, outputs]`, and their width. Raises ConfigError if the weights do not fit."""
        weight = weights.get(f"{self.folder}/linear.weight", self.outputs, width)
        bias = weights.get(f"{self.folder}/linear.bias", self.outputs) if self.bias else None
        return layers.activation(to, self.activation, layers.linear(to, rows, weight, bias)), self.outputs


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm.

    Attributes:
        folder: Where its weights `<folder>/norm.weight` and `<folder>/norm.bias` lie; empty for one without weights.
    """

    folder: str

    def write(self, to: Builder, weights: Weights, rows: str, width: int) -> tuple[str, int]:
        """Return normalised rows and their width. Raises ConfigError if the weights do not fit."""
        if not self.folder:
            return layers.layer_norm(to, rows, np.ones(width, np.float32), None, epsilon=EPSILON), width
        scale, bias = (weights.get(f"{self.folder}/norm.{part}", width) for part in ("weight", "bias"))
        return layers.layer_norm(to, rows, scale, bias, epsilon=EPSILON), width
