"""Attention among neighbours: texts are cut into blocks, and a block sees itself and what is near it on either side.

Long texts cost as much for each token as short ones. Texts up to `packing.ONE_BLOCK` tokens are one block each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.runtime.graphs.weighing import weigh
from quadrate.runtime.packing import MASKED

if TYPE_CHECKING:
    from quadrate.runtime.graphs.packed import Packed
    from quadrate.runtime.graphs.weighing import Heads


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Names of the values that all layers share.

    Attributes:
        asking: The token at each place of a block: int32 `[N, C]`.
        seen: The tokens that a block sees: int32 `[N, K]`, with K the least of S and C + 2 * window.
        bias: `[N, 1, C, K]`.
    """

    asking: str
    seen: str
    bias: str


def attend(packed: Packed, query: str, key: str, value: str, *, heads: Heads, window: int) -> str:
    """Return the attended values where a token sees what is at most `window` places away: `[T, count * width]`.

    Args:
        packed: The batch.
        query: `[T, count * width]`, scaled already.
        key: `[T, keys * width]`.
        value: `[T, keys * width]`.
        heads: How rows are split.
        window: The greatest distance.
    """
    to = packed.to
    blocks = packed.once(("blocks", window), lambda: _blocks(packed, window))
    asking = to.node("Gather", query, blocks.asking)
    keys, values = (to.node("Gather", rows, blocks.seen) for rows in (key, value))
    found = weigh(to, asking, keys, values, blocks.bias, heads)
    return to.node("Gather", to.node("Reshape", found, to.ints(-1, heads.count * heads.width)), packed.input("block_tokens"))


def _blocks(packed: Packed, window: int) -> _Blocks:
    to = packed.to
    start, length, bound = (
        to.node("Unsqueeze", packed.input(name), to.ints(1)) for name in ("block_positions", "block_lengths", "block_bounds")
    )
    places = packed.input("block_column")
    count = to.node("Min", to.node("Add", to.node("Shape", places), to.ints(2 * window)), to.node("Shape", packed.input("column")))
    # As far left as a window goes, but so that the last key is one of the text's where there are enough.
    last = to.node("Sub", length, to.node("Cast", count, to=to.number_type(np.int32)))
    first = to.node("Max", to.node("Min", to.node("Sub", start, _number(packed, window)), last), _number(packed, 0))
    asking = to.node("Add", start, places)
    seen = to.node("Add", first, to.node("Slice", packed.input("column"), to.ints(0), count))
    away = to.node("Abs", to.node("Sub", to.node("Unsqueeze", seen, to.ints(1)), to.node("Unsqueeze", asking, to.ints(2))))
    is_far = to.node("Greater", away, _number(packed, window))
    is_none = to.node("Unsqueeze", to.node("GreaterOrEqual", seen, length), to.ints(1))
    values = (to.constant(np.array(number, np.float32)) for number in (MASKED, 0))
    bias = to.node("Unsqueeze", to.node("Where", to.node("Or", is_far, is_none), *values), to.ints(1))
    return _Blocks(_tokens(packed, asking, bound, length), _tokens(packed, seen, bound, length), bias)


def _tokens(packed: Packed, places: str, bound: str, length: str) -> str:
    """Return the tokens at places of texts; the last one beyond a text's end."""
    to = packed.to
    return to.node("Add", bound, to.node("Min", places, to.node("Sub", length, _number(packed, 1))))


def _number(packed: Packed, number: int) -> str:
    return packed.to.constant(np.array(number, np.int32))
