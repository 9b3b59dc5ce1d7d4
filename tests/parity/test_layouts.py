"""Folders as sentence-transformers saves them, read as it reads them: layers after the pooling, sparse encoders, lower-casing, shards."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine
from quadrate.runtime.packing import Reading
from quadrate.runtime.store import StoredModel
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1.options_pb2 import RIGHT
from tests import vocabularies
from tests.parity import catalogue, folders, test_bert

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.parity

LIMIT = 40
TEXTS = [*vocabularies.SENTENCES, "Hello WORLD", "x", "the cat sat on the mat " * 20]
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def source(path: Path, kind: str = "AutoModel", *, keeps_case: bool = False, **saving: Any) -> Path:
    """Save a random BERT of transformers with its tokenizer."""
    test_bert.make("bert", kind, vocab_size=catalogue.ROWS).save_pretrained(path, **saving)
    parsed = json.loads(letter_tokenizer())
    if keeps_case:
        parsed["normalizer"] = None
    catalogue.save_tokenizer(path, Tokenizer.from_str(json.dumps(parsed)), **SPECIAL)
    return path


def answers(path: Path, output: str, **said: Any) -> NDArray[np.float32]:
    """Return what our model gives for TEXTS, cut on the right."""
    card = ModelCard(**{"served_name": "tests/model", "task": "embed", "source": FolderSource(type="folder", path=path), **said})
    model = engine.load("model", card, StoredModel(path, "test"), EmbedSettings(threads=1))
    read = model.tokenizer
    ids = [read.fit(found, RIGHT, param="text")[0] for found in read.encode(TEXTS)]
    return np.stack(model.session.run([Reading.of(read.read(found)) for found in ids], [output], wide=False)[output])


def compare(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Assert that all rows are the same."""
    for row, want in zip(found, expected, strict=True):
        folders.assert_same(row, want, float(np.abs(expected).max()))


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "GELU", "ReLU", "SiLU"])
@pytest.mark.parametrize("is_safe", [True, False])
def test_layers_after_the_pooling_are_those_of_sentence_transformers(tmp_path: Path, activation: str, *, is_safe: bool) -> None:
    """Linear layers with each activation, a layer norm, and their weights in either format."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    body = modules.Transformer(str(source(tmp_path / "source")), max_seq_length=LIMIT)
    dense = modules.Dense(64, 24, activation_function=getattr(torch.nn, activation)())
    more = [modules.LayerNorm(24), modules.Dense(24, 16, bias=False, activation_function=torch.nn.Identity()), modules.Normalize()]
    made = SentenceTransformer(modules=[body, modules.Pooling(64, pooling_mode="mean"), dense, *more], device="cpu")
    for module in list(made)[2:]:
        folders.shake(module)
    made.save(str(tmp_path / "saved"), safe_serialization=is_safe)
    assert (tmp_path / "saved" / "2_Dense" / "pytorch_model.bin").is_file() != is_safe
    compare(answers(tmp_path / "saved", "unit"), made.encode(TEXTS))


def test_a_sparse_encoder_is_read_as_it_is_saved(tmp_path: Path) -> None:
    """SPLADE as sentence-transformers saves it, with its pooling's two ways to saturate."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    for activation in ("relu", "log1p_relu"):
        path = tmp_path / activation
        body = MLMTransformer(str(source(path / "source", "AutoModelForMaskedLM")), max_seq_length=LIMIT)
        made = SparseEncoder(modules=[body, SpladePooling("max", activation_function=activation)], device="cpu")
        made.save(str(path / "saved"))
        expected = np.asarray(made.encode(TEXTS, convert_to_sparse_tensor=False))
        compare(answers(path / "saved", "vocabulary"), expected)


def test_lower_casing_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    """A tokenizer that keeps case lowers it where the module asks for it; without it the two texts differ."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    body = modules.Transformer(str(source(tmp_path / "source", keeps_case=True)), max_seq_length=LIMIT)
    SentenceTransformer(modules=[body, modules.Pooling(64, pooling_mode="cls")]).save(str(tmp_path / "saved"))
    cased = answers(tmp_path / "saved", "pooled")
    (tmp_path / "saved" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT, "do_lower_case": True}))
    made = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    lowered = answers(tmp_path / "saved", "pooled")
    compare(lowered, made.encode(TEXTS))
    assert np.abs(lowered - cased).max() > 0.1


@pytest.mark.parametrize("is_sharded", [True, False])
def test_checkpoints_in_parts_and_of_torch_are_read(tmp_path: Path, *, is_sharded: bool) -> None:
    """Shards with their index, and torch's checkpoints, give what the whole safetensors file gives."""
    import torch
    from transformers import AutoModel

    path = source(tmp_path / "model", **({"max_shard_size": "30KB"} if is_sharded else {}))
    said = {"pooling": "mean", "normalize": True, "max_tokens": LIMIT}
    if is_sharded:
        assert len(list(path.glob("model-*.safetensors"))) > 1
    found = answers(path, "unit", **said)
    state = AutoModel.from_pretrained(path).state_dict()
    for file in path.glob("model*.safetensors*"):
        file.unlink()
    names = sorted(state)
    for place, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: state[name] for name in part}, path / f"pytorch_model-0000{place}-of-00002.bin")
    index = {name: f"pytorch_model-0000{place % 2 + 1}-of-00002.bin" for place, name in enumerate(names)}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert np.array_equal(answers(path, "unit", **said), found)


def test_roles_and_default_prompts_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """encode_query, encode_document and encode take the prompts that our roles take."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    from quadrate.runtime import folder

    body = modules.Transformer(str(source(tmp_path / "source")), max_seq_length=LIMIT)
    prompts = {"query": "query : ", "document": "passage : ", "other": "cat : "}
    made = SentenceTransformer(modules=[body, modules.Pooling(64, pooling_mode="mean")], prompts=prompts, default_prompt_name="other")
    made.save(str(tmp_path / "saved"))
    card = ModelCard(served_name="x", task="embed", source=FolderSource(type="folder", path=tmp_path / "saved"))
    facts = folder.read(tmp_path / "saved", card)
    for prompt, expected in (
        (facts.prompts["query"], made.encode_query(TEXTS)),
        (facts.prompts["document"], made.encode_document(TEXTS)),
        (facts.prompts[facts.default_prompt_name], made.encode(TEXTS)),
    ):
        assert np.array_equal(made.encode([prompt + text for text in TEXTS], prompt=""), expected)
