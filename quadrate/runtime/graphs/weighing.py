"""Attention written out in standard operators: logits, softmax, weighed values. What it needs grows with queries times keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.runtime.graphs import layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.runtime.graphs.builder import Builder


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


def weigh(to: Builder, query: str, key: str, value: str, bias: str, heads: Heads) -> str:
    """Return `softmax(query @ key + bias) @ value`, head by head: `[n, q, count * width]`.

    Args:
        to: Where nodes are added.
        query: `[n, q, count * width]`.
        key: `[n, k, keys * width]`.
        value: `[n, k, keys * width]`.
        bias: Broadcast to `[n, count, q, k]`.
        heads: How rows are split.
    """
    split = _split(to, query, heads.count, heads.width, [0, 2, 1, 3])
    keys = _split(to, key, heads.keys, heads.width, [0, 2, 3, 1])
    values = _split(to, value, heads.keys, heads.width, [0, 2, 1, 3])
    logits = _grouped(to, split, heads, lambda rows: layers.product(to, rows, keys))
    weights = to.node("Softmax", to.node("Add", logits, bias), axis=-1)
    weighed = _grouped(to, weights, heads, lambda rows: layers.product(to, rows, values))
    return to.node("Reshape", to.node("Transpose", weighed, perm=[0, 2, 1, 3]), to.ints(0, 0, heads.count * heads.width))


def _split(to: Builder, rows: str, count: int, width: int, order: list[int]) -> str:
    return to.node("Transpose", to.node("Reshape", rows, to.ints(0, 0, count, width)), perm=order)


def _grouped(to: Builder, rows: str, heads: Heads, product: Callable[[str], str]) -> str:
    """Multiply the rows `[n, count, q, x]` of all heads that share a key at once, as one longer list of rows: nothing is repeated."""
    if heads.keys == heads.count:
        return product(rows)
    together = to.node("Reshape", rows, to.ints(0, heads.keys, -1, 0))
    return to.node("Reshape", product(together), to.ints(0, heads.count, -1, 0))
