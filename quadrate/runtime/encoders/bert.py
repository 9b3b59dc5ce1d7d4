"""The encoder of Devlin et al. 2019, and its heads.

Left out because it changes nothing, in real arithmetic: the key's bias adds the same to all logits of a query, which the softmax ignores;
the value's bias passes through the softmax, whose rows sum to one, and is folded into the output's; where one token of each text is
pooled, the last layer works on those tokens alone; a model that reads no pairs has its one token type added to the positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from quadrate.runtime.encoders.encoder import Encoder, Vocabulary, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.writer import Writer, prefix_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

PREFIXES = ("", "bert.", "roberta.")
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bert(Encoder):
    """BERT.

    Attributes:
        skipped_positions: Rows at the head of the position table that no token has.
        position_rows: The rows after these.
        token_types: Rows of the table of token types.
        epsilon: Of the layer norms.
        activation: Of the feed-forward layers.
    """

    skipped_positions: int
    position_rows: int
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
            **cls._positions_of(config),
            token_types=config.integer("type_vocab_size", 2),
            epsilon=config.number("layer_norm_eps", 1e-12),
            activation=config.choice("hidden_act", layers.ACTIVATIONS, "gelu"),
        )
        check_heads(config, encoder.width, encoder.heads, encoder.layers)
        return encoder

    @classmethod
    def _positions_of(cls, config: JsonFile) -> dict[str, int]:
        rows = config.integer("max_position_embeddings")
        return {"max_positions": rows, "skipped_positions": 0, "position_rows": rows}

    @property
    def reads_types(self) -> bool:
        """Whether the second text of a pair has a token type of its own."""
        return self.token_types > 1

    def positions(self, packed: Packed) -> str:
        """Return the row of the position table for each token, counted after the skipped ones: `[T]`."""
        return packed.input("positions")

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Layers(self, packed, weights).states(only)

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:
        """See Encoder. The pooler with tanh, then the classifier (Devlin et al. 2019, section 3.2)."""
        first = self.write(packed, weights, only="first")
        head = Writer(packed, weights, epsilon=self.epsilon)
        pooled = packed.to.node("Tanh", head.dense("bert.pooler.dense", first, self.width, self.width))
        return head.dense("classifier", pooled, labels, self.width)

    def predict(self, packed: Packed, weights: Weights) -> Vocabulary:
        """See Encoder."""
        states = self.write(packed, weights, only=None)
        head = Writer(packed, weights, prefix="cls.predictions.", epsilon=self.epsilon)
        rows = layers.activation(packed.to, self.activation, head.dense("transform.dense", states, self.width, self.width))
        return self.vocabulary(head, head.norm("transform.LayerNorm", rows, self.width), weights)

    def vocabulary(self, head: Writer, rows: str, weights: Weights) -> Vocabulary:
        """Return the last product of a masked language model's head; its weight is the word table's unless the checkpoint has its own."""
        size = (self.vocabulary_size, self.width)
        tied = prefix_of(weights, _WORDS, PREFIXES) + _WORDS
        weight = head.weight("decoder.weight", *size) if "decoder.weight" in head else weights.get(tied, *size)
        return Vocabulary(rows, weight, head.weight("decoder.bias" if "decoder.bias" in head else "bias", self.vocabulary_size))


class _Layers(Writer):
    """Writes the layers."""

    def __init__(self, size: Bert, packed: Packed, weights: Weights) -> None:
        super().__init__(packed, weights, prefix=prefix_of(weights, _WORDS, PREFIXES), epsilon=size.epsilon)
        self.size = size

    def states(self, only: Only | None) -> str:
        state = self._embeddings()
        for layer in range(self.size.layers):
            state = self._layer(f"encoder.layer.{layer}", state, only if layer == self.size.layers - 1 else None)
        return state

    def _embeddings(self) -> str:
        size, to = self.size, self.to
        read = to.node("Gather", to.constant(self.weight(_WORDS, size.vocabulary_size, size.width)), self.packed.input("ids"))
        state = to.node("Add", read, to.node("Gather", to.constant(self._positions()), size.positions(self.packed)))
        if self._pairs:
            types = to.constant(self._types())
            state = to.node("Add", state, to.node("Gather", types, self.packed.input("types")))
        return self.norm("embeddings.LayerNorm", state, size.width)  # [T, H]

    @property
    def _pairs(self) -> bool:
        return self.packed.pairs and self.size.reads_types

    def _positions(self) -> NDArray[np.float32]:
        """Return what each position adds, and the token type with it where there is but one."""
        size = self.size
        table = self.weight("embeddings.position_embeddings.weight", size.skipped_positions + size.position_rows, size.width)
        rows = table[size.skipped_positions :]
        return rows + self._types()[0] if size.token_types and not self._pairs else rows

    def _types(self) -> NDArray[np.float32]:
        return self.weight("embeddings.token_type_embeddings.weight", self.size.token_types, self.size.width)

    def _layer(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        attended = self._attention(f"{name}.attention.self", state, only)
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        value_bias = self.weight(f"{name}.attention.self.value.bias", size.width)
        out = self._square(f"{name}.attention.output.dense.weight")
        bias = self.weight(f"{name}.attention.output.dense.bias", size.width) + out @ value_bias
        state = to.node("Add", layers.linear(to, attended, out, bias), state)
        state = self.norm(f"{name}.attention.output.LayerNorm", state, size.width)
        inner = self.dense(f"{name}.intermediate.dense", state, size.inner_width, size.width)
        outer = self.dense(f"{name}.output.dense", layers.activation(to, size.activation, inner), size.width, size.inner_width)
        return self.norm(f"{name}.output.LayerNorm", to.node("Add", outer, state), size.width)

    def _attention(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        scale = (size.width // size.heads) ** -0.5
        asking = self.packed.pick(state, only) if only else state
        bias = self.weight(f"{name}.query.bias", size.width) * scale
        query = layers.linear(to, asking, self._square(f"{name}.query.weight"), bias.astype("f4"), scale=scale)
        key = layers.linear(to, state, self._square(f"{name}.key.weight"))
        value = layers.linear(to, state, self._square(f"{name}.value.weight"))
        heads = Heads(size.heads, size.width // size.heads)
        return attend(self.packed, query, key, value, heads=heads, only=only)

    def _square(self, name: str) -> NDArray[np.float32]:
        return self.weight(name, self.size.width, self.size.width)
