"""Texts of thousands of tokens against transformers: alone and in company, on both engines, in memory that grows with their length."""

# ruff: noqa: PLC0415 - torch, transformers and OpenVINO are imported by the tests that need them, so that collecting needs none

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.runtime.graphs.rope import Rope
from quadrate.v1 import embed_pb2, options_pb2
from tests import vocabularies
from tests.parity import catalogue, folders, test_catalogue

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
LONGEST = {
    "bge-m3": lambda path: catalogue.bge_m3(path, max_position_embeddings=8_194),
    "gte-modernbert-base": lambda path: catalogue.gte_modernbert(path, max_position_embeddings=8_192),
    "qwen3-embedding-0.6b": lambda path: catalogue.qwen3_embedding(path, max_position_embeddings=32_768, num_hidden_layers=2),
}
"""The models of the catalogue that read the most, tiny but as long as their cards say."""
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


@pytest.mark.parametrize(("base", "width"), [(1e6, 128), (160_000.0, 64), (10_000.0, 64), (1_000.0, 64)])
def test_positions_turn_by_the_angles_of_transformers(base: float, width: int) -> None:
    """The angle from one position to the next is transformers' own, to the last place: thousands of positions multiply an error."""
    import transformers
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = transformers.Qwen3Config(head_dim=width, rope_parameters={"rope_type": "default", "rope_theta": base})
    angles = Rope(width=width, base=base, positions=2).angles()[1]
    np.testing.assert_allclose(angles, Qwen3RotaryEmbedding(config).inv_freq.numpy(), rtol=9e-8)


@pytest.mark.parametrize("alias", LONGEST)
async def test_the_longest_text_of_a_card_comes_through_a_worker(tmp_path: Path, alias: str) -> None:
    """A text over the limit is cut to as many tokens as the card says, and has transformers' vector of them; short ones come beside it."""
    path, limit = tmp_path / "model", test_catalogue.CARDS[alias].max_tokens
    recipe = LONGEST[alias](path)
    assert limit is not None
    assert recipe.pool is not None
    texts = [vocabularies.SENTENCES[4], " ".join(vocabularies.SENTENCES) * (limit // 100)]
    async with test_catalogue.worker(path, alias, limit) as made:
        inputs = [options_pb2.Input(text=text) for text in texts]
        answer = await made.embed.Embed(embed_pb2.EmbedRequest(model=alias, inputs=inputs, truncation=options_pb2.RIGHT))
    for text, found in zip(texts, answer.embeddings, strict=True):
        ids = catalogue.ids_of(path, text, limit=limit)
        expected = recipe.pool(recipe.states(ids))
        folders.assert_same(np.array(found.values, np.float32), expected, float(np.abs(expected).max()))
        assert found.usage.tokens == len(ids)
    assert answer.embeddings[1].usage.tokens == limit
    assert answer.embeddings[1].usage.tokens_cut > 0
