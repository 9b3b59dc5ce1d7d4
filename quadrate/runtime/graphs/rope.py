"""Rotary position embeddings (Su et al. 2021): pairs of a head's values are turned by an angle that grows with the token's position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.packed import Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How a head's values are turned.

    Attributes:
        width: How many of a head's first values are turned; the others stay.
        base: Pair i turns by `position * base ** (-2 i / width)`.
        positions: The most positions there are.
        interleaved: Whether pairs are neighbours; otherwise the first half of the values is paired with the second (as in GPT-NeoX).
        stretch: Positions are divided by it ("linear" scaling).
    """

    width: int
    base: float
    positions: int
    interleaved: bool = False
    stretch: float = 1.0

    def angles(self) -> NDArray[np.float32]:
        """Return the angle of each pair at each position, `[positions, width / 2]`, rounded as checkpoints were trained: in float32."""
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        inverse = (np.float32(1) / np.float32(self.base) ** exponents) / np.float32(self.stretch)
        return np.arange(self.positions, dtype=np.float32)[:, None] * inverse.astype(np.float32)


def turn(packed: Packed, rope: Rope, rows: str, *, count: int, width: int, at: str | None = None) -> str:
    """Turn the values of `count` heads of `width` values each: `[n, count * width]` to the same.

    Args:
        packed: The batch.
        rope: How.
        rows: What is turned.
        count: Heads.
        width: Values of each.
        at: The position of each row, int32 `[n]`; None if there is a row for each token.
    """
    to = packed.to
    place = at or packed.input("positions")
    cosine, sine = packed.once(("rope", rope, place), lambda: _tables(packed, rope, place))
    heads = to.node("Reshape", rows, to.ints(-1, count, width))
    turned, kept = heads, None
    if rope.width < width:
        turned, kept = to.nodes("Split", heads, to.ints(rope.width, width - rope.width), axis=-1, results=2)
    turned = to.node("Add", to.node("Mul", turned, cosine), to.node("Mul", _partners(packed, rope, turned, count), sine))
    if kept is not None:
        turned = to.node("Concat", turned, kept, axis=-1)
    return to.node("Reshape", turned, to.ints(-1, count * width))


def _tables(packed: Packed, rope: Rope, place: str) -> tuple[str, str]:
    """Return cosine and signed sine of each row's angles, `[n, 1, width]`: a value becomes `value * cosine + partner * sine`."""
    to = packed.to
    tables = packed.once(("rope", rope), lambda: _constants(packed, rope))
    cosine, sine = (to.node("Unsqueeze", to.node("Gather", table, place), to.ints(1)) for table in tables)
    return cosine, sine


def _constants(packed: Packed, rope: Rope) -> tuple[str, str]:
    angles = rope.angles()
    cosine, sine = np.cos(angles), np.sin(angles)
    if rope.interleaved:
        pair = np.repeat(cosine, 2, axis=1), np.stack((-sine, sine), axis=2).reshape(rope.positions, rope.width)
    else:
        pair = np.concatenate((cosine, cosine), axis=1), np.concatenate((-sine, sine), axis=1)
    return packed.to.constant(pair[0]), packed.to.constant(pair[1])


def _partners(packed: Packed, rope: Rope, heads: str, count: int) -> str:
    """Return the values with those of each pair exchanged."""
    to = packed.to
    if not rope.interleaved:
        first, second = to.nodes("Split", heads, axis=-1, num_outputs=2, results=2)
        return to.node("Concat", second, first, axis=-1)
    pairs = to.node("Reshape", heads, to.ints(-1, count, rope.width // 2, 2))
    first, second = to.nodes("Split", pairs, axis=-1, num_outputs=2, results=2)
    return to.node("Reshape", to.node("Concat", second, first, axis=-1), to.ints(-1, count, rope.width))
