"""The session for measuring everything else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Form
    from quadrate.runtime.packing import Reading

NULL = "NullExecutionProvider"


class NullSession:
    """Answers with values that depend on the text's length alone, at once or after a sleep. For measuring what is around a model.

    A run that sleeps takes no processor, so that a machine can be offered many times what its model would do. Never for serving.

    Args:
        forms: The graph's outputs.
        run_seconds: What each run takes, be it small or large.
        token_seconds: What each of its tokens takes besides.
    """

    provider = NULL

    def __init__(self, forms: Mapping[str, Form], *, run_seconds: float = 0.0, token_seconds: float = 0.0) -> None:
        self._forms = forms
        self._run_seconds = run_seconds
        self._token_seconds = token_seconds

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        if self._run_seconds or self._token_seconds:
            time.sleep(self._run_seconds + self._token_seconds * sum(map(len, readings)))
        return {name: [self._rows(name, len(reading)) for reading in readings] for name in outputs}

    def close(self) -> None:
        """See Session."""

    def _rows(self, output: str, tokens: int) -> NDArray[np.float32]:
        form = self._forms[output]
        shape = (form.width,) if form.per == "text" else (tokens, form.width)
        return np.full(shape, form.width**-0.5, np.float32)
