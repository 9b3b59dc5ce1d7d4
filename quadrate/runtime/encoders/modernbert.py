"""ModernBERT (Warner et al. 2024): norms before the layers, gated feed-forwards, rotary positions, most layers see what is near.

The value's bias, where there is one, passes through the softmax and is folded into the output's. The key's is kept: turned by its
position, it adds to each logit what the softmax does not ignore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import rotation
from quadrate.runtime.encoders.encoder import Encoder, Vocabulary, check_heads
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.rope import Rope, turn
from quadrate.runtime.graphs.sight import Sight
from quadrate.runtime.graphs.writer import Writer, prefix_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

    Kind = Literal["full_attention", "sliding_attention"]

PREFIXES = ("", "model.")
_WORDS = "embeddings.tok_embeddings.weight"
_GLOBAL_BASE, _LOCAL_BASE = 160_000.0, 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBert(Encoder):
    """ModernBERT.

    Attributes:
        kinds: Of each layer, whether it sees all of a text or what is near.
        window: How far the latter see, in tokens.
        ropes: How queries and keys are turned, in order: in layers that see all, in the others.
        epsilon: Of the layer norms.
        activation: Of the feed-forward layers.
        head_activation: Of the heads.
        head_pooling: What a classification head looks at.
        has_bias: Which layers have biases: "norm", "attention", "mlp", "decoder", "classifier".
    """

    kinds: tuple[Kind, ...]
    window: int
    ropes: tuple[Rope, Rope]
    epsilon: float
    activation: layers.Activation
    head_activation: layers.Activation
    head_pooling: Literal["cls", "mean"]
    has_bias: frozenset[str]

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder."""
        width, heads, positions = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "max_position_embeddings"))
        layer_count = config.integer("num_hidden_layers")
        check_heads(config, width, heads, layer_count)
        biased = {"norm": False, "attention": False, "mlp": False, "decoder": True, "classifier": False}
        return cls(
            width=width,
            layers=layer_count,
            heads=heads,
            inner_width=config.integer("intermediate_size"),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=positions,
            kinds=_kinds(config, layer_count),
            window=_window(config, positions),
            ropes=_ropes(config, width // heads, positions),
            epsilon=config.number("norm_eps", 1e-5),
            activation=config.choice("hidden_activation", layers.ACTIVATIONS, "gelu"),
            head_activation=config.choice("classifier_activation", layers.ACTIVATIONS, "gelu"),
            head_pooling=config.choice("classifier_pooling", {"cls": "cls", "mean": "mean"}, "cls"),
            has_bias=frozenset(part for part, default in biased.items() if config.flag(f"{part}_bias", default=default)),
        )

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> str:
        """See Encoder."""
        return _Layers(self, packed, weights).states(only)

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:
        """See Encoder. A layer with activation and norm over the first token or the mean, then the scores."""
        only: Only | None = "first" if self.head_pooling == "cls" else None
        states = self.write(packed, weights, only=only)
        pooled = states if only else packed.mean(states)
        return Writer(packed, weights, epsilon=self.epsilon).dense("classifier", self._head(packed, weights, pooled), labels, self.width)

    def predict(self, packed: Packed, weights: Weights) -> Vocabulary:
        """See Encoder."""
        rows = self._head(packed, weights, self.write(packed, weights, only=None))
        size = (self.vocabulary_size, self.width)
        tied = prefix_of(weights, _WORDS, PREFIXES) + _WORDS
        weight = weights.get("decoder.weight" if "decoder.weight" in weights else tied, *size)
        return Vocabulary(rows, weight, weights.get("decoder.bias", size[0]) if "decoder" in self.has_bias else None)

    def _head(self, packed: Packed, weights: Weights, rows: str) -> str:
        head = Writer(packed, weights, prefix="head.", epsilon=self.epsilon)
        inner = head.dense("dense", rows, self.width, self.width, bias="classifier" in self.has_bias)
        return head.norm("norm", layers.activation(packed.to, self.head_activation, inner), self.width, bias="norm" in self.has_bias)

    @property
    def operations_per_token(self) -> float:
        """See Encoder; a gate is one product more."""
        return 2.0 * self.layers * (4 * self.width**2 + 3 * self.width * self.inner_width)


def _kinds(config: JsonFile, count: int) -> tuple[Kind, ...]:
    """Return each layer's kind: newer files list them, older ones say that one in so many sees all."""
    every = config.integer("global_attn_every_n_layers", 3)
    if every < 1:
        raise ConfigError(f"{config.path}: global_attn_every_n_layers is {every}; it must be 1 or more.")
    found = config.data.get("layer_types") or ["sliding_attention" if layer % every else "full_attention" for layer in range(count)]
    if not isinstance(found, list) or len(found) != count or any(kind not in ("full_attention", "sliding_attention") for kind in found):
        raise ConfigError(f"{config.path}: layer_types is {found!r}; {count} of 'full_attention' and 'sliding_attention' are served.")
    return cast("tuple[Kind, ...]", tuple(found))


def _window(config: JsonFile, positions: int) -> int:
    """Return how far layers see that see what is near: half of local_attention to each side."""
    width = config.integer("local_attention", 128)
    if width < 1:
        raise ConfigError(f"{config.path}: local_attention is {width}; it must be 1 or more.")
    return min(width // 2, positions)


def _ropes(config: JsonFile, width: int, positions: int) -> tuple[Rope, Rope]:
    """Return both rotations: newer files say them in rope_parameters, older ones in global_rope_theta and local_rope_theta."""
    config.refuse_unless("rope_scaling", None)
    said: Any = config.data.get("rope_parameters") or {}
    if not isinstance(said, dict):
        raise ConfigError(f"{config.path}: rope_parameters is no JSON object; fetch the model again.")
    bases = config.number("global_rope_theta", _GLOBAL_BASE), config.number("local_rope_theta", _LOCAL_BASE)
    kinds = ("full_attention", "sliding_attention")
    full, near = (
        rotation.read(config, said.get(kind), width=width, positions=positions, base=base) for kind, base in zip(kinds, bases, strict=True)
    )
    return full, near


class _Layers(Writer):
    """Writes the layers."""

    def __init__(self, size: ModernBert, packed: Packed, weights: Weights) -> None:
        super().__init__(packed, weights, prefix=prefix_of(weights, _WORDS, PREFIXES), epsilon=size.epsilon)
        self.size = size

    def states(self, only: Only | None) -> str:
        size, to = self.size, self.to
        words = to.constant(self.weight(_WORDS, size.vocabulary_size, size.width))
        state = self._norm("embeddings.norm", to.node("Gather", words, self.packed.input("ids")))  # [T, H]
        for layer in range(size.layers):
            state = self._layer(layer, state, only if layer == size.layers - 1 else None)
        return self._norm("final_norm", state)

    def _layer(self, layer: int, state: str, only: Only | None) -> str:
        name = f"layers.{layer}"
        seen = self._norm(f"{name}.attn_norm", state) if layer else state
        if only:
            state = self.packed.pick(state, only)  # [B, H]: what is pooled, alone
        state = self.to.node("Add", state, self._attention(f"{name}.attn", seen, self.size.kinds[layer], only))
        return self.to.node("Add", state, self._feed_forward(f"{name}.mlp", self._norm(f"{name}.mlp_norm", state)))

    def _attention(self, name: str, seen: str, kind: Kind, only: Only | None) -> str:
        size, to, is_near = self.size, self.to, kind == "sliding_attention"
        head = size.width // size.heads
        rope, sight = size.ropes[is_near], Sight(window=size.window if is_near else None)
        weights, biases = self._parts(name)
        asking = self.packed.pick(seen, only) if only else seen
        at = self.packed.pick(self.packed.input("positions"), only) if only else None
        scaled = None if biases is None else biases[0] * np.float32(head**-0.5)
        query = turn(
            self.packed, rope, layers.linear(to, asking, weights[0], scaled, scale=head**-0.5), count=size.heads, width=head, at=at
        )
        key = layers.linear(to, seen, weights[1], None if biases is None else biases[1])
        key = turn(self.packed, rope, key, count=size.heads, width=head)
        value = layers.linear(to, seen, weights[2])
        attended = attend(self.packed, query, key, value, heads=Heads(size.heads, head), sight=sight, only=only)
        out = self.weight(f"{name}.Wo.weight", size.width, size.width)
        bias = None if biases is None else self.weight(f"{name}.Wo.bias", size.width) + out @ biases[2]
        return layers.linear(to, attended, out, bias)

    def _parts(self, name: str) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]] | None]:
        """Return the weights of queries, keys and values, and their biases if there are any."""
        width = self.size.width
        weights = np.split(self.weight(f"{name}.Wqkv.weight", 3 * width, width), 3)
        if "attention" not in self.size.has_bias:
            return weights, None
        return weights, np.split(self.weight(f"{name}.Wqkv.bias", 3 * width), 3)

    def _feed_forward(self, name: str, rows: str) -> str:
        size, to, bias = self.size, self.to, "mlp" in self.size.has_bias
        weight = self.weight(f"{name}.Wi.weight", 2 * size.inner_width, size.width)
        both = self.weight(f"{name}.Wi.bias", 2 * size.inner_width) if bias else None
        halves = slice(size.inner_width), slice(size.inner_width, None)
        inner, gate = (layers.linear(to, rows, weight[half], None if both is None else both[half]) for half in halves)
        inner = to.node("Mul", layers.activation(to, size.activation, inner), gate)
        return self.dense(f"{name}.Wo", inner, size.width, size.inner_width, bias=bias)

    def _norm(self, name: str, rows: str) -> str:
        return self.norm(name, rows, self.size.width, bias="norm" in self.size.has_bias)
