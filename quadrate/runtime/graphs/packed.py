"""A packed batch inside a graph: its inputs, declared when they are first used, and the way into the padded view and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from quadrate.runtime.packing import FEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from quadrate.runtime.graphs.builder import Builder

ValueT = TypeVar("ValueT")
Only = Literal["first", "last"]
"""Which token of each text is pooled, where one alone is: the last layer then works on those alone."""


class Packed:
    """The batch that a graph under construction works on.

    Args:
        to: Where nodes are added.
        pairs: Whether a reading may be a pair, whose second text has another token type.
    """

    def __init__(self, to: Builder, *, pairs: bool = False) -> None:
        self.to = to
        self.pairs = pairs
        self._declared: set[str] = set()
        self._written: dict[Hashable, Any] = {}

    def input(self, name: str) -> str:
        """Return an input of FEEDS by name; it becomes one of the graph's when it is first asked for."""
        if name not in self._declared:
            self._declared.add(name)
            feed = FEEDS[name]
            self.to.input(name, feed.dtype, feed.shape)
        return name

    def once(self, key: Hashable, write: Callable[[], ValueT]) -> ValueT:
        """Return what `write` wrote for this key; it writes once, however many layers ask."""
        if key not in self._written:
            self._written[key] = write()
        found: ValueT = self._written[key]
        return found

    def pick(self, rows: str, only: Only) -> str:
        """Return the rows of each text's first or last token: `[T, H]` to `[B, H]`."""
        return self.to.node("Gather", rows, self.input(only))

    def mean(self, rows: str) -> str:
        """Return the mean of each text's rows: `[T, H]` to `[B, H]`."""
        return self.to.node("MatMul", self.input("shares"), rows)

    def padded(self, rows: str) -> str:
        """Return rows in the padded view: `[T, H]` to `[B, S, H]`."""
        return self.to.node("Gather", rows, self.input("places"))

    def packed(self, rows: str) -> str:
        """Return rows of the flattened padded view as tokens again: `[B * S, H]` to `[T, H]`."""
        return self.to.node("Gather", rows, self.input("tokens"))
