"""How long a batch will take: arithmetic known beforehand, speed learnt from each run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.runtime.encoders import Encoder

_FORGET = 0.97
"""Weight of what was learnt before, at each new run: the last 30 or so count."""
_OUTLIER = 4.0
"""A run so many times slower than predicted met something else on its cores; it counts no more than this."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's arithmetic grows by."""

    per_token: float
    """Floating-point operations for each token, in the matrix products."""
    per_place: float
    """Operations for each pair of places in the attention's padded view."""

    @classmethod
    def of(cls, size: Encoder) -> Shape:
        """Return the shape of an encoder."""
        return cls(size.operations_per_token, size.operations_per_pair)

    def operations(self, lengths: Sequence[int]) -> float:
        """Return the operations for a batch of texts of these lengths."""
        return self.per_token * sum(lengths) + self.per_place * len(lengths) * max(lengths) ** 2


class CostModel:
    """Predicts `seconds = start + operations / speed`, both fitted by least squares over recent runs. Safe to call from any thread.

    Args:
        shape: The model's arithmetic.
        speed: Operations a second, assumed until runs tell better.
    """

    def __init__(self, shape: Shape, *, speed: float = 50e9) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        # Sums of weight, x, y, x², xy; the first run ever is made up from the assumed speed and soon forgotten.
        unit = shape.operations([64])
        self._unit = unit
        self._sums = (1e-3, 1e-3, 1e-3 * unit / speed, 1e-3, 1e-3 * unit / speed)
        self._start, self._slope = 0.0, unit / speed
        self.runs = 0
        """Runs learnt from."""

    def seconds(self, lengths: Sequence[int]) -> float:
        """Predict one run on one core over texts of these lengths."""
        return self._start + self._slope * self._shape.operations(lengths) / self._unit

    def share(self, tokens: int) -> float:
        """Predict what a text of `tokens` adds to a run that goes anyway, in seconds."""
        return self._slope * self._shape.operations((tokens,)) / self._unit

    def learn(self, lengths: Sequence[int], seconds: float) -> None:
        """Take in how long a run really took."""
        x = self._shape.operations(lengths) / self._unit
        with self._lock:
            if self.runs:
                seconds = min(seconds, _OUTLIER * self.seconds(lengths))
            new = (1.0, x, seconds, x * x, x * seconds)
            self._sums = tuple(_FORGET * old + add for old, add in zip(self._sums, new, strict=True))  # type: ignore[assignment]  # five stay five
            self.runs += 1
            self._fit()

    def _fit(self) -> None:
        weight, x, y, xx, xy = self._sums
        spread = weight * xx - x * x
        slope = (weight * xy - x * y) / spread if spread > 0.01 * x * x else y / x
        start = (y - slope * x) / weight
        if slope <= 0 or start < 0:  # runs too alike to tell the two apart, or a noisy few
            slope, start = y / x, 0.0
        self._slope, self._start = slope, start
