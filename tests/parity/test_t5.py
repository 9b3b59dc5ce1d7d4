"""T5's encoder against transformers: plain and gated, wide heads, buckets of distances of several sizes."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.runtime.encoders.t5 import T5
from quadrate.runtime.jsonfile import JsonFile
from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity

SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4, "vocab_size": folders.VOCABULARY}
CONFIGS: dict[str, dict[str, Any]] = {
    "T5": {"feed_forward_proj": "relu"},
    "T5 1.1, FRIDA": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "heads wider together than a state": {"feed_forward_proj": "gated-silu", "d_kv": 24},
    "few buckets, near": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    "many buckets, far": {"relative_attention_num_buckets": 64, "relative_attention_max_distance": 300},
    "one layer": {"num_layers": 1},
}


def make(**changes: Any) -> Any:
    """Return a random T5 encoder of transformers."""
    import transformers

    return shake(transformers.T5EncoderModel(transformers.T5Config(**{**SIZES, **changes})))


def shake(model: Any) -> Any:
    """Give a model random weights; queries are small, as T5's own start is, because its logits are not divided by anything."""
    import torch

    with torch.no_grad():
        for name, parameter in folders.shake(model).named_parameters():
            if name.endswith(".q.weight"):
                parameter.mul_(model.config.d_kv**-0.5)
    return model


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_pooled_vectors_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """First, mean and last token's vectors are those of transformers' last hidden states, for texts of every length."""
    model = make(**changes)
    path = folders.save(model, tmp_path)
    texts, states = folders.readings(), folders.states(model)
    assert folders.is_far_from_uniform(model, texts[-1])
    poolings = {"cls": lambda text: states(text)[0], "mean": lambda text: states(text).mean(0), "last": lambda text: states(text)[-1]}
    for pooling, expected in poolings.items():
        folders.compare(folders.session(path, pooling=pooling), "pooled", texts, expected)


def test_an_mt5_is_served_as_transformers_has_it(tmp_path: Path) -> None:
    """mT5's encoder is T5 1.1's under another name."""
    import transformers

    config = transformers.MT5Config(**SIZES, feed_forward_proj="gated-gelu")
    model = shake(transformers.MT5EncoderModel(config))
    states = folders.states(model)
    folders.compare(folders.session(folders.save(model, tmp_path)), "pooled", folders.readings(), lambda text: states(text).mean(0))


def test_a_checkpoint_with_a_decoder_serves_its_encoder(tmp_path: Path) -> None:
    """The encoder inside a whole T5 gives the same states."""
    import transformers

    model = shake(transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES)))
    states = folders.states(model.get_encoder())
    opened = folders.session(folders.save(model, tmp_path))
    folders.compare(opened, "pooled", folders.readings((1, 40, 300)), lambda text: states(text).mean(0))


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 20), (64, 300), (32, 127), (20, 50)])
def test_distances_fall_into_the_buckets_of_transformers(tmp_path: Path, buckets: int, reach: int) -> None:
    """Each distance, near and far, both ways, at the borders of buckets too."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    model = make(relative_attention_num_buckets=buckets, relative_attention_max_distance=reach)
    encoder = T5.read(JsonFile(folders.save(model, tmp_path) / "config.json"))
    distances = np.arange(-2000, 2001)
    expected = T5Attention._relative_position_bucket(torch.tensor(distances), num_buckets=buckets, max_distance=reach)
    np.testing.assert_array_equal(encoder.bucket(distances), expected.numpy())
    np.testing.assert_array_equal(encoder.bucket(np.array([reach, -reach])), encoder.bucket(np.array([10**6, -(10**6)])))
