"""How long a batch will take: its arithmetic is known beforehand, how long so much of it takes is learnt from each run.

What was learnt is a curve: for each size of run, in powers of two, how much work recent narrow runs of it had and how long they took. A
prediction lies on the straight line between the two nearest sizes, so the start of a run, the speed of the matrix products and that of
long texts' attention each show where they matter, and long runs never blur what is known of short ones. Wide runs, on all cores, are
learnt as multiples of narrow ones. Until a narrow run was seen they stand in for narrow ones, which take as long at least: a model that
has just been loaded has answered alone only, and what comes then may be a flood.
"""

from __future__ import annotations

import bisect
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.runtime.batching import Limits
    from quadrate.runtime.encoders import Encoder

_FORGET = 0.9
"""Weight of what was learnt before of a size, at each new run of it: the last 10 or so count."""
_LEAST_SECONDS = 1e-6
_OUTLIER = 4.0
"""A run so many times slower than predicted met something else on its cores; it counts no more than this."""
_NEAR = 2.0
"""Runs of up to so many times the work of the largest that was seen are predicted by it…"""
_UNSEEN = 0.25
"""…while larger ones may take as little as this part of it: small runs, and the first ones of a model, are slow for their size."""


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
        self._speed = speed
        self._sizes: dict[int, _Size] = {}
        self._curve: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
        self._wide: dict[int, float] = {}
        self._usual = _NEVER
        self._has_narrow = False
        self._rate, self._run = 1 / speed, 0.0
        self.runs = 0
        """Runs learnt from."""

    def seconds(self, lengths: Sequence[int], *, wide: bool = False) -> float:
        """Predict one run over texts of these lengths, on one core or, `wide`, on all."""
        operations = self._shape.operations(lengths)
        return self._narrow(operations) * (self._gain(operations) if wide else 1.0)

    def share(self, tokens: int, limits: Limits) -> float:
        """Predict what a text of `tokens` adds to runs as they usually are, in seconds of one core.

        It is no less than the text's part of a full run of its like: if that holds few of them, usual runs may have carried more.
        """
        operations = (self._shape.per_token + self._shape.per_place * tokens) * tokens
        if operations > self._run:
            return self._narrow(operations)
        texts = limits.texts_of(tokens)
        return max(operations * self._rate, self._narrow(texts * operations) / texts)

    def at_best(self, tokens: int, cores: int) -> float:
        """Predict the least that a run over one text may take, in seconds, if it has so many cores.

        What was never tried must not be refused by what small runs tell, or it would never be learnt.
        """
        operations = self._shape.operations((tokens,))
        ratio = self._wide.get(math.frexp(operations)[1]) if cores > 1 else None
        if ratio is None:
            largest = self._curve[0][-1] if self._curve[0] else 0.0
            ratio = (1.0 if operations <= _NEAR * largest else _UNSEEN) / cores
        return self._narrow(operations) * ratio

    def learn(self, lengths: Sequence[int], seconds: float, *, wide: bool = False) -> None:
        """Take in how long a run really took."""
        operations = self._shape.operations(lengths)
        size, seconds = math.frexp(operations)[1], max(seconds, _LEAST_SECONDS)
        with self._lock:
            if not (wide or self._has_narrow):  # what stood in for such runs is of no more use
                self._sizes, self._usual, self._has_narrow = {}, _NEVER, True
            is_ratio = wide and self._has_narrow
            if self._wide if is_ratio else self._sizes:
                seconds = min(seconds, _OUTLIER * self.seconds(lengths, wide=wide))
            if is_ratio:
                ratio = seconds / self._narrow(operations)
                self._wide = {**self._wide, size: _FORGET * self._wide.get(size, ratio) + (1 - _FORGET) * ratio}
            else:
                self._sizes[size] = self._sizes.get(size, _NEVER).with_run(operations, seconds)
                self._usual = self._usual.with_run(operations, seconds)
                self._rate, self._run = self._usual.seconds / self._usual.operations, self._usual.operations / self._usual.runs
                means = sorted((one.operations / one.runs, one.seconds / one.runs) for one in self._sizes.values())
                self._curve = tuple(zip(*means, strict=True))  # type: ignore[assignment]  # two columns
            self.runs += 1

    def _narrow(self, operations: float) -> float:
        """Return the seconds that the curve gives for so much work."""
        works, times = self._curve
        if not works:
            return operations / self._speed
        place = bisect.bisect_right(works, operations)
        if place == len(works) or len(works) == 1:
            return times[-1] * operations / works[-1]
        place = max(1, place)
        slope = (times[place] - times[place - 1]) / (works[place] - works[place - 1])
        found = times[place] - slope * (works[place] - operations)
        return found if found > 0 else times[0] * operations / works[0]

    def _gain(self, operations: float) -> float:
        """Return what a wide run takes as a multiple of a narrow one, as with the nearest size that was seen."""
        if not self._wide:
            return 1.0
        size = math.frexp(operations)[1]
        return self._wide[min(self._wide, key=lambda seen: abs(seen - size))]


@dataclass(frozen=True, slots=True)
class _Size:
    """Recent runs of about one size: how many, their work and their seconds, older ones weighing less."""

    runs: float
    operations: float
    seconds: float

    def with_run(self, operations: float, seconds: float) -> _Size:
        return _Size(_FORGET * self.runs + 1, _FORGET * self.operations + operations, _FORGET * self.seconds + seconds)


_NEVER = _Size(0.0, 0.0, 0.0)
