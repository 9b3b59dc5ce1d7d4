"""ModernBERT against transformers: near and far layers, poolings, classification, up to the maximum length."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": folders.VOCABULARY,
    "max_position_embeddings": folders.MAX_TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "local_attention": 32,
    "num_labels": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biased": {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True, "hidden_activation": "silu"},
    "near last": {"num_hidden_layers": 3, "local_attention": 8},
}


def make(kind: str, **changes: Any) -> Any:
    """Return a random model: `ModernBertModel`, `ModernBertForSequenceClassification`."""
    import transformers

    return folders.shake(getattr(transformers, kind)(transformers.ModernBertConfig(**{**SIZES, **changes})))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pooled_vectors_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    """Mean and first token's vectors are those of transformers' last hidden states, for texts of every length."""
    model = make("ModernBertModel", **VARIANTS[variant])
    path = folders.save(model, tmp_path)
    texts, states = folders.readings(), folders.states(model)
    assert folders.is_far_from_uniform(model, texts[-1])
    folders.compare(folders.session(path, pooling="mean"), "pooled", texts, lambda text: states(text).mean(0))
    folders.compare(folders.session(path, pooling="cls"), "pooled", texts, lambda text: states(text)[0])


@pytest.mark.parametrize("reach", [1, 2, 33, 128, 200, 2000])
def test_texts_that_end_at_the_edges_of_blocks_are_seen_alike(tmp_path: Path, reach: int) -> None:
    """Windows of any width, odd ones and those wider than texts, in texts that end before, at and behind a block's end."""
    model = make("ModernBertModel", local_attention=reach)
    states = folders.states(model)
    edges = [block + beside for block in (64, 128, 192, 256) for beside in (-1, 0, 1)]
    opened = folders.session(folders.save(model, tmp_path))
    folders.compare(opened, "pooled", folders.readings((1, *edges, 320, 511, 512)), lambda text: states(text).mean(0))


def test_token_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    """Token vectors are transformers' last hidden states, brought to length one."""
    model = make("ModernBertModel")
    states = folders.states(model)
    opened = folders.session(folders.save(model, tmp_path), head="token_vectors")
    folders.compare(opened, "multi_vector", folders.readings(), lambda text: folders.unit(states(text)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_pairs_are_those_of_transformers(tmp_path: Path, variant: str, pooling: str) -> None:
    """Scores are transformers' logits, whichever way the head pools."""
    model = make("ModernBertForSequenceClassification", classifier_pooling=pooling, **VARIANTS[variant])
    opened = folders.session(folders.save(model, tmp_path), head="classification")
    folders.compare(opened, "score", folders.readings(pairs=True), folders.logits(model))


def test_configs_of_the_first_files_are_read_alike(tmp_path: Path) -> None:
    """A config.json of the hub's first files, which names the layers by one number and two bases, gives the same vectors."""
    model = make("ModernBertModel")
    states = folders.states(model)
    path = folders.save(model, tmp_path)
    said = json.loads((path / "config.json").read_text("utf-8"))
    assert said.pop("layer_types") == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    del said["rope_parameters"]
    said |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (path / "config.json").write_text(json.dumps(said), "utf-8")
    folders.compare(folders.session(path), "pooled", folders.readings((1, 40, 512)), lambda text: states(text).mean(0))
