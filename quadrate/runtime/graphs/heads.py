"""What is made of an encoder's token states: vectors, token vectors, weights, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import ConfigError
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.builder import Form
from quadrate.runtime.graphs.writer import prefix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.runtime.encoders.encoder import Vocabulary
    from quadrate.runtime.folder.facts import Facts
    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.weights import Weights

Outputs = dict[str, tuple[str, Form]]
"""The value and the form of each output, by name."""

ONLY: Mapping[str, Only] = {"cls": "first", "last": "last"}
"""The token that is pooled, by the name of the pooling, where one alone is."""

VOCABULARY_ROWS = 4096
"""Entries of the vocabulary that SPLADE looks at at once: all of them would be 250 MB for 2,048 tokens."""


def write(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """Write encoder and head; return the value and the form of each output by name."""
    return _HEADS[facts.head](packed, facts, weights)


def _pooled(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """One vector a text: `pooled`, and `unit`, the same of length one."""
    only = ONLY.get(facts.pooling)
    states = facts.encoder.write(packed, weights, only=only)
    return _vector(packed, facts, weights, states if only else packed.mean(states))


def _vector(packed: Packed, facts: Facts, weights: Weights, pooled: str) -> Outputs:
    """The layers after the pooling, and what they give."""
    width = facts.encoder.width
    for layer in facts.after_pooling:
        pooled, width = layer.write(packed.to, weights, pooled, width)
    return {"pooled": (pooled, Form("text", width)), "unit": (layers.unit(packed.to, pooled), Form("text", width))}


def _token_vectors(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """One vector a token, of length one."""
    states = facts.encoder.write(packed, weights, only=None)
    return {"multi_vector": (layers.unit(packed.to, states), Form("token", facts.encoder.width))}


def _bge_m3(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """The three answers of Chen et al. 2024, section 3.1, from one pass: a vector, a weight for each token, a vector for each token."""
    to, width = packed.to, facts.encoder.width
    states = facts.encoder.write(packed, weights, only=None)
    lexical = layers.linear(to, states, weights.get("sparse_linear.weight", 1, width), weights.get("sparse_linear.bias", 1))
    (outputs,) = weights.shape("colbert_linear.bias")
    vectors = layers.linear(to, states, weights.get("colbert_linear.weight", outputs, width), weights.get("colbert_linear.bias", outputs))
    only = ONLY.get(facts.pooling)
    return {
        **_vector(packed, facts, weights, packed.pick(states, only) if only else packed.mean(states)),
        "sparse_weights": (to.node("Relu", lexical), Form("token", 1)),
        "multi_vector": (layers.unit(to, vectors), Form("token", outputs)),
    }


def _splade(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """A weight for each entry of the vocabulary: the greatest of all tokens' log(1 + relu(logit)) (Formal et al. 2021)."""
    to = packed.to
    found = facts.encoder.predict(packed, weights)
    starts = range(0, facts.encoder.vocabulary_size, VOCABULARY_ROWS)
    parts = [_greatest(packed, found, slice(start, start + VOCABULARY_ROWS)) for start in starts]
    # Both functions grow with their argument, so the maximum may come first.
    value = to.node("Relu", to.node("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0])
    for _ in range(facts.saturations):
        value = to.node("Log", to.node("Add", value, to.constant(np.array(1, np.float32))))
    return {"vocabulary": (value, Form("text", facts.encoder.vocabulary_size))}


def _greatest(packed: Packed, found: Vocabulary, part: slice) -> str:
    """Return the greatest logit of each text for a part of the vocabulary: `[B, n]`."""
    to = packed.to
    bias = None if found.bias is None else found.bias[part]
    logits = layers.linear(to, found.rows, found.weight[part], bias)  # [T, n]
    return to.node("ReduceMax", packed.padded(logits), to.ints(1), keepdims=0)


def _classification(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """The scores of a sequence classifier, before any activation."""
    return {"score": (facts.encoder.classify(packed, weights, labels=facts.labels), Form("text", facts.labels))}


def _yes_no(packed: Packed, facts: Facts, weights: Weights) -> Outputs:
    """How much more likely a language model goes on with yes than with no: the difference of the two logits at the last token.

    Its sigmoid is the share of yes in the two words' probability, as Qwen3-Reranker's card has it. Of the large last product only the
    difference of two rows is computed.
    """
    if facts.answers is None:
        raise ConfigError(f"{facts.path}: the ids of the words yes and no are not known; give `answers` in the model's card.")
    last = facts.encoder.write(packed, weights, only="last")
    tied = "model.embed_tokens.weight"
    name = "lm_head.weight" if "lm_head.weight" in weights else prefix_of(weights, tied, ("",)) + tied
    yes, no = weights.rows(name, facts.answers, facts.encoder.vocabulary_size, facts.encoder.width)
    return {"score": (layers.linear(packed.to, last, (yes - no)[None]), Form("text", 1))}


_HEADS: Mapping[str, Callable[[Packed, Facts, Weights], Outputs]] = {
    "pooled": _pooled,
    "token_vectors": _token_vectors,
    "bge_m3": _bge_m3,
    "splade": _splade,
    "classification": _classification,
    "yes_no": _yes_no,
}
