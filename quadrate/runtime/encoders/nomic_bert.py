"""NomicBERT (Nussbaum et al. 2024): BERT with rotary positions, gated feed-forwards, and no biases in its products.

Both ways of writing its config.json are read: that of transformers, and that of the hub's first files, whose code came with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import rotation
from quadrate.runtime.encoders.encoder import Encoder, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.rope import Rope, turn
from quadrate.runtime.graphs.writer import Writer, prefix_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

PREFIXES = ("", "nomic_bert.", "bert.")
_WORDS = "embeddings.word_embeddings.weight"
_BASE = 1_000.0
_SERVED = {
    "qkv_proj_bias": (False, True),
    "mlp_fc1_bias": (False, True),
    "mlp_fc2_bias": (False, True),
    "prenorm": (False, False),
    "parallel_block": (False, False),
    "use_rms_norm": (False, False),
    "causal": (False, False),
    "rotary_emb_scale_base": (None, None),
    "num_experts": (0, 0),
    "activation_function": ("swiglu", "gelu"),
}
"""Of the first files: what is served, and what a missing key means in the code that came with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NomicBert(Encoder):
    """NomicBERT.

    Attributes:
        token_types: Rows of the table of token types.
        rope: How queries and keys are turned.
        epsilon: Of the layer norms.
        activation: Of the feed-forward layers' gates.
    """

    token_types: int
    rope: Rope
    epsilon: float
    activation: layers.Activation

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder."""
        encoder = cls._read_first(config) if "n_embd" in config else cls._read_transformers(config)
        check_heads(config, encoder.width, encoder.heads, encoder.layers)
        return encoder

    @classmethod
    def _read_transformers(cls, config: JsonFile) -> Self:
        width, heads, positions = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "max_position_embeddings"))
        head = width // max(heads, 1)
        config.refuse_unless("head_dim", head)
        return cls(
            width=width,
            layers=config.integer("num_hidden_layers"),
            heads=heads,
            inner_width=config.integer("intermediate_size"),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=positions,
            token_types=config.integer("type_vocab_size", 2),
            rope=rotation.read(config, config.data.get("rope_parameters"), width=head, positions=positions, base=_BASE),
            epsilon=config.number("layer_norm_eps", 1e-12),
            activation=config.choice("hidden_act", layers.ACTIVATIONS, "silu"),
        )

    @classmethod
    def _read_first(cls, config: JsonFile) -> Self:
        for key, (served, missing) in _SERVED.items():
            config.refuse_unless(key, served, default=missing)
        width, heads, positions = (config.integer(key) for key in ("n_embd", "n_head", "n_positions"))
        if "rotary_scaling_factor" in config:
            # Beyond the positions it was trained with, all angles would depend on the length of the text.
            positions = min(positions, config.integer("max_trained_positions", 2048))
        rotation.check_positions(config, positions)
        head = width // max(heads, 1)
        turned = round(head * config.number("rotary_emb_fraction", 0.0))
        if not 2 <= turned <= head or turned % 2:  # noqa: PLR2004 - values are turned in pairs
            raise ConfigError(
                f"{config.path}: rotary_emb_fraction has {turned} of {head} values turned; served are pairs of them, at least one."
            )
        base, interleaved = config.number("rotary_emb_base", 10_000.0), config.flag("rotary_emb_interleaved")
        return cls(
            width=width,
            layers=config.integer("n_layer"),
            heads=heads,
            inner_width=config.integer("n_inner", 4 * width),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=positions,
            token_types=config.integer("type_vocab_size", 2),
            rope=Rope(width=turned, base=base, positions=positions, interleaved=interleaved),
            epsilon=config.number("layer_norm_epsilon", 1e-5),
            activation="silu",
        )

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Layers(self, packed, weights).states(only)

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:
        """See Encoder. BERT's head."""
        first = self.write(packed, weights, only="first")
        head = Writer(packed, weights, epsilon=self.epsilon)
        pooled = packed.to.node("Tanh", head.dense("nomic_bert.pooler.dense", first, self.width, self.width))
        return head.dense("classifier", pooled, labels, self.width)

    @property
    def operations_per_token(self) -> float:
        """See Encoder; a gate is one product more."""
        return 2.0 * self.layers * (4 * self.width**2 + 3 * self.width * self.inner_width)


