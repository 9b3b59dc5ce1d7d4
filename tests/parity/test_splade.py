"""SPLADE against transformers' masked language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.runtime.graphs import heads
from tests.parity import folders, test_bert, test_modernbert

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.parity


def weights_of(model: Any, *, saturations: int = 1) -> Callable[..., np.ndarray]:
    """Return a function that gives SPLADE's weights of a text: its logits' positive parts, saturated, the greatest of all tokens."""
    logits = folders.logits(model)

    def ask(text: Any) -> np.ndarray:
        found = np.maximum(logits(text), 0)
        for _ in range(saturations):
            found = np.log1p(found)
        return found.max(0)

    return ask


@pytest.mark.parametrize("family", test_bert.CONFIGS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_are_those_of_the_masked_language_model(tmp_path: Path, family: str, *, is_tied: bool) -> None:
    """Weights are the greatest saturated logits of transformers' masked language model, its last product tied to the word table or not."""
    model = test_bert.make(family, "AutoModelForMaskedLM", tie_word_embeddings=is_tied)
    opened = folders.session(folders.save(model, tmp_path), head="splade")
    folders.compare(opened, "vocabulary", folders.readings(), weights_of(model))


@pytest.mark.parametrize("has_bias", [True, False])
def test_weights_are_those_of_modernbert(tmp_path: Path, *, has_bias: bool) -> None:
    """Weights are those of ModernBERT's masked language model, with a bias of its last product or without."""
    model = test_modernbert.make("ModernBertForMaskedLM", decoder_bias=has_bias)
    opened = folders.session(folders.save(model, tmp_path), head="splade")
    folders.compare(opened, "vocabulary", folders.readings(), weights_of(model))


def test_a_large_vocabulary_is_looked_at_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of many parts, the last one smaller, gives the same weights as one look, and two saturations are two."""
    monkeypatch.setattr(heads, "VOCABULARY_ROWS", 32)
    model = test_bert.make("bert", "AutoModelForMaskedLM")
    opened = folders.session(folders.save(model, tmp_path), head="splade", saturations=2)
    folders.compare(opened, "vocabulary", folders.readings(), weights_of(model, saturations=2))
