"""How near is near enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from quadrate.config.worker import Precision


@dataclass(frozen=True, slots=True)
class Limit:
    """How near a vector or a list of scores must be to the golden one.

    Attributes:
        cosine: The least cosine between the two.
        difference: The most that one value may differ, as a part of the largest golden value or of 1, whichever is more. For vectors it
            counts at `exact` alone: what coarser arithmetic does to a single value says little.
    """

    cosine: float
    difference: float


LIMITS: Mapping[Precision, Limit] = {"exact": Limit(0.99999, 1e-4), "fast": Limit(0.999, 0.05), "small": Limit(0.99, 0.2)}
"""By the class of arithmetic."""


def compare(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    """Return a sentence if a vector is not the golden one, and nothing if it is."""
    if expected.shape != found.shape:
        return [f"{name}: {found.size} values, {expected.size} in the file"]
    cosine = _cosine(expected, found)
    if not cosine >= limit.cosine:
        return [f"{name}: the cosine to the golden vector is {cosine:.6f}, it must be at least {limit.cosine}"]
    return differences(name, expected, found, limit) if limit is LIMITS["exact"] else []


def differences(name: str, expected: NDArray[np.float32], found: NDArray[np.float32], limit: Limit) -> list[str]:
    """Return a sentence if one value is too far from the golden one, and nothing if all are near."""
    allowed = limit.difference * max(1.0, float(np.abs(expected).max(initial=0.0)))
    worst = float(np.abs(expected - found).max(initial=0.0))
    return [] if worst <= allowed else [f"{name}: a value differs by {worst:.2g} from the golden one, {allowed:.2g} is allowed"]


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