@dataclass(frozen=True, slots=True)
class _Names:
    """What a checkpoint calls its tensors."""

    layers: str
    norm: str
    out: str
    attention: str
    gate: str
    inner: str
    outer: str
    norms: tuple[str, str]


_FIRST = _Names(
    layers="encoder.layers",
    norm="emb_ln",
    out="attn.out_proj",
    attention="attn.Wqkv",
    gate="mlp.fc12",
    inner="mlp.fc11",
    outer="mlp.fc2",
    norms=("norm1", "norm2"),
)
_TRANSFORMERS = _Names(
    layers="layers",
    norm="embeddings.LayerNorm",
    out="self_attn.o_proj",
    attention="self_attn",
    gate="mlp.gate_proj",
    inner="mlp.up_proj",
    outer="mlp.down_proj",
    norms=("post_attention_layernorm", "post_mlp_layernorm"),
)


class _Layers(Writer):
    """Writes the layers."""

    def __init__(self, size: NomicBert, packed: Packed, weights: Weights) -> None:
        super().__init__(packed, weights, prefix=prefix_of(weights, _WORDS, PREFIXES), epsilon=size.epsilon)
        self.size = size
        self.names = _FIRST if f"{_FIRST.norm}.weight" in self else _TRANSFORMERS

    def states(self, only: Only | None) -> str:
        state = self.norm(self.names.norm, self._words(), self.size.width)  # [T, H]
        for layer in range(self.size.layers):
            state = self._layer(f"{self.names.layers}.{layer}", state, only if layer == self.size.layers - 1 else None)
        return state

    def _words(self) -> str:
        size, to = self.size, self.to
        read = to.node("Gather", to.constant(self.weight(_WORDS, size.vocabulary_size, size.width)), self.packed.input("ids"))
        if not size.token_types:
            return read
        types = self.weight("embeddings.token_type_embeddings.weight", size.token_types, size.width)
        if self.packed.pairs and size.token_types > 1:
            return to.node("Add", read, to.node("Gather", to.constant(types), self.packed.input("types")))
        return to.node("Add", read, to.constant(types[0]))

    def _layer(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        attended = self._attention(name, state, only)
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        state = self.norm(f"{name}.{self.names.norms[0]}", to.node("Add", attended, state), size.width)
        return self.norm(f"{name}.{self.names.norms[1]}", to.node("Add", self._feed_forward(name, state), state), size.width)

    def _attention(self, name: str, state: str, only: Only | None) -> str:
        size, to = self.size, self.to
        head = size.width // size.heads
        weights = self._parts(f"{name}.{self.names.attention}")
        asking = self.packed.pick(state, only) if only else state
        at = self.packed.pick(self.packed.input("positions"), only) if only else None
        query = layers.linear(to, asking, weights[0], scale=head**-0.5)
        query = turn(self.packed, size.rope, query, count=size.heads, width=head, at=at)
        key = turn(self.packed, size.rope, layers.linear(to, state, weights[1]), count=size.heads, width=head)
        value = layers.linear(to, state, weights[2])
        attended = attend(self.packed, query, key, value, heads=Heads(size.heads, head), only=only)
        return self.dense(f"{name}.{self.names.out}", attended, size.width, size.width, bias=False)

    def _parts(self, name: str) -> list[NDArray[np.float32]]:
        """Return the weights of queries, keys and values."""
        width = self.size.width
        if self.names is _FIRST:
            return np.split(self.weight(f"{name}.weight", 3 * width, width), 3)
        return [self.weight(f"{name}.{part}_proj.weight", width, width) for part in "qkv"]

    def _feed_forward(self, name: str, rows: str) -> str:
        size, to, names = self.size, self.to, self.names
        gate, inner = (self.dense(f"{name}.{part}", rows, size.inner_width, size.width, bias=False) for part in (names.gate, names.inner))
        inner = to.node("Mul", layers.activation(to, size.activation, gate), inner)
        return self.dense(f"{name}.{names.outer}", inner, size.width, size.inner_width, bias=False)
