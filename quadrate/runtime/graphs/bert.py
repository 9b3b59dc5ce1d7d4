"""The encoder of Devlin et al. 2019 as an ONNX graph over packed tokens, with pooling and normalisation inside.

All matrix products run over the tokens of a whole batch one after another, `[T, H]`. Attention alone sees each text by itself, through a
padded view: `Gather` with an index `[B, S]` before it, a bias inside, `Gather` with an index `[T]` after it. Only standard operators, so
that every ONNX Runtime and OpenVINO run the same graph.

Left out because it changes nothing, in real arithmetic: the key's bias adds the same to all logits of a query, which the softmax ignores;
the value's bias passes through the softmax, whose rows sum to one, and is folded into the output's; one kind of token type is part of the
position's row; with pooling over the first token, the last layer works on those tokens alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from quadrate.runtime.graphs.builder import Builder, Graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from quadrate.runtime.folder import Encoder, Facts
    from quadrate.runtime.weights import Weights

Head = Literal["vectors", "states"]
"""What comes out: one vector for each text, or one for each token."""

MASKED = -1e9
"""Added to the logits of places that hold no token: their weight becomes zero exactly."""


def build(facts: Facts, weights: Weights, head: Head) -> Graph:
    """Write the graph. Raises ConfigError if the weights do not fit the facts.

    Inputs (see `quadrate.runtime.packing`): `ids` and `positions` int32[T]; `places` int32[B, S], the token of each place of the padded
    view; `tokens` int32[T], the place of each token; `bias` float32[B, 1, 1, S]; for mean pooling `shares` float32[B, T], each token's
    weight in the mean; for pooling over the first token `first` int32[B].

    Outputs: with `vectors`, `pooled` float32[B, H] and `unit`, the same of length one; with `states`, `states` float32[T, H] of length one.
    """
    return _Bert(facts, weights, head).graph()


class _Bert:
    def __init__(self, facts: Facts, weights: Weights, head: Head) -> None:
        self.to = Builder(weights)
        self.size: Encoder = facts.encoder
        self.weights = weights
        self.prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""
        self.head = head
        self.by_first = head == "vectors" and facts.pooling == "cls"
        self._inputs()

    def graph(self) -> Graph:
        state = self._embeddings()
        for layer in range(self.size.layers):
            state = self._layer(f"encoder.layer.{layer}", state, last=layer == self.size.layers - 1)
        return self.to.finish(self._outputs(state), width=self.size.width)

    def _inputs(self) -> None:
        to = self.to
        self.ids = to.input("ids", np.int32, ["t"])
        self.positions = to.input("positions", np.int32, ["t"])
        self.places = to.input("places", np.int32, ["b", "s"])
        self.bias = to.input("bias", np.float32, ["b", 1, 1, "s"])
        if self.by_first:
            self.first = to.input("first", np.int32, ["b"])
        elif self.head == "vectors":
            self.shares = to.input("shares", np.float32, ["b", "t"])
        if not self.by_first or self.size.layers > 1:
            self.tokens = to.input("tokens", np.int32, ["t"])
        heads, width = self.size.heads, self.size.width
        self.by_head = to.ints(0, 0, heads, width // heads)
        self.flat = to.ints(-1, width)

    def _embeddings(self) -> str:
        size, to = self.size, self.to
        words = self._weight("embeddings.word_embeddings.weight", size.vocabulary_size, size.width)
        positions = self._weight("embeddings.position_embeddings.weight", size.positions, size.width)
        if size.token_types:
            positions = positions + self._weight("embeddings.token_type_embeddings.weight", size.token_types, size.width)[0]
        read = to.node("Gather", to.constant(words), self.ids)  # [T, H]
        placed = to.node("Gather", to.constant(positions), self.positions)
        return self._norm("embeddings.LayerNorm", to.node("Add", read, placed))

    def _layer(self, name: str, state: str, *, last: bool) -> str:
        size, to = self.size, self.to
        first_only = last and self.by_first
        attended = self._attention(f"{name}.attention.self", state, first_only=first_only)
        if first_only:
            state = to.node("Gather", state, self.first)  # [B, H]: what is pooled, alone
        value_bias = self._weight(f"{name}.attention.self.value.bias", size.width)
        out = self._weight(f"{name}.attention.output.dense.weight", size.width, size.width)
        bias = self._weight(f"{name}.attention.output.dense.bias", size.width) + out @ value_bias
        state = self._norm(f"{name}.attention.output.LayerNorm", to.node("Add", self._linear(attended, out, bias), state))
        inner = self._activation(self._dense(f"{name}.intermediate.dense", state, size.inner_width, size.width))
        outer = self._dense(f"{name}.output.dense", inner, size.width, size.inner_width)
        return self._norm(f"{name}.output.LayerNorm", to.node("Add", outer, state))

    def _attention(self, name: str, state: str, *, first_only: bool) -> str:
        """Return the attended values, `[T, H]`, or `[B, H]` if only first tokens ask."""
        size, to = self.size, self.to
        scale = np.float32((size.width // size.heads) ** -0.5)
        asking = to.node("Gather", state, self.first) if first_only else state
        bias = self._weight(f"{name}.query.bias", size.width) * scale
        query = self._linear(asking, self._square(f"{name}.query.weight"), bias, scale=float(scale))
        query = to.node("Unsqueeze", query, to.ints(1)) if first_only else to.node("Gather", query, self.places)  # [B, S or 1, H]
        key = to.node("Gather", self._linear(state, self._square(f"{name}.key.weight")), self.places)
        value = to.node("Gather", self._linear(state, self._square(f"{name}.value.weight")), self.places)
        logits = to.node("MatMul", self._heads(query, [0, 2, 1, 3]), self._heads(key, [0, 2, 3, 1]))
        attention = to.node("Softmax", to.node("Add", logits, self.bias), axis=-1)  # [B, heads, S or 1, S]
        values = to.node("MatMul", attention, self._heads(value, [0, 2, 1, 3]))
        rows = to.node("Reshape", to.node("Transpose", values, perm=[0, 2, 1, 3]), self.flat)
        return rows if first_only else to.node("Gather", rows, self.tokens)

    def _heads(self, rows: str, order: list[int]) -> str:
        return self.to.node("Transpose", self.to.node("Reshape", rows, self.by_head), perm=order)

    def _outputs(self, state: str) -> Mapping[str, str]:
        if self.head == "states":
            return {"states": self._unit(state)}
        pooled = state if self.by_first else self.to.node("MatMul", self.shares, state)
        return {"pooled": pooled, "unit": self._unit(pooled)}

    def _unit(self, rows: str) -> str:
        """Bring rows to length one; a row of zeros stays one (torch.nn.functional.normalize, eps 1e-12)."""
        to = self.to
        length = to.node("ReduceL2", rows, to.ints(-1), keepdims=1)
        return to.node("Div", rows, to.node("Max", length, to.constant(np.array(1e-12, np.float32))))

    def _dense(self, name: str, rows: str, outputs: int, inputs: int) -> str:
        return self._linear(rows, self._weight(f"{name}.weight", outputs, inputs), self._weight(f"{name}.bias", outputs))

    def _linear(self, rows: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None, scale: float = 1.0) -> str:
        # Gemm takes the weight as it lies in the file, [outputs, inputs]; MatMul would want a transposed copy and is not faster.
        inputs = [rows, self.to.constant(weight)]
        if bias is not None:
            inputs.append(self.to.constant(bias))
        return self.to.node("Gemm", *inputs, transB=1, alpha=scale)

    def _activation(self, rows: str) -> str:
        kind = self.size.activation
        if kind == "relu":
            return self.to.node("Relu", rows)
        return self.to.node("Gelu", rows, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _norm(self, name: str, rows: str) -> str:
        width = self.size.width
        scale, bias = (self.to.constant(self._weight(f"{name}.{part}", width)) for part in self._norm_parts(name))
        return self.to.node("LayerNormalization", rows, scale, bias, axis=-1, epsilon=self.size.epsilon)

    def _norm_parts(self, name: str) -> tuple[str, str]:
        """Checkpoints converted from TensorFlow call the two gamma and beta."""
        return ("gamma", "beta") if f"{self.prefix}{name}.gamma" in self.weights else ("weight", "bias")

    def _square(self, name: str) -> NDArray[np.float32]:
        return self._weight(name, self.size.width, self.size.width)

    def _weight(self, name: str, *shape: int) -> NDArray[np.float32]:
        return self.weights.get(self.prefix + name, *shape)
