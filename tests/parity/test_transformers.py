"""Our graph against transformers and sentence-transformers, on random models of many shapes and on the real weights."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.config import yamlfile
from quadrate.config.models import FolderSource, ModelCard, ModelsFile
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine, store
from quadrate.runtime.packing import Reading
from quadrate.runtime.store import StoredModel
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1.options_pb2 import LEFT, RIGHT
from tests.conftest import ROOT
from tests.parity import folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quadrate.runtime.engine import Model

pytestmark = pytest.mark.parity

SETTINGS = EmbedSettings(threads=2)
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def card(path: Path, **changes: Any) -> ModelCard:
    """Return the card of a model in a folder."""
    return ModelCard(served_name="tests/model", task="embed", source=FolderSource(type="folder", path=path), **changes)


def random_model(path: Path, *, pooling: str, **changes: Any) -> Path:
    """Save a random BERT of transformers as sentence-transformers saves its models."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(7)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 80}
    bert = transformers.BertModel(transformers.BertConfig(**{**sizes, "vocab_size": 99, "initializer_range": 0.4, **changes}))
    source = path / "source"
    bert.save_pretrained(source)
    (source / "tokenizer.json").write_bytes(letter_tokenizer())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), **SPECIAL)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(source)
    body = modules.Transformer(str(source), max_seq_length=50)
    SentenceTransformer(modules=[body, modules.Pooling(64, pooling_mode=pooling), modules.Normalize()]).save(str(path / "saved"))
    return path / "saved"


def run(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Embed texts, cut on the right, seven a run."""
    readings = [Reading.of(model.tokenizer.read(model.tokenizer.fit(ids, RIGHT, param="text")[0])) for ids in model.tokenizer.encode(texts)]
    return np.stack(
        [row for start in range(0, len(texts), 7) for row in model.session.run(readings[start : start + 7], ["unit"], wide=False)["unit"]]
    )


def some_texts(count: int) -> list[str]:
    """Return random texts of the letter tokenizer's words, from one word to beyond the limit."""
    random = np.random.default_rng(3)
    words = ["hello", "world", "the", "cat", "dog", "sat", "mat", "xyz", "a1", "query :"]
    return [" ".join(random.choice(words, length)) for length in np.linspace(1, 70, count).astype(int)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type_vocab_size": 1},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
        {"hidden_act": "relu", "num_hidden_layers": 1},
        {"num_attention_heads": 8, "intermediate_size": 256},
    ],
)
def test_random_models_equal_sentence_transformers(tmp_path: Path, pooling: str, changes: dict[str, Any]) -> None:
    """Random models of many shapes have sentence-transformers' vectors for texts of all lengths and beyond the limit."""
    from sentence_transformers import SentenceTransformer

    path = random_model(tmp_path, pooling=pooling, **changes)
    texts = some_texts(40)
    expected = SentenceTransformer(str(path), device="cpu").encode(texts, batch_size=8)
    model = engine.load("model", card(path), StoredModel(path, "test"), SETTINGS)
    assert (model.facts.max_tokens, model.facts.pooling, model.facts.normalize) == (50, pooling, True)
    found = run(model, texts)
    folders.assert_same(found, expected, float(np.abs(expected).max()))


def test_token_states_equal_transformers(tmp_path: Path) -> None:
    """Token states for late interaction are transformers' last hidden states, brought to length one."""
    import torch
    import transformers

    path = random_model(tmp_path, pooling="mean")
    reference = transformers.BertModel.from_pretrained(path).eval()
    late = ModelCard(served_name="x", task="rerank", scoring="late_interaction", source=FolderSource(type="folder", path=path))
    model = engine.load("model", late, StoredModel(path, "test"), SETTINGS)
    readings = [Reading.of(model.tokenizer.read(ids[:48])) for ids in model.tokenizer.encode(some_texts(9))]
    for reading, states in zip(readings, model.session.run(readings, ["multi_vector"], wide=False)["multi_vector"], strict=True):
        with torch.inference_mode():
            expected = reference(torch.from_numpy(reading.ids[None].astype(np.int64))).last_hidden_state[0].numpy()
        folders.assert_same(states, expected / np.linalg.norm(expected, axis=1, keepdims=True), 1.0)


@pytest.fixture(scope="module")
def minilm() -> Model:
    """Return the quick start's model."""
    found = yamlfile.load(ROOT / "configs" / "models.yaml", ModelsFile).models["minilm"]
    return engine.load("minilm", found, store.ensure("minilm", found), SETTINGS)


def test_the_golden_vectors_are_what_sentence_transformers_makes(minilm: Model) -> None:
    """The committed golden vectors are what sentence-transformers makes of the committed texts now."""
    from sentence_transformers import SentenceTransformer

    texts = json.loads((ROOT / "tests" / "golden" / "minilm.json").read_text("utf-8"))["texts"]
    golden = np.load(ROOT / "tests" / "golden" / "minilm.npz")["vectors"]
    made = SentenceTransformer(str(minilm.facts.path), device="cpu").encode(texts[::10], batch_size=4)
    assert (made * golden[::10]).sum(axis=1).min() > 0.999999


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_cuts_where_transformers_cuts(minilm: Model, side: str) -> None:
    """LEFT and RIGHT keep the very ids that transformers' tokenizer keeps with that truncation side."""
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(minilm.facts.path, truncation_side=side)
    texts = json.loads((ROOT / "tests" / "golden" / "minilm.json").read_text("utf-8"))["texts"]
    for text, ids in zip(texts, minilm.tokenizer.encode(texts), strict=True):
        kept, _ = minilm.tokenizer.fit(ids, LEFT if side == "left" else RIGHT, param="text")
        expected = reference(text, truncation=True, max_length=256)["input_ids"]
        assert minilm.tokenizer.read(kept).tolist() == expected
