"""How much is repeated of what somebody wrote."""

from __future__ import annotations

MOST_CHARACTERS = 40


def shown(text: str, most_characters: int = MOST_CHARACTERS) -> str:
    """Return a text as a message may repeat it: whole, or so many characters of it and an ellipsis."""
    return text if len(text) <= most_characters else f"{text[:most_characters]}…"
