"""The session for measuring everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Form
    from quadrate.runtime.packing import Reading

NULL = "NullExecutionProvider"


class NullSession:
    """Answers at once with values that depend on the text's length alone. For measuring what is around a model, never for serving.

    Args:
        forms: The graph's outputs.
    """

    provider = NULL

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = forms

    def run(
        self,
        readings: Sequence[Reading],
        outputs: Sequence[str],
        *,
        wide: bool,  # noqa: ARG002 - as every session
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        return {name: [self._rows(name, len(reading)) for reading in readings] for name in outputs}

    def close(self) -> None:
        """See Session."""

    def _rows(self, output: str, tokens: int) -> NDArray[np.float32]:
        form = self._forms[output]
        shape = (form.width,) if form.per == "text" else (tokens, form.width)
        return np.full(shape, form.width**-0.5, np.float32)
