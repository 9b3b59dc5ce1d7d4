"""Writes the layers of a checkpoint by the names of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.graphs import layers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Packed
    from quadrate.runtime.weights import Weights


class Writer:
    """The layers of one model, in the batch that a graph works on.

    Args:
        packed: The batch.
        weights: The checkpoint.
        prefix: What the names of the tensors begin with.
        epsilon: Of the layer norms.
    """

    def __init__(self, packed: Packed, weights: Weights, *, prefix: str = "", epsilon: float) -> None:
        self.packed = packed
        self.to = packed.to
        self.epsilon = epsilon
        self._weights = weights
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def weight(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return a tensor. Raises ConfigError unless it is there with this shape."""
        return self._weights.get(self._prefix + name, *shape)

    def dense(self, name: str, rows: str, outputs: int, inputs: int, *, bias: bool = True) -> str:
        """Return `rows @ weight.T`, plus the bias if it has one: `[n, inputs]` to `[n, outputs]`."""
        weight = self.weight(f"{name}.weight", outputs, inputs)
        return layers.linear(self.to, rows, weight, self.weight(f"{name}.bias", outputs) if bias else None)

    def norm(self, name: str, rows: str, width: int, *, bias: bool = True) -> str:
        """Return a layer norm of rows `[n, width]`."""
        # Checkpoints converted from TensorFlow call scale and bias gamma and beta.
        scale, shift = ("gamma", "beta") if f"{name}.gamma" in self else ("weight", "bias")
        shifts = self.weight(f"{name}.{shift}", width) if bias else None
        return layers.layer_norm(self.to, rows, self.weight(f"{name}.{scale}", width), shifts, epsilon=self.epsilon)

    def rms(self, name: str, rows: str, width: int) -> str:
        """Return an RMS norm of rows `[n, width]`."""
        return layers.rms_norm(self.to, rows, self.weight(f"{name}.weight", width), epsilon=self.epsilon)


def prefix_of(weights: Weights, name: str, prefixes: tuple[str, ...]) -> str:
    """Return the prefix under which a checkpoint has a tensor; none if it has it under no prefix."""
    return next((prefix for prefix in prefixes if prefix + name in weights), "")
