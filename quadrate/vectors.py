"""The number formats of dense vectors and multi-vectors: float32, and what is made of it.

int8 and uint8 have a fixed range, for vectors of length one: the range of a batch would make a text's bytes depend on its company, and one
that was measured would have to travel with every index. The values of a unit vector of width w are about 1/√w large, so that much is
LEVELS_A_DEVIATION levels:

    int8  = round(16·√w·x), from -128 to 127           x ≈ int8 / (16·√w)
    uint8 = int8 + 128                                  x ≈ (uint8 - 128) / (16·√w)

Zero stays zero, so the dot product of two int8 vectors is 256·w times their cosine. A value beyond 8/√w (0.41 at 384, 0.25 at 1,024) is
clipped; that one value would hold 64/w of the vector's squared length. Cosines to float32 are 0.9998 and more (all-MiniLM-L6-v2, 200
texts). These are the bytes of sentence-transformers' `quantize_embeddings(vectors, "int8", ranges=ranges(w))`, as binary and ubinary are
those of the same function without further arguments.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.v1.options_pb2 import BINARY, FLOAT16, FLOAT32, INT8, UBINARY, UINT8, VALUE_TYPE_UNSPECIFIED

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS_A_DEVIATION = 16
_LEVELS = 255
_ZERO = 128
"""The uint8 that stands for zero."""

DTYPES: dict[int, np.dtype[Any]] = {
    VALUE_TYPE_UNSPECIFIED: np.dtype("<f4"),
    FLOAT32: np.dtype("<f4"),
    FLOAT16: np.dtype("<f2"),
    INT8: np.dtype("i1"),
    UINT8: np.dtype("u1"),
    BINARY: np.dtype("i1"),
    UBINARY: np.dtype("u1"),
}
"""What numpy calls each value type as it travels."""
FLOAT32S = frozenset({VALUE_TYPE_UNSPECIFIED, FLOAT32})
CALIBRATED = frozenset({INT8, UINT8})
"""Value types that mean something for vectors of length one only."""
_BITS = frozenset({BINARY, UBINARY})


@cache
def ranges(width: int) -> NDArray[np.float32]:
    """Return what int8 and uint8 span, in the form of `quantize_embeddings`: float32[2, width], the lowest values and the highest.

    It lies half a level below symmetric, so that its floor is our rounding.
    """
    level = 1 / (LEVELS_A_DEVIATION * np.sqrt(width))
    lowest = -(_ZERO + 0.5) * level
    spanned = np.array([[lowest] * width, [lowest + _LEVELS * level] * width], np.float32)
    spanned.setflags(write=False)
    return spanned


def convert(values: NDArray[np.float32], value_type: int) -> NDArray[Any]:
    """Return vectors `[..., width]` in a value type; BINARY and UBINARY hold eight values a byte, the first in the highest bit.

    Whether INT8 and UINT8 are given vectors of length one is for the caller to see to.
    """
    if value_type in CALIBRATED:
        levels = _levels(values)
        return levels.astype(np.uint8) if value_type == UINT8 else (levels - _ZERO).astype(np.int8)
    if value_type in _BITS:
        bits = np.packbits(values > 0, axis=-1)
        return bits if value_type == UBINARY else (bits ^ _ZERO).view(np.int8)
    return values.astype(DTYPES[value_type], copy=False)


def row_bytes(width: int, value_type: int) -> int:
    """Return what one vector of a width takes in a value type."""
    values = -(-width // 8) if value_type in _BITS else width
    return values * DTYPES[value_type].itemsize


def _levels(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each value's level, 0 to 255; the arithmetic is that of `quantize_embeddings`, rounding by rounding."""
    lowest, highest = ranges(values.shape[-1])
    levels: NDArray[np.float32] = np.clip(np.floor((values - lowest) / ((highest - lowest) / _LEVELS)), 0, _LEVELS)
    return levels
