"""What a model folder says, and what of it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file

from quadrate.config.models import FolderSource, ModelCard
from quadrate.errors import ConfigError
from quadrate.runtime import folder
from quadrate.runtime.weights import Weights
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def card(path: Path, **changes: Any) -> ModelCard:
    """Return a card of a model in a folder."""
    return ModelCard(served_name="tiny", task="embed", source=FolderSource(type="folder", path=path), **changes)


def edit(path: Path, name: str, **changes: Any) -> None:
    """Change what a JSON file says."""
    file = path / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_facts_come_from_the_files(tmp_path: Path) -> None:
    """Facts come from the files."""
    path = write_tiny_model(tmp_path, prompts={"query": "query: "})
    facts = folder.read(path, card(path))
    assert (facts.pooling, facts.normalize, facts.max_tokens, facts.default_prompt_name) == ("mean", True, 48, "")
    assert facts.prompts == {"query": "query: "}
    assert (facts.encoder.width, facts.encoder.layers, facts.encoder.heads) == (32, 2, 4)


def test_the_card_overrules_the_files(tmp_path: Path) -> None:
    """The card overrules the files."""
    path = write_tiny_model(tmp_path, prompts={"query": "query: "})
    said = card(path, pooling="cls", normalize=False, max_tokens=20, prompts={"document": "passage: "}, default_prompt_name="document")
    facts = folder.read(path, said)
    assert (facts.pooling, facts.normalize, facts.max_tokens, facts.default_prompt_name) == ("cls", False, 20, "document")
    assert facts.prompts == {"document": "passage: "}


@pytest.mark.parametrize(
    ("said", "tokenizer", "expected"),
    [(None, 40, 40), (None, 10**30, 64), (500, 40, 64), (30, 40, 30)],
)
def test_the_limit_on_tokens_is_where_sentence_transformers_finds_it(
    tmp_path: Path, said: int | None, tokenizer: int, expected: int
) -> None:
    """The limit on tokens is where sentence transformers finds it."""
    path = write_tiny_model(tmp_path)
    edit(path, "sentence_bert_config.json", max_seq_length=said)
    edit(path, "tokenizer_config.json", model_max_length=tokenizer)
    assert folder.read(path, card(path)).max_tokens == expected


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"model_type": "deberta"}, "'deberta'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("config.json", {"hidden_act": "mish"}, "mish"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"num_attention_heads": 5}, "5 heads"),
        ("config.json", {"hidden_size": "wide"}, "not an integer"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts is no object"),
        ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "prompts is no object"),
        ("sentence_bert_config.json", {"do_lower_case": True}, None),
    ],
)
def test_what_cannot_be_served_right_is_refused_by_name(tmp_path: Path, name: str, changes: dict[str, Any], said: str | None) -> None:
    """What cannot be served right is refused by name."""
    path = write_tiny_model(tmp_path, prompts={"query": "query: "})
    edit(path, name, **changes)
    if said is None:  # the tokenizer lowers by itself
        assert folder.read(path, card(path)).max_tokens == 48
        return
    with pytest.raises(ConfigError, match=said):
        folder.read(path, card(path))


def test_another_module_than_the_three_is_refused(tmp_path: Path) -> None:
    """Another module than the three is refused."""
    path = write_tiny_model(tmp_path)
    modules = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*modules, {"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigError, match="Dense"):
        folder.read(path, card(path))


def test_without_modules_the_card_must_say_the_pooling(tmp_path: Path) -> None:
    """Without modules the card must say the pooling."""
    path = write_tiny_model(tmp_path)
    (path / "modules.json").unlink()
    with pytest.raises(ConfigError, match="set `pooling` and `normalize`"):
        folder.read(path, card(path))
    assert folder.read(path, card(path, pooling="cls", normalize=True)).pooling == "cls"


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """A missing or damaged file is named."""
    path = write_tiny_model(tmp_path)
    (path / name).write_text("{")
    with pytest.raises(ConfigError, match=name):
        folder.read(path, card(path))
    (path / name).unlink()
    with pytest.raises(ConfigError, match=name):
        folder.read(path, card(path))


def test_a_limit_above_the_positions_is_refused(tmp_path: Path) -> None:
    """A limit above the positions is refused."""
    path = write_tiny_model(tmp_path)
    with pytest.raises(ConfigError, match="positions for 64"):
        folder.read(path, card(path, max_tokens=65))


def test_weights_are_views_of_the_file_and_know_their_place(tmp_path: Path) -> None:
    """Weights are views of the file and know their place."""
    written = tiny_weights(tiny_config())
    weights = Weights(write_tiny_model(tmp_path, weights=written))
    name = "encoder.layer.1.output.dense.weight"
    read = weights.get(name, 32, 64)
    assert np.array_equal(read, written[name])
    place = weights.place(read)
    assert place is not None
    assert (tmp_path / place.file).read_bytes()[place.offset : place.offset + read.nbytes] == written[name].tobytes()
    assert weights.place(read + 1) is None
    assert weights.place(read.T) is None
    weights.release()
    assert np.array_equal(read, written[name])


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    """Half precision is widened exactly."""
    half = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float16)
    brain = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)
    upper = (brain.view(np.uint32) >> 16).astype(np.uint16)
    specs = {
        "half": TensorSpec(dtype="float16", shape=[3, 5], data_ptr=half.ctypes.data, data_len=half.nbytes),
        "brain": TensorSpec(dtype="bfloat16", shape=[3, 5], data_ptr=upper.ctypes.data, data_len=upper.nbytes),
    }
    serialize_file(specs, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    assert np.array_equal(weights.get("half", 3, 5), half.astype(np.float32))
    assert np.array_equal(weights.get("brain", 3, 5), (upper.astype(np.uint32) << 16).view(np.float32))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    """Shards are read as one."""
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = Weights(tmp_path)
    assert sorted(weights) == ["a", "b"]
    assert weights.get("b", 3).tolist() == [0, 0, 0]
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"two\.safetensors"):
        Weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')
    with pytest.raises(ConfigError, match="names 5"):
        Weights(tmp_path)


def header(data: bytes, **changes: object) -> bytes:
    """Return a safetensors file that describes the first layer norm's scale otherwise."""
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    tensors["embeddings.LayerNorm.weight"] |= changes
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:4],
        lambda data: b"",
        lambda data: (10**9).to_bytes(8, "little") + data[8:],
        lambda data: data[:-1],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: (10**5).to_bytes(8, "little") + b"[" * 10**5,
        lambda data: header(data, shape=[-32, -1]),
        lambda data: header(data, shape=[32.0]),
        lambda data: header(data, data_offsets=[-128, 0]),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    """A damaged file is refused."""
    file = write_tiny_model(tmp_path) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        Weights(tmp_path)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    """A tensor that is missing or of another shape is named."""
    weights = Weights(write_tiny_model(tmp_path))
    with pytest.raises(ConfigError, match="no tensor 'nothing'"):
        weights.get("nothing", 1)
    with pytest.raises(ConfigError, match=r"has the shape \[32\]"):
        weights.get("embeddings.LayerNorm.weight", 31)
    with pytest.raises(ConfigError, match="no model"):
        Weights(tmp_path / "1_Pooling")
