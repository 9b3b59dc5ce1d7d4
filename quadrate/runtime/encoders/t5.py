"""The encoder of Raffel et al. 2020, as in T5, T5 1.1 and mT5.

In place of positions there is a bias for each distance, and logits are not scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from quadrate.errors import ConfigError
from quadrate.runtime.encoders.encoder import Encoder, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.sight import Relative, Sight
from quadrate.runtime.graphs.writer import Writer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

MAX_POSITIONS = 1024
"""There is no table of positions; what a model was trained for says its tokenizer or its sentence_bert_config.json, as a rule 512 tokens.
The bias of distances makes the memory of a run grow with the square of a text's length, so there is an end."""
MOST_DISTANCE = 2**16
"""Each distance up to the greatest that counts has a place in the graph, for each head."""
_HEADROOM_BITS = 6
"""Powers of two by which the inner rows of feed-forward layers may exceed float16."""

_FEED_FORWARDS: dict[str, tuple[layers.Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}
"""Activation, and whether there is a gate, by the names that config.json uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class T5(Encoder):
    """The encoder half of T5.

    Attributes:
        head_width: Values of a head.
        buckets: Entries of the table of distances, both directions together.
        max_distance: Greater ones share a bucket.
        activation: Of the feed-forward layers.
        gated: Whether they have a gate.
        epsilon: Of the norms.
    """

    head_width: int
    buckets: int
    max_distance: int
    activation: layers.Activation
    gated: bool
    epsilon: float

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder."""
        missing = "gated-gelu" if config.data.get("model_type") == "mt5" else "relu"
        activation, gated = config.choice("feed_forward_proj", _FEED_FORWARDS, missing)
        encoder = cls(
            width=config.integer("d_model"),
            layers=config.integer("num_layers"),
            heads=config.integer("num_heads"),
            inner_width=config.integer("d_ff"),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=MAX_POSITIONS,
            head_width=config.integer("d_kv", 64),
            buckets=config.integer("relative_attention_num_buckets", 32),
            max_distance=config.integer("relative_attention_max_distance", 128),
            activation=activation,
            gated=gated,
            epsilon=config.number("layer_norm_epsilon", 1e-6),
        )
        # Heads may be wider together than a state: they do not divide it.
        check_heads(config, encoder.heads, encoder.heads, encoder.layers)
        if encoder.buckets < 4 or not encoder.buckets // 4 < encoder.max_distance <= MOST_DISTANCE:  # noqa: PLR2004 - two directions, near and far in each
            raise ConfigError(
                f"{config.path}: {encoder.buckets} buckets for distances up to {encoder.max_distance}; fetch the model again."
            )
        return encoder

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Layers(self, packed, weights).states(only)

    @property
    def operations_per_token(self) -> float:
        """See Encoder; heads may be wider together than a state, and a gate is one product more."""
        products = 4 * self.heads * self.head_width + (3 if self.gated else 2) * self.inner_width
        return 2.0 * self.layers * self.width * products

    @property
    def operations_per_pair(self) -> float:
        """See Encoder."""
        return 4.0 * self.layers * self.heads * self.head_width

    def bucket(self, distance: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the entry of the table for each distance, from the token that asks to the one that is seen."""
        half = self.buckets // 2
        exact = half // 2
        away = np.abs(distance)
        # float32, as checkpoints were trained: at the borders of buckets the rounding decides.
        ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(self.max_distance / exact))
        far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
        return np.where(distance > 0, half, 0) + np.where(away < exact, away, far)


class _Layers(Writer):
    def __init__(self, size: T5, packed: Packed, weights: Weights) -> None:
        super().__init__(packed, weights, epsilon=size.epsilon)
        self.size = size

    def states(self, only: Only | None) -> str:
        size, to = self.size, self.to
        name = "shared.weight" if "shared.weight" in self else "encoder.embed_tokens.weight"
        state = to.node("Gather", to.constant(self.weight(name, size.vocabulary_size, size.width)), self.packed.input("ids"))  # [T, H]
        sight = Sight(relative=self._relative())
        for layer in range(size.layers):
            state = self._layer(f"encoder.block.{layer}.layer", state, sight, only if layer == size.layers - 1 else None)
        return self.rms("encoder.final_layer_norm", state, size.width)

    def _relative(self) -> Relative:
        """The first layer's table, which all layers share, spread out over distances."""
        name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table = self.weight(name, self.size.buckets, self.size.heads)
        reach = self.size.max_distance
        spread = table[self.size.bucket(np.arange(-reach, reach + 1))].T
        return Relative(table=self.to.constant(spread), reach=reach)

    def _layer(self, name: str, state: str, sight: Sight, only: Only | None) -> str:
        size, to = self.size, self.to
        seen = self.rms(f"{name}.0.layer_norm", state, size.width)
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        state = to.node("Add", state, self._attention(f"{name}.0.SelfAttention", seen, sight, only))
        return to.node("Add", state, self._feed_forward(f"{name}.1.DenseReluDense", self.rms(f"{name}.1.layer_norm", state, size.width)))

    def _attention(self, name: str, seen: str, sight: Sight, only: Only | None) -> str:
        size = self.size
        total = size.heads * size.head_width
        asking = self.packed.pick(seen, only) if only else seen
        query = self.dense(f"{name}.q", asking, total, size.width, bias=False)
        key, value = (self.dense(f"{name}.{part}", seen, total, size.width, bias=False) for part in "kv")
        attended = attend(self.packed, query, key, value, heads=Heads(size.heads, size.head_width), sight=sight, only=only)
        return self.dense(f"{name}.o", attended, size.width, total, bias=False)

    def _feed_forward(self, name: str, rows: str) -> str:
        size, to = self.size, self.to
        names = ("wi_0", "wi_1") if size.gated else ("wi",)
        inner, *gate = [self.dense(f"{name}.{part}", rows, size.inner_width, size.width, bias=False) for part in names]
        inner = layers.activation(to, size.activation, inner)
        if gate:
            inner = to.node("Mul", inner, *gate)
        return layers.linear(to, inner, self.weight(f"{name}.wo.weight", size.width, size.inner_width), headroom_bits=_HEADROOM_BITS)
