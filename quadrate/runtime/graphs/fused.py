"""Attention by an engine's own kernel, which goes through the keys piece by piece and keeps no logits (Dao et al. 2022).

On ONNX Runtime's CPU kernels this is also two to three times as fast as written-out attention from 400 tokens on, and no slower below. Its
kernel for all keys knows no padding; so each query has one more value, 1, and each key one more, 0 where it is a token and MASKED where it
is none: their product is the bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from quadrate.runtime.graphs.builder import Builder
    from quadrate.runtime.graphs.packed import Packed
    from quadrate.runtime.graphs.weighing import Heads

_ONNX_RUNTIME = "com.microsoft"


def everything(packed: Packed, query: str, key: str, value: str, *, heads: Heads) -> str:
    """Return the attended values where a token sees its whole text; all arrays are `[B, S, count * width]`, queries scaled already."""
    to = packed.to
    one, hidden = packed.once(("padding as a value", heads), lambda: _padding(packed, heads))
    asking, seen = _longer(to, query, one, heads), _longer(to, key, hidden, heads)
    return to.node("MultiHeadAttention", asking, seen, value, num_heads=heads.count, scale=1.0, domain=_ONNX_RUNTIME)


def causal(packed: Packed, query: str, key: str, value: str, *, heads: Heads) -> str:
    """Return the attended values where a token sees what stands before it: `[B, S, count * width]`.

    Padding stands behind a text, where none of its tokens sees it.

    Args:
        packed: The batch.
        query: `[B, S, count * width]`, scaled already.
        key: `[B, S, keys * width]`.
        value: `[B, S, keys * width]`.
        heads: How rows are split.
    """
    to = packed.to
    if to.kernels == "openvino":
        counts = {"q_num_heads": heads.count, "kv_num_heads": heads.keys}
        return to.node("Attention", query, key, value, is_causal=1, scale=1.0, **counts)
    lengths, longest = packed.once("lengths", lambda: _lengths(packed))
    counts = {"num_heads": heads.count, "kv_num_heads": heads.keys}
    found = to.nodes(
        "GroupQueryAttention", query, key, value, "", "", lengths, longest, scale=1.0, domain=_ONNX_RUNTIME, results=3, **counts
    )
    return found[0]


def _padding(packed: Packed, heads: Heads) -> tuple[str, str]:
    """Return the further value of each query and of each key: `[B, S, count, 1]` both."""
    to = packed.to
    bias = to.node("Transpose", packed.input("bias"), perm=[0, 3, 1, 2])  # [B, S, 1, 1]
    hidden = to.node("Expand", bias, to.ints(1, 1, heads.count, 1))
    return to.node("Expand", to.constant(np.array(1, np.float32)), to.node("Shape", hidden)), hidden


def _longer(to: Builder, rows: str, further: str, heads: Heads) -> str:
    """Return rows with a further value for each head: `[B, S, count * (width + 1)]`."""
    split = to.node("Reshape", rows, to.ints(0, 0, heads.count, heads.width))
    return to.node("Reshape", to.node("Concat", split, further, axis=-1), to.ints(0, 0, heads.count * (heads.width + 1)))


def _lengths(packed: Packed) -> tuple[str, str]:
    """Return the place of each text's last token, int32 `[B]`, and the places of the longest text, an int32."""
    to = packed.to
    longest = to.node("Squeeze", to.node("Shape", packed.input("column")))
    return to.node("Gather", packed.input("positions"), packed.input("last")), to.node("Cast", longest, to=to.number_type(np.int32))
