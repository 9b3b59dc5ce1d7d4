"""What a model's answers depend on besides the request, as one short text: two models of one fingerprint give the same answers.

The card and the folder's files count as they are understood together, so that a card which only repeats what the files say changes
nothing. What runs the model, and in which precision, is told beside it: machines that share a model differ in both.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quadrate.config.models import ModelCard
    from quadrate.runtime.folder import Facts

DIGITS = 16
"""Of SHA-256, in hex."""


def fingerprint(card: ModelCard, facts: Facts, revision: str) -> str:
    """Return the fingerprint of a model that is served so.

    Args:
        card: What the catalogue says. Of it count the scoring, the truncation, and the hashes of files that it names.
        facts: What card and folder say together, before what this machine takes from it.
        revision: Of the files.
    """
    said = {"revision": revision, "files": card.files, "task": card.task, "scoring": card.scoring, "truncation": card.truncation}
    parts = sorted({**said, **dict(_told(facts))}.items())
    return hashlib.sha256(repr([(name, _ordered(value)) for name, value in parts]).encode()).hexdigest()[:DIGITS]


def _told(facts: Facts) -> Iterator[tuple[str, object]]:
    """Give what the facts say beyond their defaults: one that is new in some version changes no model that does without it."""
    for field in fields(facts):
        value = getattr(facts, field.name)
        if field.name != "path" and value != field.default:
            yield field.name, value


def _ordered(value: object) -> object:
    return sorted(value.items()) if isinstance(value, dict) else value
