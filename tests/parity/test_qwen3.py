"""Qwen3 against transformers and sentence-transformers: last token, shared keys, rotary positions, scores, padding on either side."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine
from quadrate.runtime.packing import Reading
from quadrate.runtime.store import StoredModel
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1.options_pb2 import RIGHT
from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 96,
    "vocab_size": folders.VOCABULARY,
    "max_position_embeddings": folders.MAX_TOKENS,
    "rope_theta": 1e6,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "shared keys": {},
    "a key for each head": {"num_key_value_heads": 4},
    "one key for all": {"num_key_value_heads": 1, "head_dim": 16},
    "one layer": {"num_hidden_layers": 1},
    "stretched positions": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
}
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
WORDS = ("hello", "world", "the", "cat", "dog", "sat", "mat", "xyz", "a1", "query :")


def make(kind: str = "Qwen3Model", **changes: Any) -> Any:
    """Return a random Qwen3 of transformers."""
    import transformers

    config = transformers.Qwen3Config(**{**SIZES, "pad_token_id": 0, **changes})
    return folders.shake(getattr(transformers, kind)(config))


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_pooled_vectors_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Last, mean and first token's vectors are those of transformers' last hidden states, for texts of every length."""
    model = make(**changes)
    path = folders.save(model, tmp_path)
    texts, states = folders.readings(), folders.states(model)
    assert folders.is_far_from_uniform(model, texts[-1])
    poolings = {"last": lambda text: states(text)[-1], "mean": lambda text: states(text).mean(0), "cls": lambda text: states(text)[0]}
    for pooling, expected in poolings.items():
        folders.compare(folders.session(path, pooling=pooling), "pooled", texts, expected)


@pytest.mark.parametrize(
    "said",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 5e5, "rope_scaling": None},
        {},
        {"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7e4}},
    ],
)
def test_older_files_say_positions_in_keys_of_their_own(tmp_path: Path, said: dict[str, Any]) -> None:
    """What a config.json of older files says of positions, alone or beside what newer ones say, is read as transformers reads it."""
    import transformers

    path = folders.save(make(), tmp_path)
    config = json.loads((path / "config.json").read_text("utf-8"))
    del config["rope_parameters"]
    (path / "config.json").write_text(json.dumps(config | said), "utf-8")
    states = folders.states(transformers.Qwen3Model.from_pretrained(path).eval())
    folders.compare(folders.session(path, pooling="last"), "pooled", folders.readings((1, 40, 512)), lambda text: states(text)[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_with_a_language_model_serves_its_states(tmp_path: Path, *, tied: bool) -> None:
    """The states inside a Qwen3ForCausalLM, whose names have a prefix, are the same, whether it shares its word table or not."""
    model = make("Qwen3ForCausalLM", tie_word_embeddings=tied)
    states = folders.states(model.model)
    opened = folders.session(folders.save(model, tmp_path), pooling="last")
    folders.compare(opened, "pooled", folders.readings((1, 40, 512)), lambda text: states(text)[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_the_score_of_two_answers_is_that_of_the_language_model(tmp_path: Path, *, tied: bool) -> None:
    """The score is the difference of transformers' logits of the two words at the last token."""
    model = make("Qwen3ForCausalLM", tie_word_embeddings=tied)
    ask = folders.logits(model)
    opened = folders.session(folders.save(model, tmp_path), head="yes_no", answers=(17, 5))
    folders.compare(opened, "score", folders.readings(), lambda text: (ask(text)[-1, 17] - ask(text)[-1, 5])[None])


@pytest.mark.parametrize("labels", [1, 3])
def test_classes_are_those_of_transformers(tmp_path: Path, labels: int) -> None:
    """The scores of a Qwen3ForSequenceClassification are transformers' logits."""
    model = make("Qwen3ForSequenceClassification", num_labels=labels)
    opened = folders.session(folders.save(model, tmp_path), head="classification", labels=labels)
    folders.compare(opened, "score", folders.readings(), folders.logits(model))


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_are_those_of_sentence_transformers_whichever_side_is_padded(tmp_path: Path, side: str, pooling: str) -> None:
    """From a saved folder through our tokenizer and engine: texts of one word to beyond the limit, in one batch."""
    path = _saved(tmp_path, side, pooling)
    texts = [" ".join(np.random.default_rng(words).choice(WORDS, words)) for words in (1, 2, 7, 30, 90)]
    expected = _expected(path, texts)
    card = ModelCard(served_name="tests/model", task="embed", source=FolderSource(type="folder", path=path))
    model = engine.load("tiny", card, StoredModel(path, "test"), EmbedSettings(threads=1))
    rows = [model.tokenizer.read(model.tokenizer.fit(ids, RIGHT, param="text")[0]) for ids in model.tokenizer.encode(texts)]
    found = np.stack(model.session.run([Reading.of(row) for row in rows], ["unit"], wide=False)["unit"])
    folders.assert_same(found, expected, float(np.abs(expected).max()))


def _saved(path: Path, side: str, pooling: str) -> Path:
    """Save a random Qwen3 as sentence-transformers saves its models, with a tokenizer that pads on one side."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    source = path / "source"
    folders.save(make(), source)
    (source / "tokenizer.json").write_bytes(_padding(side))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), padding_side=side, **SPECIAL)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(source)
    body = modules.Transformer(str(source), max_seq_length=50)
    SentenceTransformer(modules=[body, modules.Pooling(64, pooling_mode=pooling), modules.Normalize()]).save(str(path / "saved"))
    return path / "saved"


def _padding(side: str) -> bytes:
    """Return a tokenizer.json that pads and cuts by itself, as many on the hub do."""
    tokenizer = json.loads(letter_tokenizer())
    to = {"strategy": "BatchLongest", "direction": side.capitalize(), "pad_to_multiple_of": None}
    tokenizer["padding"] = {**to, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    tokenizer["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    return json.dumps(tokenizer).encode()


def _expected(path: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    vectors: np.ndarray = SentenceTransformer(str(path), device="cpu").encode(texts, batch_size=5)
    return vectors
