"""Where token ids are cut that are too many. Gateway and workers cut alike, texts to embed and documents to rerank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.v1.options_pb2 import LEFT, RIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut(ids: Sequence[int], room: int, truncation: int, *, head: int = 0) -> Sequence[int] | None:
    """Return `room` of the ids; None if `truncation` is not one that cuts.

    Args:
        ids: More of them than `room`.
        room: How many stay.
        truncation: RIGHT keeps the beginning; LEFT keeps the end, and the head if something fits beside it.
        head: How many of the first ids are a prompt or a template, and none of the caller's text.
    """
    if truncation == RIGHT:
        return ids[:room]
    if truncation != LEFT:
        return None
    excess = len(ids) - room
    return [*ids[:head], *ids[head + excess :]] if 0 < head < room else ids[excess:]


def cut_text(text: str, spans: Sequence[tuple[int, int]], room: int, truncation: int, *, head: int = 0) -> str:
    """Return the part of a text that `cut` keeps of its ids: up to the end of the last that stays, or from the first.

    Args:
        text: What the ids are of.
        spans: Where each of them begins and ends in it, in characters; more of them than `room`.
        room: As in `cut`.
        truncation: LEFT or RIGHT.
        head: As in `cut`.
    """
    if truncation == RIGHT:
        return text[: spans[room - 1][1]]
    kept = head if 0 < head < room else 0
    excess = len(spans) - room
    return (text[: spans[kept][0]] if kept else "") + text[spans[kept + excess][0] :]


def in_common(ids: Sequence[int], head_ids: Sequence[int]) -> int:
    """Return how many ids both begin with. Where a prompt and its text meet, a token of both may stand: it is the text's."""
    return next(
        (place for place, (one, other) in enumerate(zip(ids, head_ids, strict=False)) if one != other), min(len(ids), len(head_ids))
    )
