"""Attention over packed tokens. It alone sees each text by itself, through the padded view: `[B, S]` places, a bias where none is real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quadrate.runtime.graphs.builder import Builder
    from quadrate.runtime.graphs.packed import Only, Packed


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row is split.

    Attributes:
        count: Heads of the queries.
        width: Values of each.
    """

    count: int
    width: int


def attend(packed: Packed, query: str, key: str, value: str, *, heads: Heads, bias: str, only: Only | None = None) -> str:
    """Return the attended values (Vaswani et al. 2017): `[T, count * width]`, or `[B, count * width]` if only one token of each text asks.

    Args:
        packed: The batch.
        query: `[T, count * width]`, scaled already; `[B, count * width]` with `only`.
        key: `[T, count * width]`.
        value: `[T, count * width]`.
        heads: How rows are split.
        bias: Added to the logits `[B, count, S, S]` (`[B, count, 1, S]` with `only`), to which it is broadcast.
        only: Which token of each text asks; None if all do.
    """
    to = packed.to
    asking = to.node("Unsqueeze", query, to.ints(1)) if only else packed.padded(query)
    logits = to.node("MatMul", _split(to, asking, heads, [0, 2, 1, 3]), _split(to, packed.padded(key), heads, [0, 2, 3, 1]))
    weights = to.node("Softmax", to.node("Add", logits, bias), axis=-1)
    values = to.node("MatMul", weights, _split(to, packed.padded(value), heads, [0, 2, 1, 3]))
    rows = to.node("Reshape", to.node("Transpose", values, perm=[0, 2, 1, 3]), to.ints(-1, heads.count * heads.width))
    return rows if only else packed.packed(rows)


def _split(to: Builder, rows: str, heads: Heads, order: list[int]) -> str:
    return to.node("Transpose", to.node("Reshape", rows, to.ints(0, 0, heads.count, heads.width)), perm=order)
