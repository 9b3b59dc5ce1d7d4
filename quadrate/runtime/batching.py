"""Which of the waiting texts run together next: a pure function of their lengths and their order.

A run costs its tokens, a little for its start, and what attention pays for places that hold no token: it sees each text as long as the
longest of the run. Everything here is counted in tokens' worth, so that one plan serves every model and machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 64
"""How many waiting texts are looked at, at least: more where a run may have more."""
MOST_SKIPS = 16
"""How often runs may pass a text over for others behind it; then nobody behind it runs before it does."""
WIDEST_VIEW = 1.3
"""How many places attention's padded view may have for each token, wherever more texts wait than one run holds.

With fewer waiting, one run with more padding costs less than two: such runs are as wide as wastes least.
"""


class Waiting(Protocol):
    """What the plan needs to know of a text."""

    @property
    def tokens(self) -> int:
        """Its length."""

    @property
    def skips(self) -> int:
        """How many runs have passed it over."""

    @property
    def lane(self) -> object:
        """Its model's: only texts of one lane run together."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a run may be."""

    tokens: int
    """The most tokens; a longer text runs alone."""
    texts: int
    """The most texts."""

    @property
    def window(self) -> int:
        """How many waiting texts a plan looks at."""
        return max(WINDOW, self.texts)

    def texts_of(self, tokens: int) -> int:
        """Return how many texts of one length a run holds."""
        return max(1, min(self.texts, self.tokens // max(1, tokens)))


@dataclass(frozen=True, slots=True)
class Waste:
    """What a run costs beside its tokens, in tokens' worth. The defaults were measured on MiniLM (384 wide) with ONNX Runtime 1.31."""

    start: float = 11.0
    """Of each run."""
    place: float = 0.02
    """Of each place in the padded view, for moving it."""
    pair: float = 0.001
    """Of each pair of places of a text in the padded view, in the attention."""

    @classmethod
    def of(cls, width: int) -> Waste:
        """Return the waste of a model of this width: attention's share falls as its matrix products grow."""
        return cls(place=0.02 * 384 / width, pair=0.001 * 384 / width)

    def each(self, tokens: int, empty: int, longest: int) -> float:
        """Return what is wasted for each token of a run with so many empty places in its view."""
        return (self.start + empty * (self.place + self.pair * longest)) / tokens


DEFAULT_WASTE = Waste()


def plan(waiting: Sequence[Waiting], limits: Limits, *, runners: int = 1, waste: Waste = DEFAULT_WASTE) -> list[int]:
    """Return the places in `waiting` that run next, ascending; never empty unless `waiting` is.

    The first in order leads. With it go those of its lane that are next to it in length, so many that the least is wasted for each
    token. Nobody goes with it who stands behind a text that has been passed over MOST_SKIPS times. If several runners are free, each
    takes its share, so that they end together.
    Cost: sorting `waiting`, and a small step for each text of the run.

    Args:
        waiting: Texts in fair order, at most `limits.window` of them.
        limits: How large the run may be. A text of more tokens runs alone.
        runners: Runners that are free, this one among them.
        waste: What a run costs beside its tokens.
    """
    if len(waiting) <= 1:
        return list(range(len(waiting)))
    places = _company(waiting)
    lengths = [waiting[place].tokens for place in places]
    order = sorted(range(len(places)), key=lengths.__getitem__)
    total = sum(lengths)
    first, last = _stretch(
        [lengths[number] for number in order],
        order.index(0),
        Limits(min(limits.tokens, math.ceil(total / runners)), limits.texts),
        waste,
        widest=WIDEST_VIEW if total > limits.tokens else math.inf,
    )
    return sorted(places[number] for number in order[first : last + 1])


def passed_over(chosen: Sequence[int]) -> list[int]:
    """Return the places that a plan leaves out although it takes one behind them."""
    taken = set(chosen)
    return [place for place in range(chosen[-1]) if place not in taken]


def _company(waiting: Sequence[Waiting]) -> list[int]:
    """Return the places that may run with the first one, itself included."""
    lane = waiting[0].lane
    found = []
    for place, text in enumerate(waiting):
        if text.lane is lane:
            found.append(place)
        if text.skips >= MOST_SKIPS:
            break
    return found


def _stretch(lengths: Sequence[int], leader: int, limits: Limits, waste: Waste, *, widest: float) -> tuple[int, int]:
    """Return the stretch of ascending `lengths` around the leader that wastes little for each token: its first and last place.

    It grows on the side where that wastes less, and the best of all it has been is taken: within 0.2 % of the best there is.
    """
    first = last = leader
    tokens = lengths[leader]
    best, found = waste.each(tokens, 0, tokens), (first, last)
    while last - first + 1 < limits.texts:
        grown = []
        if last + 1 < len(lengths):
            grown.append((first, last + 1, tokens + lengths[last + 1]))
        if first:
            grown.append((first - 1, last, tokens + lengths[first - 1]))
        sides = [
            (waste.each(total, (end - start + 1) * lengths[end] - total, lengths[end]), start, end, total)
            for start, end, total in grown
            if total <= limits.tokens
        ]
        if not sides:
            break
        wasted, first, last, tokens = min(sides)
        if wasted < best and (last - first + 1) * lengths[last] < widest * tokens:
            best, found = wasted, (first, last)
    return found
