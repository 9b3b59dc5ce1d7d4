"""A batch as the graph takes it: one row of tokens, and where each text lies in it.

T is the tokens of all texts together, B the texts, S the tokens of the longest; N is the blocks that texts are cut into where tokens see
their neighbours alone, C the tokens of a block. FEEDS is the table of everything that a graph may ask
for; a graph declares what it needs by name, and only that is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

BLOCK = 64
"""Tokens of a block: what a few neighbours of each token see is computed block by block."""
ONE_BLOCK = 192
"""Up to so many tokens a text is a single block."""
MASKED = -1e9
"""Added to the logits of places that hold no token: their weight becomes zero exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One text, or a pair of them, as the model reads it.

    Attributes:
        ids: Token ids, special tokens included: int32[n].
        second: Where the second text of a pair begins; n where there is none.
    """

    ids: NDArray[np.int32]
    second: int

    @classmethod
    def of(cls, ids: NDArray[np.int32]) -> Reading:
        """Return the reading of a single text."""
        return cls(ids, len(ids))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Steps:
    """What lengths are rounded up to, for engines that make kernels for each shape: fewer shapes come, and kernels are there already.

    Attributes:
        tokens: Of the tokens of a batch together.
        places: Of the places of the padded view.
    """

    tokens: int = 1
    places: int = 1


class Layout:
    """Where the texts of a batch lie. What is derived is computed when it is first asked for."""

    def __init__(self, readings: Sequence[Reading], steps: Steps = Steps()) -> None:
        self.steps = steps
        self.readings = readings
        self.lengths = np.fromiter(map(len, readings), np.int64, len(readings))
        self.bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.lengths)))
        """Where each text begins, and where the last one ends: B + 1 offsets into the tokens."""
        self.texts = len(readings)
        self.tokens = int(self.bounds[-1])
        self.longest = _up(int(self.lengths.max()), steps.places)

    @cached_property
    def column(self) -> NDArray[np.int64]:
        """The places of the longest text, 0 to S - 1."""
        return np.arange(self.longest, dtype=np.int64)

    @cached_property
    def is_real(self) -> NDArray[np.bool_]:
        """Whether a place of the padded view holds a token: [B, S]."""
        return self.column < self.lengths[:, None]

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The text that each token belongs to: [T]."""
        return np.repeat(np.arange(self.texts), self.lengths)

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """Each token's place in its text, from 0: [T]."""
        return np.arange(self.tokens) - self.bounds[self.owner]

    @cached_property
    def block(self) -> int:
        """The places of a block, C: those of the longest text where all are short."""
        return self.longest if self.longest <= ONE_BLOCK else BLOCK

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        """How many blocks each text has: [B]; N together."""
        return -(-self.lengths // self.block)

    @cached_property
    def block_owner(self) -> NDArray[np.int64]:
        """The text that each block belongs to: [N]."""
        return np.repeat(np.arange(self.texts), self.blocks)

    @cached_property
    def first_block(self) -> NDArray[np.int64]:
        """The first block of each text: [B]."""
        first: NDArray[np.int64] = np.cumsum(self.blocks) - self.blocks
        return first


@dataclass(frozen=True, slots=True)
class Feed:
    """One input of a graph.

    Attributes:
        dtype: Its numbers.
        shape: Its lengths; letters are those of this module's docstring, small.
        make: Makes it.
    """

    dtype: type[np.generic]
    shape: tuple[int | str, ...]
    make: Callable[[Layout], NDArray[Any]]


def _ids(layout: Layout) -> NDArray[np.int32]:
    return np.concatenate([reading.ids for reading in layout.readings])


def _positions(layout: Layout) -> NDArray[np.int32]:
    return layout.position.astype(np.int32)


def _owner(layout: Layout) -> NDArray[np.int32]:
    return layout.owner.astype(np.int32)


def _types(layout: Layout) -> NDArray[np.int32]:
    second = np.fromiter((reading.second for reading in layout.readings), np.int64, layout.texts)
    return (layout.position >= second[layout.owner]).astype(np.int32)


def _places(layout: Layout) -> NDArray[np.int32]:
    # A place beyond the text repeats its last token: masked in attention, and no other text's in a maximum.
    places: NDArray[np.int64] = np.minimum(layout.bounds[:-1, None] + layout.column, layout.bounds[1:, None] - 1)
    return places.astype(np.int32)


def _column(layout: Layout) -> NDArray[np.int32]:
    return layout.column.astype(np.int32)


def _tokens(layout: Layout) -> NDArray[np.int32]:
    return np.flatnonzero(layout.is_real).astype(np.int32)


def _bias(layout: Layout) -> NDArray[np.float32]:
    return np.where(layout.is_real, np.float32(0), np.float32(MASKED))[:, None, None, :]


def _block_column(layout: Layout) -> NDArray[np.int32]:
    return np.arange(layout.block, dtype=np.int32)


def _block_positions(layout: Layout) -> NDArray[np.int32]:
    number = np.arange(len(layout.block_owner)) - layout.first_block[layout.block_owner]
    positions: NDArray[np.int64] = number * layout.block
    return positions.astype(np.int32)


def _block_bounds(layout: Layout) -> NDArray[np.int32]:
    return layout.bounds[:-1][layout.block_owner].astype(np.int32)


def _block_lengths(layout: Layout) -> NDArray[np.int32]:
    return layout.lengths[layout.block_owner].astype(np.int32)


def _block_tokens(layout: Layout) -> NDArray[np.int32]:
    places: NDArray[np.int64] = layout.first_block[layout.owner] * layout.block + layout.position
    return places.astype(np.int32)


def _shares(layout: Layout) -> NDArray[np.float32]:
    shares = np.zeros((layout.texts, layout.tokens), np.float32)
    shares[layout.owner, np.arange(layout.tokens)] = (1.0 / layout.lengths)[layout.owner]
    return shares


def _first(layout: Layout) -> NDArray[np.int32]:
    return layout.bounds[:-1].astype(np.int32)


def _last(layout: Layout) -> NDArray[np.int32]:
    return (layout.bounds[1:] - 1).astype(np.int32)


FEEDS: Mapping[str, Feed] = {
    "ids": Feed(np.int32, ("t",), _ids),
    "positions": Feed(np.int32, ("t",), _positions),  # each token's place in its text, from 0
    "owner": Feed(np.int32, ("t",), _owner),  # the text that each token belongs to
    "types": Feed(np.int32, ("t",), _types),  # 1 for the tokens of a pair's second text
    "places": Feed(np.int32, ("b", "s"), _places),  # the token at each place of the padded view; the text's last beyond it
    "tokens": Feed(np.int32, ("t",), _tokens),  # the place of each token in the padded view
    "column": Feed(np.int32, ("s",), _column),  # the places of the padded view, 0 to S - 1
    "bias": Feed(np.float32, ("b", 1, 1, "s"), _bias),  # 0 where a place holds a token, MASKED where not
    "block_column": Feed(np.int32, ("c",), _block_column),  # the places of a block, 0 to C - 1
    "block_positions": Feed(np.int32, ("n",), _block_positions),  # the place in its text that each block begins at
    "block_bounds": Feed(np.int32, ("n",), _block_bounds),  # the first token of each block's text
    "block_lengths": Feed(np.int32, ("n",), _block_lengths),  # the tokens of each block's text
    "block_tokens": Feed(np.int32, ("t",), _block_tokens),  # the place of each token in the row of all blocks
    "shares": Feed(np.float32, ("b", "t"), _shares),  # each token's weight in its text's mean
    "first": Feed(np.int32, ("b",), _first),  # the first token of each text
    "last": Feed(np.int32, ("b",), _last),  # the last one
}
"""Everything that a graph may take."""


def pack(readings: Sequence[Reading], names: Iterable[str], steps: Steps = Steps()) -> tuple[dict[str, NDArray[Any]], Layout]:
    """Lay texts one after another and return the feeds of these names. Cost: B * S + B * T small numbers at most, never S * S.

    Tokens that rounding adds are zeros, belong to no text and are seen by none; a result's rows for them are to be left out.
    """
    layout = Layout(readings, steps)
    return {name: _rounded(FEEDS[name], layout) for name in names}, layout


def _rounded(feed: Feed, layout: Layout) -> NDArray[Any]:
    array = feed.make(layout)
    more = _up(layout.tokens, layout.steps.tokens) - layout.tokens
    if not more or "t" not in feed.shape:
        return array
    return np.pad(array, [(0, more if axis == "t" else 0) for axis in feed.shape])


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
