"""What every family of encoders has: its sizes, read from config.json, and how it writes itself into a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A masked language model's head up to its last product, `rows @ weight.T + bias`, which is large.

    Attributes:
        rows: What is multiplied, `[T, width]`.
        weight: `[vocabulary, width]`.
        bias: `[vocabulary]`; None for none.
    """

    rows: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder(ABC):
    """The sizes that all families share.

    Attributes:
        width: Values of a token's state.
        layers: Layers.
        heads: Attention heads of a layer.
        inner_width: Values between the two products of a feed-forward layer.
        vocabulary_size: Rows of the word table.
        max_positions: The most tokens that it can read, special tokens included.
    """

    width: int
    layers: int
    heads: int
    inner_width: int
    vocabulary_size: int
    max_positions: int

    @classmethod
    @abstractmethod
    def read(cls, config: JsonFile) -> Self:
        """Return the encoder that a config.json describes. Raises ConfigError, with the reason, for what cannot be served right."""

    @abstractmethod
    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """Write the encoder and return its last states: `[T, width]`, or with `only` those of one token a text, `[B, width]`.

        Raises ConfigError if a weight is missing or has another shape.
        """

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:  # noqa: ARG002 - families that have one use them
        """Write encoder and head for sequence classification and return the scores, `[B, labels]`.

        Raises ConfigError as `write` does, and if the family has no such head.
        """
        raise ConfigError(f"{weights.folder}: {_family(self)} has no head for sequence classification that this version serves.")

    def predict(self, packed: Packed, weights: Weights) -> Vocabulary:  # noqa: ARG002 - as above
        """Write encoder and masked language model's head for all tokens.

        Raises ConfigError as `write` does, and if the family has no such head.
        """
        raise ConfigError(f"{weights.folder}: {_family(self)} has no masked language model's head that this version serves.")

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only itself and what stands before it."""
        return False

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the matrix products for each token: 2 for each weight."""
        return 2.0 * self.layers * (4 * self.width**2 + 2 * self.width * self.inner_width)

    @property
    def operations_per_pair(self) -> float:
        """Operations of the attention for each pair of places: 4 a layer for each value of a state."""
        return 4.0 * self.layers * self.width


def _family(encoder: Encoder) -> str:
    return type(encoder).__name__


MOST_LAYERS = 1_000
"""Far more than any encoder has: what is above is a damaged number, and would be written out layer by layer."""


def check_heads(config: JsonFile, width: int, heads: int, layers: int) -> None:
    """Raise ConfigError for sizes that make no encoder."""
    if heads < 1 or not 1 <= layers <= MOST_LAYERS or width < 1 or width % heads:
        raise ConfigError(f"{config.path}: {width} values cannot be split among {heads} heads of {layers} layers; fetch the model again.")
