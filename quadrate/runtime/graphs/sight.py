"""What a token sees of its own text: all of it, what stands before it, what is near; and how much the distance adds to a logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.runtime.packing import MASKED

if TYPE_CHECKING:
    from quadrate.runtime.graphs.packed import Only, Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """What is added to a logit for the distance from the token that asks to the one that is seen (Raffel et al. 2020).

    Attributes:
        table: Name of the constant `[heads, 2 * reach + 1]`: a value for each distance from -reach to reach.
        reach: Greater distances count as this one.
    """

    table: str
    reach: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a token sees, within its own text.

    Attributes:
        causal: Only itself and what stands before it.
        window: Only what is at most so many places away; None for any distance.
        relative: What distances add; None for nothing.
    """

    causal: bool = False
    window: int | None = None
    relative: Relative | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing depends on the distance."""
        return not self.causal and self.window is None and self.relative is None


EVERYTHING = Sight()


def bias(packed: Packed, sight: Sight, only: Only | None) -> str:
    """Return what is added to the logits, to be broadcast: `[B or 1, heads or 1, S, S]`, with `only` one row in place of S."""
    if sight.is_whole or (sight == Sight(causal=True) and only == "last"):
        return packed.input("bias")
    distance = distances(packed, only)
    hidden = forbidden(packed, sight, distance)
    parts = [] if hidden is None else [hidden]
    # What a text's tokens see when they only look back is never padding.
    if not sight.causal or only:
        parts.append(packed.input("bias"))
    if sight.relative:
        parts.append(added(packed, sight.relative, distance))
    total = parts[0]
    for part in parts[1:]:
        total = packed.to.node("Add", total, part)
    return total


def distances(packed: Packed, only: Only | None) -> str:
    """Return how far behind each place a seen one stands, negative before it: int32 `[1, S, S]`, or `[B, 1, S]` with `only`."""
    to = packed.to
    column = packed.input("column")
    seen = to.node("Unsqueeze", column, to.ints(0, 1))
    if only == "first":
        return seen
    asking = to.node("Gather", packed.input("positions"), packed.input("last")) if only else column
    return to.node("Sub", seen, to.node("Unsqueeze", asking, to.ints(1, 2) if only else to.ints(0, 2)))


def forbidden(packed: Packed, sight: Sight, distance: str) -> str | None:
    """Return MASKED where a distance is out of sight and 0 where not, `[B or 1, 1, n, S]`; None if no distance is."""
    to = packed.to
    lowest = -sight.window if sight.window is not None else None
    highest = 0 if sight.causal else sight.window
    outside = []
    if lowest is not None:
        outside.append(to.node("Less", distance, to.constant(np.array(lowest, np.int32))))
    if highest is not None:
        outside.append(to.node("Greater", distance, to.constant(np.array(highest, np.int32))))
    if not outside:
        return None
    hidden = outside[0] if len(outside) == 1 else to.node("Or", *outside)
    values = to.node("Where", hidden, to.constant(np.array(MASKED, np.float32)), to.constant(np.array(0, np.float32)))
    return to.node("Unsqueeze", values, to.ints(1))


def added(packed: Packed, relative: Relative, distance: str) -> str:
    """Return the table's value for each distance: `[B or 1, heads, n, S]`."""
    to = packed.to
    reach = to.constant(np.array(relative.reach, np.int32))
    near = to.node("Clip", distance, to.constant(np.array(-relative.reach, np.int32)), reach)
    values = to.node("Gather", relative.table, to.node("Add", near, reach), axis=1)  # [heads, B or 1, n, S]
    return to.node("Transpose", values, perm=[1, 0, 2, 3])
