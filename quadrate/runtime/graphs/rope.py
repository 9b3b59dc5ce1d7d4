"""Rotary position embeddings (Su et al. 2021): pairs of a head's values are turned by an angle that grows with the token's position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

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
        """Return the angle of each pair at each position, `[positions, width / 2]`, rounded as checkpoints were trained: in float32.

        Powers are rounded once: numpy's own in float32 are off by another step here and there, which thousands of positions multiply.
        """
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        powers = (np.float64(self.base) ** exponents).astype(np.float32)
        inverse = (np.float32(1) / powers) / np.float32(self.stretch)
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
    cosine, sine = packed.once(("rope", rope), lambda: _tables(packed, rope))
    place = at or packed.input("positions")
    # Each row is a text of one token to the operator: it wants no more tokens of a text than the tables have rows.
    places = packed.once(("rope", place), lambda: to.node("Unsqueeze", to.node("Cast", place, to=TensorProto.INT64), to.ints(1)))
    sizes = {"num_heads": count, "rotary_embedding_dim": 0 if rope.width == width else rope.width, "interleaved": int(rope.interleaved)}
    flat = to.node("Reshape", rows, to.ints(-1, 1, count * width))
    turned = to.node("RotaryEmbedding", flat, places, cosine, sine, domain="com.microsoft", **sizes)
    return to.node("Reshape", turned, to.ints(-1, count * width))


def _tables(packed: Packed, rope: Rope) -> tuple[str, str]:
    """Return cosine and sine of each pair's angle at each position: `[positions, width / 2]`."""
    angles = rope.angles()
    return packed.to.constant(np.cos(angles)), packed.to.constant(np.sin(angles))
