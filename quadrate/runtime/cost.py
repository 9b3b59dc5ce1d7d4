"""How long a batch will take: arithmetic known beforehand, speed learnt from each run.

    seconds = (start + operations / speed) * correction

Start and speed are fitted by least squares over recent narrow runs, each counted relative to its size, so that long runs do not drown
short ones. What the line misses is learnt as a correction for each size, in powers of two, and of narrow and wide runs apart: long
texts, whose attention may run faster or slower than matrix products, and runs over all cores.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.runtime.encoders import Encoder

_FORGET = 0.97
"""Weight of what was learnt before, at each new run: the last 30 or so count."""
_ADAPT = 0.2
"""Weight of a new run in its size's correction."""
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
    """Predicts seconds of runs. Safe to call from any thread.

    Args:
        shape: The model's arithmetic.
        speed: Operations a second, assumed until runs tell better.
    """

    def __init__(self, shape: Shape, *, speed: float = 50e9) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._unit = shape.operations([64])
        # Sums of weight, u, r, u², ur where r = seconds / x and u = 1 / x; the first run ever is made up from the assumed speed.
        rate = self._unit / speed
        self._sums = (1e-3, 1e-3, 1e-3 * rate, 1e-3, 1e-3 * rate)
        self._start, self._slope = 0.0, rate
        self._corrections: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self.runs = 0
        """Runs learnt from."""

    def seconds(self, lengths: Sequence[int], *, wide: bool = False) -> float:
        """Predict one run over texts of these lengths, on one core or, `wide`, on all."""
        x = self._shape.operations(lengths) / self._unit
        return (self._start + self._slope * x) * self._correction(x, wide=wide)

    def share(self, tokens: int) -> float:
        """Predict what a text of `tokens` adds to a run that goes anyway, in seconds of one core."""
        shape = self._shape
        x = (shape.per_token + shape.per_place * tokens) * tokens / self._unit
        correction = self._corrections[False].get(math.frexp(x)[1])
        return self._slope * x * (self._correction(x, wide=False) if correction is None else correction)

    def learn(self, lengths: Sequence[int], seconds: float, *, wide: bool = False) -> None:
        """Take in how long a run really took."""
        x = self._shape.operations(lengths) / self._unit
        with self._lock:
            corrections = self._corrections[wide]
            if corrections:
                seconds = min(seconds, _OUTLIER * self.seconds(lengths, wide=wide))
            if not wide:
                self._fit(x, seconds)
            size = math.frexp(x)[1]
            ratio = seconds / (self._start + self._slope * x)
            before = corrections.get(size)
            corrections[size] = ratio if before is None else before + _ADAPT * (ratio - before)
            self.runs += 1

    def _correction(self, x: float, *, wide: bool) -> float:
        """Return what runs of about this size took, as a multiple of the line; of the nearest size that was seen."""
        corrections = self._corrections[wide]
        size = math.frexp(x)[1]
        if size in corrections or not corrections:
            return corrections.get(size, 1.0)
        return corrections[min(list(corrections), key=lambda seen: abs(seen - size))]

    def _fit(self, x: float, seconds: float) -> None:
        u, r = 1 / x, seconds / x
        new = (1.0, u, r, u * u, u * r)
        self._sums = weight, us, rs, uu, ur = tuple(_FORGET * old + add for old, add in zip(self._sums, new, strict=True))  # type: ignore[assignment]  # five stay five
        spread = weight * uu - us * us
        start = (weight * ur - us * rs) / spread if spread > 0.01 * us * us else 0.0
        slope = (rs - start * us) / weight
        if slope <= 0 or start < 0:  # runs too alike to tell the two apart, or a noisy few
            start, slope = 0.0, rs / weight
        self._start, self._slope = start, slope
