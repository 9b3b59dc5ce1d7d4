"""The encoder of Devlin et al. 2019.

Left out because it changes nothing, in real arithmetic: the key's bias adds the same to all logits of a query, which the softmax ignores;
the value's bias passes through the softmax, whose rows sum to one, and is folded into the output's; where one token of each text is
pooled, the last layer works on those tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quadrate.runtime.encoders.encoder import Encoder, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Bert(Encoder):
    """BERT.

    Attributes:
        token_types: Rows of the table of token types.
        epsilon: Of the layer norms.
        activation: Of the feed-forward layers.
    """

    token_types: int
    epsilon: float
    activation: layers.Activation

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder."""
        config.refuse_unless("position_embedding_type", "absolute")
        config.refuse_unless("is_decoder", False)
        encoder = cls(
            width=config.integer("hidden_size"),
            layers=config.integer("num_hidden_layers"),
            heads=config.integer("num_attention_heads"),
            inner_width=config.integer("intermediate_size"),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=config.integer("max_position_embeddings"),
            token_types=config.integer("type_vocab_size", 2),
            epsilon=config.number("layer_norm_eps", 1e-12),
            activation=config.choice("hidden_act", layers.ACTIVATIONS, "gelu"),
        )
        check_heads(config, encoder.width, encoder.heads, encoder.layers)
        return encoder

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Writer(self, packed, weights).states(only)


class _Writer:
    def __init__(self, size: Bert, packed: Packed, weights: Weights) -> None:
        self.size = size
        self.packed = packed
        self.to = packed.to
        self.weights = weights
        self.prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""

    def states(self, only: Only | None) -> str:
        state = self._embeddings()
        for layer in range(self.size.layers):
            state = self._layer(f"encoder.layer.{layer}", state, only if layer == self.size.layers - 1 else None)
        return state

    def _embeddings(self) -> str:
        size, to = self.size, self.to
        words = self._weight("embeddings.word_embeddings.weight", size.vocabulary_size, size.width)
        positions = self._weight("embeddings.position_embeddings.weight", size.max_positions, size.width)
        if size.token_types:
            positions = positions + self._weight("embeddings.token_type_embeddings.weight", size.token_types, size.width)[0]
        read = to.node("Gather", to.constant(words), self.packed.input("ids"))  # [T, H]
        placed = to.node("Gather", to.constant(positions), self.packed.input("positions"))
        return self._norm("embeddings.LayerNorm", to.node("Add", read, placed))

    def _layer(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        attended = self._attention(f"{name}.attention.self", state, only)
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        value_bias = self._weight(f"{name}.attention.self.value.bias", size.width)
        out = self._weight(f"{name}.attention.output.dense.weight", size.width, size.width)
        bias = self._weight(f"{name}.attention.output.dense.bias", size.width) + out @ value_bias
        state = self._norm(f"{name}.attention.output.LayerNorm", to.node("Add", layers.linear(to, attended, out, bias), state))
        inner = layers.activation(to, size.activation, self._dense(f"{name}.intermediate.dense", state, size.inner_width, size.width))
        outer = self._dense(f"{name}.output.dense", inner, size.width, size.inner_width)
        return self._norm(f"{name}.output.LayerNorm", to.node("Add", outer, state))

    def _attention(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        scale = (size.width // size.heads) ** -0.5
        asking = self.packed.pick(state, only) if only else state
        bias = self._weight(f"{name}.query.bias", size.width) * scale
        query = layers.linear(to, asking, self._square(f"{name}.query.weight"), bias.astype("f4"), scale=scale)
        key = layers.linear(to, state, self._square(f"{name}.key.weight"))
        value = layers.linear(to, state, self._square(f"{name}.value.weight"))
        heads = Heads(size.heads, size.width // size.heads)
        return attend(self.packed, query, key, value, heads=heads, bias=self.packed.input("bias"), only=only)

    def _dense(self, name: str, rows: str, outputs: int, inputs: int) -> str:
        return layers.linear(self.to, rows, self._weight(f"{name}.weight", outputs, inputs), self._weight(f"{name}.bias", outputs))

    def _norm(self, name: str, rows: str) -> str:
        # Checkpoints converted from TensorFlow call the two gamma and beta.
        parts = ("gamma", "beta") if f"{self.prefix}{name}.gamma" in self.weights else ("weight", "bias")
        scale, bias = (self._weight(f"{name}.{part}", self.size.width) for part in parts)
        return layers.layer_norm(self.to, rows, scale, bias, epsilon=self.size.epsilon)

    def _square(self, name: str) -> NDArray[np.float32]:
        return self._weight(name, self.size.width, self.size.width)

    def _weight(self, name: str, *shape: int) -> NDArray[np.float32]:
        return self.weights.get(self.prefix + name, *shape)
