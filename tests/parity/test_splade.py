"""SPLADE against transformers' masked language models, and from text to vector against sentence-transformers' SparseEncoder."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.runtime import engine, sparse
from quadrate.runtime.graphs import heads
from quadrate.runtime.packing import Reading
from quadrate.runtime.store import StoredModel
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1.options_pb2 import RIGHT
from tests.parity import folders, test_bert, test_modernbert, test_transformers

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


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_vectors_are_those_of_sparse_encoder(tmp_path: Path, family: str, activation: str) -> None:
    """From a folder that SparseEncoder saved come its vectors, for texts of all lengths and beyond the limit, whatever it saturates."""
    from sentence_transformers import SparseEncoder

    path = saved(tmp_path, family, activation)
    texts = test_transformers.some_texts(20)
    expected = SparseEncoder(str(path), device="cpu").encode(texts, batch_size=8, convert_to_sparse_tensor=False).numpy()
    model = engine.load("model", test_transformers.card(path), StoredModel(path, "test"), test_transformers.SETTINGS)
    tokenizer = model.tokenizer
    readings = [Reading.of(tokenizer.read(tokenizer.fit(ids, RIGHT, param="text")[0])) for ids in tokenizer.encode(texts)]
    for row, wanted in zip(model.session.run(readings, ["vocabulary"], wide=False)["vocabulary"], expected, strict=True):
        folders.assert_same(row, wanted, float(expected.max()))
        assert sparse.of_vocabulary(row).ids.tolist() == np.flatnonzero(wanted).tolist()


def saved(path: Path, family: str, activation: str) -> Path:
    """Save a random model as SparseEncoder saves its own, with a limit of 50 tokens."""
    import torch
    import transformers
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import modules

    model = test_bert.make(family, "AutoModelForMaskedLM")
    with torch.no_grad():  # logits of some units, as trained models have them: a logarithm makes the errors of large ones larger
        model.get_input_embeddings().weight.mul_(0.25)
    source = folders.save(model, path / "source")
    (source / "tokenizer.json").write_bytes(letter_tokenizer())
    special = test_transformers.SPECIAL
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), **special).save_pretrained(source)
    body = modules.MLMTransformer(str(source), max_seq_length=50)
    SparseEncoder(modules=[body, modules.SpladePooling(activation_function=activation)]).save(str(path / "saved"))
    return path / "saved"
