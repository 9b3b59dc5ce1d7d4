"""What a caller asks its requests to go before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import InvalidArgument
from quadrate.server.call import PRIORITY_HEADER
from quadrate.shown import shown
from quadrate.standing import BY_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.standing import Priority


def asked_priority(metadata: Mapping[str, str], usual: Priority) -> Priority:
    """Return the priority that a request's headers ask for, by `x-quadrate-priority`, or the usual one. Raises InvalidArgument."""
    word = metadata.get(PRIORITY_HEADER)
    if not word:
        return usual
    priority = BY_WORD.get(word.strip().lower())
    if priority is None:
        raise InvalidArgument(
            f"{PRIORITY_HEADER} must be {' or '.join(BY_WORD)}, not {shown(word)!r}; leave it out for {usual.word}.", param=PRIORITY_HEADER
        )
    return priority
