"""One tensor of a weight file: where it lies and how it is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}
"""What can be read, by safetensors' names."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of a mapped file.

    Attributes:
        dtype: How its numbers are stored, by safetensors' names.
        shape: Its lengths.
        data: Its bytes, a view of the file.
        strides: How many values lie between two neighbours of each axis; None: the last axis lies together, and so on.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    strides: tuple[int, ...] | None = None

    def read(self, folder: Path, name: str, rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Return its values, or those of some rows; a view of the file where all are asked for and stored as float32.

        Raises ConfigError for values that cannot be read.
        """
        if self.dtype not in DTYPES:
            raise ConfigError(f"{folder}: tensor {name!r} is stored as {self.dtype}; readable are {', '.join(DTYPES)}")
        array = self._array(np.frombuffer(self.data, DTYPES[self.dtype]))
        if rows is not None:
            array = array[list(rows)]
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(array.astype(np.float32, copy=False))

    def _array(self, values: NDArray[Any]) -> NDArray[Any]:
        if self.strides is None:
            return values.reshape(self.shape)
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False)


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many stored values a tensor of these strides reaches over; 0 for an empty one."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor whose values lie one after another."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
