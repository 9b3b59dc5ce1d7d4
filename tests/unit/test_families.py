"""What each family of encoders reads from a config.json, and what of it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.encoders.modernbert import ModernBert
from quadrate.runtime.encoders.nomic_bert import NomicBert
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.runtime.encoders import Encoder

MODERNBERT = {
    "model_type": "modernbert",
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "vocab_size": 50368,
    "max_position_embeddings": 8192,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
}
"""As the files of gte-modernbert-base say it."""

NOMIC = {
    "model_type": "nomic_bert",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 8192,
    "vocab_size": 30528,
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "max_trained_positions": 2048,
}
"""As the first files of nomic-embed-text-v1.5 say it."""


def read(path: Path, config: dict[str, Any]) -> Encoder:
    """Read a config.json."""
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return FAMILIES[config["model_type"]].read(JsonFile(path / "config.json"))


def test_modernberts_first_layer_and_every_third_see_all(tmp_path: Path) -> None:
    """ModernBERT's first layer and every third after it see all of a text, the others 64 tokens each way; each kind has its rotations."""
    found = read(tmp_path, MODERNBERT)
    assert isinstance(found, ModernBert)
    assert [layer for layer, kind in enumerate(found.kinds) if kind == "full_attention"] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert found.window == 64
    assert [rope.base for rope in found.ropes] == [160000.0, 10000.0]
    assert found.has_bias == {"decoder"}


def test_modernberts_newer_config_lists_its_layers(tmp_path: Path) -> None:
    """A newer config.json lists the layers and has the bases in rope_parameters."""
    kinds = ["full_attention", "sliding_attention"]
    ropes = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}}
    found = read(tmp_path, {**MODERNBERT, "num_hidden_layers": 2, "layer_types": kinds, "rope_parameters": ropes})
    assert isinstance(found, ModernBert)
    assert found.kinds == tuple(kinds)
    assert [(rope.base, rope.stretch) for rope in found.ropes] == [(5.0, 1.0), (7.0, 2.0)]


def test_nomics_first_files_say_how_far_it_reads(tmp_path: Path) -> None:
    """NomicBERT reads as many tokens as its first files have positions, or as it was trained with if angles are to be scaled beyond."""
    found = read(tmp_path, NOMIC)
    assert isinstance(found, NomicBert)
    assert (found.max_positions, found.rope.base, found.rope.width, found.activation) == (8192, 1000.0, 64, "silu")
    assert read(tmp_path, {**NOMIC, "rotary_scaling_factor": 2}).max_positions == 2048


def test_gated_families_count_three_products(tmp_path: Path) -> None:
    """Families with a gate count three products of the feed-forward layers, not two."""
    assert read(tmp_path, MODERNBERT).operations_per_token == 2 * 22 * (4 * 768**2 + 3 * 768 * 1152)
    assert read(tmp_path, NOMIC).operations_per_token == 2 * 12 * (4 * 768**2 + 3 * 768 * 3072)


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (MODERNBERT, {"layer_types": ["full_attention"]}, "layer_types"),
        (MODERNBERT, {"layer_types": ["chunked_attention"] * 22}, "chunked_attention"),
        (MODERNBERT, {"hidden_activation": "mish"}, "mish"),
        (MODERNBERT, {"classifier_pooling": "max"}, "max"),
        (MODERNBERT, {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        (MODERNBERT, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
        (MODERNBERT, {"rope_parameters": []}, None),
        (MODERNBERT, {"rope_parameters": [1]}, "no JSON object"),
        (MODERNBERT, {"rope_parameters": {"full_attention": [1]}}, "no JSON object"),
        (MODERNBERT, {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}}, "partial_rotary_factor"),
        (MODERNBERT, {"num_attention_heads": 7}, "7 heads"),
        (NOMIC, {"qkv_proj_bias": True}, "qkv_proj_bias"),
        (NOMIC, {"mlp_fc1_bias": None}, "mlp_fc1_bias"),
        (NOMIC, {"activation_function": "gelu"}, "gelu"),
        (NOMIC, {"num_experts": 8}, "num_experts"),
        (NOMIC, {"prenorm": True}, "prenorm"),
        (NOMIC, {"rotary_emb_fraction": 0.0}, "rotary_emb_fraction"),
        (NOMIC, {"n_head": 0}, "0 heads"),
    ],
)
def test_what_cannot_be_served_right_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], said: str | None
) -> None:
    """What cannot be served right is refused by name."""
    if said is None:  # empty means plain
        assert read(tmp_path, config | changes)
        return
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, config | changes)
