"""Texts of thousands of tokens against transformers: alone and in company, on both engines, in memory that grows with their length."""

# ruff: noqa: PLC0415 - torch, transformers and OpenVINO are imported by the tests that need them, so that collecting needs none

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity

LENGTHS = (2_100, 9, 1_025, 3_000, 200)
POSITIONS = 3_072
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": folders.VOCABULARY,
    "max_position_embeddings": POSITIONS,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "XLM-R": ("XLMRoberta", {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "type_vocab_size": 1}),
    "ModernBERT": ("ModernBert", {"num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2}),
    "Qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 24, "rope_theta": 1e6, "pad_token_id": 0}),
}
POOLINGS = {"XLM-R": "cls", "ModernBERT": "cls", "Qwen3": "last"}


def make(family: str) -> Any:
    """Return a random model of transformers."""
    import transformers

    name, changes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    return folders.shake(getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("pooling", ["its own", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_have_the_vectors_of_transformers(tmp_path: Path, family: str, pooling: str) -> None:
    """Two, three thousand tokens, alone and beside short texts, pooled as the family does and over all tokens."""
    model = make(family)
    states = folders.states(model)
    pick = {"cls": lambda rows: rows[0], "last": lambda rows: rows[-1], "mean": lambda rows: rows.mean(0)}
    pooling = POOLINGS[family] if pooling == "its own" else pooling
    opened = folders.session(folders.save(model, tmp_path), pooling=pooling)
    folders.compare(opened, "pooled", folders.readings(LENGTHS), lambda text: pick[pooling](states(text)))


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_have_the_same_vectors_through_openvino(tmp_path: Path, family: str) -> None:
    """The graph that is written for OpenVINO gives, in bfloat16, what the one for ONNX Runtime gives in float32."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from quadrate.runtime.sessions.openvino import OpenVinoSession

    path, texts = folders.save(make(family), tmp_path), folders.readings(LENGTHS)
    exact = folders.session(path).run(texts, ["unit"], wide=False)["unit"]
    opened = OpenVinoSession(folders.graph(path, "openvino"), threads=1)
    found = opened.run(texts, ["unit"], wide=False)["unit"]
    assert min(float(np.dot(one, other)) for one, other in zip(exact, found, strict=True)) > 0.999
    opened.close()
