"""A batch as the graph takes it: one row of tokens, and where each text lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.runtime.graphs.bert import MASKED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pack:
    """The graph's inputs for a batch of B texts of T tokens together, the longest of S.

    Attributes:
        feeds: Every input that a graph may have, by name.
        bounds: Where each text begins, and where the last one ends: B + 1 offsets into the tokens.
    """

    feeds: Mapping[str, NDArray[Any]]
    bounds: NDArray[np.int64]


def pack(readings: Sequence[NDArray[np.int32]]) -> Pack:
    """Lay texts, given as token ids with special tokens, one after another. Cost: B * S + B * T small numbers."""
    lengths = np.fromiter(map(len, readings), np.int64, len(readings))
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    longest, total = int(lengths.max()), int(bounds[-1])
    column = np.arange(longest, dtype=np.int64)
    real = column < lengths[:, None]  # [B, S]
    owner = np.repeat(np.arange(len(readings)), lengths)  # [T]: the text that each token belongs to
    shares = np.zeros((len(readings), total), np.float32)
    shares[owner, np.arange(total)] = (1.0 / lengths)[owner]
    feeds: dict[str, NDArray[Any]] = {
        "ids": np.concatenate(readings),
        "positions": (np.arange(total) - bounds[owner]).astype(np.int32),
        "places": np.where(real, bounds[:-1, None] + column, 0).astype(np.int32),
        "tokens": np.flatnonzero(real).astype(np.int32),
        "bias": np.where(real, np.float32(0), np.float32(MASKED))[:, None, None, :],
        "shares": shares,
        "first": bounds[:-1].astype(np.int32),
    }
    return Pack(feeds, bounds)
