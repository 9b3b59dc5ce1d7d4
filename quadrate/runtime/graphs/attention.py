"""Attention over packed tokens. It alone sees each text by itself: `[B, S]` places, or blocks of neighbours.

What a run needs grows with the length of its texts, not with the square, wherever they may be long:

- a token that sees the whole text, or all before it: the engine's own kernel (see `fused`), which goes through the keys piece by piece;
- a token that sees its neighbours: blocks (see `near`);
- one token of each text alone: its logits are one row.

Written out and quadratic is what is left: distances that add something (T5, which reads 512 tokens), and engines without a kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.graphs import fused, near
from quadrate.runtime.graphs import sight as sights
from quadrate.runtime.graphs.sight import EVERYTHING, Sight
from quadrate.runtime.graphs.weighing import Heads, weigh

if TYPE_CHECKING:
    from quadrate.runtime.graphs.packed import Only, Packed

__all__ = ["Heads", "attend"]


def attend(packed: Packed, query: str, key: str, value: str, *, heads: Heads, sight: Sight = EVERYTHING, only: Only | None = None) -> str:
    """Return the attended values (Vaswani et al. 2017): `[T, count * width]`, or `[B, count * width]` if only one token of each text asks.

    Args:
        packed: The batch.
        query: `[T, count * width]`, scaled already; `[B, count * width]` with `only`.
        key: `[T, keys * width]`.
        value: `[T, keys * width]`.
        heads: How rows are split.
        sight: What a token sees of its text.
        only: Which token of each text asks; None if all do.
    """
    if only:
        return _alone(packed, query, key, value, heads, sight, only)
    if sight.window is not None and sight == Sight(window=sight.window):
        return near.attend(packed, query, key, value, heads=heads, window=sight.window)
    rows = packed.padded(query), packed.padded(key), packed.padded(value)
    if sight == EVERYTHING and packed.to.kernels == "onnxruntime" and heads.keys == heads.count:
        found = fused.everything(packed, *rows, heads=heads)
    elif sight == Sight(causal=True) and packed.to.kernels != "none":
        found = fused.causal(packed, *rows, heads=heads)
    else:
        found = weigh(packed.to, *rows, _bias(packed, sight, None), heads)
    return packed.packed(packed.to.node("Reshape", found, packed.to.ints(-1, heads.count * heads.width)))


def _alone(packed: Packed, query: str, key: str, value: str, heads: Heads, sight: Sight, only: Only) -> str:
    to = packed.to
    asking = to.node("Unsqueeze", query, to.ints(1))
    found = weigh(to, asking, packed.padded(key), packed.padded(value), _bias(packed, sight, only), heads)
    return to.node("Squeeze", found, to.ints(1))


def _bias(packed: Packed, sight: Sight, only: Only | None) -> str:
    return packed.once(("bias", sight, only), lambda: sights.bias(packed, sight, only))
