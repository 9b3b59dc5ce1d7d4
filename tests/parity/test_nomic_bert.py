"""NomicBERT against transformers, from files as transformers writes them and as the hub's first ones are."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": folders.VOCABULARY,
    "max_position_embeddings": folders.MAX_TOKENS,
    "num_labels": 1,
}
FIRST_CONFIG = {
    "model_type": "nomic_bert",
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 96,
    "n_positions": folders.MAX_TOKENS,
    "vocab_size": folders.VOCABULARY,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-12,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
}
"""As the first files of nomic-embed-text-v1.5 say it."""


def make(kind: str) -> Any:
    """Return a random model: `NomicBertModel`, `NomicBertForSequenceClassification`."""
    import transformers

    return folders.shake(getattr(transformers, kind)(transformers.NomicBertConfig(**SIZES)))


def test_pooled_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    """Mean and first token's vectors are those of transformers' last hidden states, for texts of every length."""
    model = make("NomicBertModel")
    path = folders.save(model, tmp_path)
    texts, states = folders.readings(), folders.states(model)
    assert folders.is_far_from_uniform(model, texts[-1])
    folders.compare(folders.session(path, pooling="mean"), "pooled", texts, lambda text: states(text).mean(0))
    folders.compare(folders.session(path, pooling="cls"), "pooled", texts, lambda text: states(text)[0])


def test_token_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    """Token vectors are transformers' last hidden states, brought to length one."""
    model = make("NomicBertModel")
    states = folders.states(model)
    opened = folders.session(folders.save(model, tmp_path), head="token_vectors")
    folders.compare(opened, "multi_vector", folders.readings(), lambda text: folders.unit(states(text)))


def test_scores_of_pairs_are_those_of_transformers(tmp_path: Path) -> None:
    """Scores of pairs are transformers' logits; the second text has the second token type."""
    model = make("NomicBertForSequenceClassification")
    opened = folders.session(folders.save(model, tmp_path), head="classification")
    folders.compare(opened, "score", folders.readings(pairs=True), folders.logits(model, token_type_ids=folders.types))


@pytest.mark.parametrize("named_by", ["transformers", "the first files"])
def test_both_ways_of_naming_tensors_are_read(tmp_path: Path, named_by: str) -> None:
    """The tensors may have the names that transformers works with, or those of the hub's first files, with their config.json."""
    from safetensors.numpy import save_file

    model = make("NomicBertModel")
    states = folders.states(model)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = folders.save(model, tmp_path)
    if named_by == "the first files":
        tensors = first_names(tensors)
        (path / "config.json").write_text(json.dumps(FIRST_CONFIG), "utf-8")
    save_file(tensors, path / "model.safetensors")
    folders.compare(folders.session(path), "pooled", folders.readings((1, 40, 512)), lambda text: states(text).mean(0))


def first_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors by the names of the hub's first files."""
    renamed = {
        "embeddings.LayerNorm": "emb_ln",
        "self_attn.o_proj": "attn.out_proj",
        "mlp.up_proj": "mlp.fc11",
        "mlp.gate_proj": "mlp.fc12",
        "mlp.down_proj": "mlp.fc2",
        "post_attention_layernorm": "norm1",
        "post_mlp_layernorm": "norm2",
    }
    found = {}
    for given, tensor in tensors.items():
        name = f"encoder.{given}" if given.startswith("layers.") else given
        for new, first in renamed.items():
            name = name.replace(new, first)
        if "_proj.weight" not in name or "out_proj" in name:
            found[name] = tensor
    for layer in range(SIZES["num_hidden_layers"]):
        parts = [tensors[f"layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        found[f"encoder.layers.{layer}.attn.Wqkv.weight"] = np.concatenate(parts)
    return found
