"""What every session is, and what the classes of precision promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.config.worker import Precision
    from quadrate.runtime.graphs import Form
    from quadrate.runtime.packing import Layout, Reading

LOWEST_COSINE: Mapping[Precision, float] = {"exact": 0.999999, "fast": 0.999, "small": 0.99}
"""How close each text's vector lies to the one that float32 arithmetic gives."""

AGREEMENT: Mapping[Precision, float] = {"exact": 1e-4, "fast": 5e-2, "small": 5e-2}
"""Batch invariance: the most by which a value may differ from that of the same text in another company, as a part of the largest value of
its row. Sums in another order differ by 1e-6 in float32; where that moves a number over the edge of a coarser format's step, by a step."""


class Session(Protocol):
    """What the scheduler runs batches on. `run` may be called from several threads at once."""

    provider: str

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """Return for each output one array for each text, in order. Any exception means that the session is broken.

        Args:
            readings: What is read.
            outputs: Which of the graph's.
            wide: Whether it has all cores, since nothing else runs.
            is_long: Whether short texts go before it. Where the provider can, it holds nothing that they would wait for.
        """

    def close(self) -> None:
        """Let go of everything; called when no run is under way, and none follows."""


def rows(result: NDArray[np.float32], form: Form, layout: Layout) -> Sequence[NDArray[np.float32]]:
    """Return an output as one array for each text: `[width]`, or `[tokens, width]` where it has a row for each token."""
    return list(result) if form.per == "text" else np.split(result[: layout.tokens], layout.bounds[1:-1])
