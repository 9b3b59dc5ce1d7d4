"""The decoder of Qwen3 (Yang et al. 2025) as an encoder: a token sees what stands before it, so the last one has seen everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import rotation
from quadrate.runtime.encoders.encoder import Encoder, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.rope import turn
from quadrate.runtime.graphs.sight import Sight
from quadrate.runtime.graphs.writer import Writer, prefix_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.graphs.rope import Rope
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

PREFIXES = ("", "model.")
_WORDS = "embed_tokens.weight"
_BASE = 10_000.0
"""Of rotary positions, where config.json gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3(Encoder):
    """Qwen3, without its language model head.

    Attributes:
        shared_heads: Heads of keys and values.
        head_width: Values of a head.
        rope: How queries and keys are turned.
        activation: Of the feed-forward layers.
        epsilon: Of the norms.
    """

    shared_heads: int
    head_width: int
    rope: Rope
    activation: layers.Activation
    epsilon: float

    @property
    def is_causal(self) -> bool:
        """See Encoder."""
        return True

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder."""
        config.refuse_unless("attention_bias", False)
        config.refuse_unless("use_sliding_window", False)
        config.refuse_unless("is_causal", True)
        heads, positions = config.integer("num_attention_heads"), config.integer("max_position_embeddings")
        layer_count = config.integer("num_hidden_layers")
        # Heads may be wider together than a state: they do not divide it.
        check_heads(config, heads, heads, layer_count)
        config.refuse_unless("layer_types", ["full_attention"] * layer_count)
        head_width = config.integer("head_dim", 128)
        encoder = cls(
            width=config.integer("hidden_size"),
            layers=layer_count,
            heads=heads,
            inner_width=config.integer("intermediate_size"),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=positions,
            shared_heads=config.integer("num_key_value_heads", heads),
            head_width=head_width,
            rope=_rope(config, head_width, positions),
            activation=config.choice("hidden_act", layers.ACTIVATIONS, "silu"),
            epsilon=config.number("rms_norm_eps", 1e-6),
        )
        if encoder.shared_heads < 1 or heads % encoder.shared_heads:
            raise ConfigError(
                f"{config.path}: {heads} heads of {head_width} values cannot share {encoder.shared_heads} keys; fetch the model again."
            )
        return encoder

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Layers(self, packed, weights).states(only)

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:
        """See Encoder: one product with the last token's state, as Qwen3ForSequenceClassification has it."""
        return layers.linear(packed.to, self.write(packed, weights, only="last"), weights.get("score.weight", labels, self.width))

    @property
    def operations_per_token(self) -> float:
        """See Encoder; fewer heads have keys than ask, and a gate is one product more."""
        products = 2 * (self.heads + self.shared_heads) * self.head_width + 3 * self.inner_width
        return 2.0 * self.layers * self.width * products

    @property
    def operations_per_pair(self) -> float:
        """See Encoder."""
        return 4.0 * self.layers * self.heads * self.head_width


def _rope(config: JsonFile, width: int, positions: int) -> Rope:
    """Read how positions turn values: newer files say it in rope_parameters, older ones in rope_theta and rope_scaling.

    Of both, rope_scaling counts, as in transformers.
    """
    said = config.data.get("rope_scaling") or config.data.get("rope_parameters")
    return rotation.read(config, said, width=width, positions=positions, base=config.number("rope_theta", _BASE))


class _Layers(Writer):
    def __init__(self, size: Qwen3, packed: Packed, weights: Weights) -> None:
        super().__init__(packed, weights, prefix=prefix_of(weights, _WORDS, PREFIXES), epsilon=size.epsilon)
        self.size = size

    def states(self, only: Only | None) -> str:
        size, to = self.size, self.to
        words = to.constant(self.weight(_WORDS, size.vocabulary_size, size.width))
        state = to.node("Gather", words, self.packed.input("ids"))  # [T, H]
        for layer in range(size.layers):
            state = self._layer(f"layers.{layer}", state, only if layer == size.layers - 1 else None)
        return self.rms("norm", state, size.width)

    def _layer(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        seen = self.rms(f"{name}.input_layernorm", state, size.width)
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        state = to.node("Add", state, self._attention(f"{name}.self_attn", seen, only))
        return to.node("Add", state, self._feed_forward(f"{name}.mlp", self.rms(f"{name}.post_attention_layernorm", state, size.width)))

    def _attention(self, name: str, seen: str, only: Only | None) -> str:
        size, to = self.size, self.to
        total, shared = size.heads * size.head_width, size.shared_heads * size.head_width
        asking = self.packed.pick(seen, only) if only else seen
        at = to.node("Gather", self.packed.input("positions"), self.packed.input(only)) if only else None
        # The norm comes right before the logits, turned or not: its scale takes the scale of these, too.
        scales = self._head_scale(f"{name}.q_norm") * size.head_width**-0.5, self._head_scale(f"{name}.k_norm")
        query = self._turned(f"{name}.q_proj", asking, size.heads, scales[0], at)
        key = self._turned(f"{name}.k_proj", seen, size.shared_heads, scales[1], None)
        value = self.dense(f"{name}.v_proj", seen, shared, size.width, bias=False)
        heads = Heads(size.heads, size.head_width, size.shared_heads)
        attended = attend(self.packed, query, key, value, heads=heads, sight=Sight(causal=True), only=only)
        return self.dense(f"{name}.o_proj", attended, size.width, total, bias=False)

    def _turned(self, name: str, rows: str, count: int, scale: NDArray[np.float32], at: str | None) -> str:
        """Queries or keys: projected, normalised head by head, turned by their positions."""
        size, to = self.size, self.to
        width = size.head_width
        projected = self.dense(name, rows, count * width, size.width, bias=False)
        heads = layers.rms_norm(to, to.node("Reshape", projected, to.ints(-1, count, width)), scale, epsilon=size.epsilon)
        return turn(self.packed, size.rope, heads, count=count, width=width, at=at)

    def _head_scale(self, name: str) -> NDArray[np.float32]:
        return self.weight(f"{name}.weight", self.size.head_width)

    def _feed_forward(self, name: str, rows: str) -> str:
        size, to = self.size, self.to
        gate, inner = (self.dense(f"{name}.{part}_proj", rows, size.inner_width, size.width, bias=False) for part in ("gate", "up"))
        inner = to.node("Mul", layers.activation(to, size.activation, gate), inner)
        return self.dense(f"{name}.down_proj", inner, size.width, size.inner_width, bias=False)
