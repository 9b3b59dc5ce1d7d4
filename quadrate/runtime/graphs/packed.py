"""A packed batch inside a graph: its inputs, declared when they are first used, and the way into the padded view and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from quadrate.runtime.packing import FEEDS

if TYPE_CHECKING:
    from quadrate.runtime.graphs.builder import Builder

Only = Literal["first", "last"]
"""Which token of each text is pooled, where one alone is: the last layer then works on those alone."""


class Packed:
    """The batch that a graph under construction works on.

    Args:
        to: Where nodes are added.
    """

    def __init__(self, to: Builder) -> None:
        self.to = to
        self._declared: set[str] = set()

    def input(self, name: str) -> str:
        """Return an input of FEEDS by name; it becomes one of the graph's when it is first asked for."""
        if name not in self._declared:
            self._declared.add(name)
            feed = FEEDS[name]
            self.to.input(name, feed.dtype, feed.shape)
        return name

    def pick(self, rows: str, only: Only) -> str:
        """Return the rows of each text's first or last token: `[T, H]` to `[B, H]`."""
        return self.to.node("Gather", rows, self.input(only))

    def padded(self, rows: str) -> str:
        """Return rows in the padded view: `[T, H]` to `[B, S, H]`."""
        return self.to.node("Gather", rows, self.input("places"))

    def packed(self, rows: str) -> str:
        """Return rows of the flattened padded view as tokens again: `[B * S, H]` to `[T, H]`."""
        return self.to.node("Gather", rows, self.input("tokens"))
