"""Attention over packed tokens. It alone sees each text by itself, through the padded view: `[B, S]` places, a bias where none is real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.runtime.graphs import sight as sights
from quadrate.runtime.graphs.sight import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.runtime.graphs.builder import Builder
    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.graphs.sight import Sight


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row is split.

    Attributes:
        count: Heads of the queries.
        width: Values of each.
        shared: Heads of the keys and values, where several of the queries share one (Ainslie et al. 2023); None if each has its own.
    """

    count: int
    width: int
    shared: int | None = None

    @property
    def keys(self) -> int:
        """Heads of the keys and values."""
        return self.shared or self.count


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
    to = packed.to
    asking = to.node("Unsqueeze", query, to.ints(1)) if only else packed.padded(query)
    split = _split(to, asking, heads.count, heads.width, [0, 2, 1, 3])
    keys = _split(to, packed.padded(key), heads.keys, heads.width, [0, 2, 3, 1])
    values = _split(to, packed.padded(value), heads.keys, heads.width, [0, 2, 1, 3])
    bias = packed.once(("bias", sight, only), lambda: sights.bias(packed, sight, only))
    rows = to.node("Reshape", _weigh(to, split, keys, values, bias, heads), to.ints(-1, heads.count * heads.width))
    return rows if only else packed.packed(rows)


def _weigh(to: Builder, query: str, key: str, value: str, bias: str, heads: Heads) -> str:
    """Return `softmax(query @ key + bias) @ value`, the heads of a token side by side: `[B, n, count, width]`."""
    logits = _grouped(to, query, heads, lambda rows: to.node("MatMul", rows, key))
    weights = to.node("Softmax", to.node("Add", logits, bias), axis=-1)
    values = _grouped(to, weights, heads, lambda rows: to.node("MatMul", rows, value))
    return to.node("Transpose", values, perm=[0, 2, 1, 3])


def _grouped(to: Builder, rows: str, heads: Heads, product: Callable[[str], str]) -> str:
    """Multiply the rows `[B, count, n, x]` of all heads that share a key at once, as one longer list of rows: nothing is repeated."""
    if heads.keys == heads.count:
        return product(rows)
    together = to.node("Reshape", rows, to.ints(0, heads.keys, -1, 0))
    return to.node("Reshape", product(together), to.ints(0, heads.count, -1, 0))


def _split(to: Builder, rows: str, count: int, width: int, order: list[int]) -> str:
    return to.node("Transpose", to.node("Reshape", rows, to.ints(0, 0, count, width)), perm=order)
