"""Heads against their definitions over BERT written out in numpy, and families against one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.folder import Facts
from quadrate.runtime.graphs import build, heads
from quadrate.runtime.jsonfile import JsonFile
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import CPU, OnnxSession
from quadrate.runtime.weights import Weights
from quadrate.testing.model_folder import WIDTH, tiny_config, tiny_tensors, tiny_weights, write_tiny_model
from tests.unit.test_graph import ACTIVATIONS, dense, norm, readings, reference, unit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

VOCABULARY = tiny_config()["vocab_size"]
SCORING = {
    "bert.pooler.dense.weight": (WIDTH, WIDTH),
    "bert.pooler.dense.bias": (WIDTH,),
    "classifier.weight": (2, WIDTH),
    "classifier.bias": (2,),
}
PREDICTING = {
    "cls.predictions.transform.dense.weight": (WIDTH, WIDTH),
    "cls.predictions.transform.dense.bias": (WIDTH,),
    "cls.predictions.transform.LayerNorm.weight": (WIDTH,),
    "cls.predictions.transform.LayerNorm.bias": (WIDTH,),
    "cls.predictions.bias": (VOCABULARY,),
}
THREE = {
    "sparse_linear.weight": (1, WIDTH),
    "sparse_linear.bias": (1,),
    "colbert_linear.weight": (24, WIDTH),
    "colbert_linear.bias": (24,),
}


def opened(path: Path, weights: Tensors, *, config: Mapping[str, Any] | None = None, **facts: Any) -> OnnxSession:
    """Write a model and open it with these facts."""
    write_tiny_model(path, weights=weights, **(config or {}))
    file = JsonFile(path / "config.json")
    family = str(file.data["model_type"])
    encoder = FAMILIES[family].read(file)
    plain: dict[str, Any] = {"pooling": "cls", "normalize": True, "head": "pooled", "prompts": {}, "default_prompt_name": ""}
    made = Facts(path=path, architecture=family, encoder=encoder, max_tokens=48, **{**plain, **facts})
    return OnnxSession(build(made, Weights(path)), CPU, threads=1)


def doubled(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    """Return tensors in double precision."""
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def test_a_classifiers_scores_are_those_of_the_definition(tmp_path: Path) -> None:
    """A classifier's scores are the first token's state, through the pooler and tanh, times the classifier, nothing after it."""
    plain, head = tiny_weights(tiny_config()), tiny_tensors(SCORING)
    texts = readings()
    found = opened(tmp_path, plain | head, head="classification", labels=2).run(texts, ["score"], wide=False)["score"]
    for text, score in zip(texts, found, strict=True):
        first = reference(text.ids, plain, tiny_config())[0]
        expected = dense(np.tanh(dense(first, doubled(head), "bert.pooler.dense")), doubled(head), "classifier")
        np.testing.assert_allclose(score, expected, atol=2e-5)


def test_the_second_text_of_a_pair_has_the_second_token_type(tmp_path: Path) -> None:
    """The second text has the second token type: as if what tells the types apart were added to the positions from there on."""
    plain, head = tiny_weights(tiny_config()), tiny_tensors(SCORING)
    second, types = 9, plain["embeddings.token_type_embeddings.weight"]
    positions = plain["embeddings.position_embeddings.weight"].copy()
    positions[second:] += types[1] - types[0]
    ids = readings((30,))[0].ids
    paired = opened(tmp_path / "paired", plain | head, head="classification", labels=2)
    shifted = opened(
        tmp_path / "shifted", plain | head | {"embeddings.position_embeddings.weight": positions}, head="classification", labels=2
    )
    (found,) = paired.run([Reading(ids, second)], ["score"], wide=False)["score"]
    (expected,) = shifted.run([Reading.of(ids)], ["score"], wide=False)["score"]
    (single,) = paired.run([Reading.of(ids)], ["score"], wide=False)["score"]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - single).max() > 1e-2


def test_types_are_not_read_where_the_tokenizer_tells_none(tmp_path: Path) -> None:
    """Where a model's tokenizer gives both texts of a pair one type, a graph does not ask where the second begins."""
    weights = tiny_weights(tiny_config()) | tiny_tensors(SCORING)
    made = opened(tmp_path, weights, head="classification", labels=2, has_pair_types=False)
    ids = readings((30,))[0].ids
    one, two = made.run([Reading(ids, 9), Reading.of(ids)], ["score"], wide=False)["score"]
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("saturations", [1, 2])
def test_splades_weights_are_those_of_the_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturations: int) -> None:
    """SPLADE's weights are the greatest of all tokens' saturated positive logits, whatever stands beside a text in a batch."""
    monkeypatch.setattr(heads, "VOCABULARY_ROWS", 40)
    plain, head = tiny_weights(tiny_config()), tiny_tensors(PREDICTING)
    texts = readings()
    made = opened(tmp_path, plain | head, head="splade", saturations=saturations)
    found = made.run(texts, ["vocabulary"], wide=False)["vocabulary"]
    for text, weights in zip(texts, found, strict=True):
        states = reference(text.ids, plain, tiny_config())
        rows = ACTIVATIONS["gelu"](dense(states, doubled(head), "cls.predictions.transform.dense"))
        rows = norm(rows, doubled(head), "cls.predictions.transform.LayerNorm")
        logits = rows @ plain["embeddings.word_embeddings.weight"].T + head["cls.predictions.bias"]
        expected = np.maximum(logits, 0)
        for _ in range(saturations):
            expected = np.log1p(expected)
        np.testing.assert_allclose(weights, expected.max(0), atol=2e-5)


def test_bge_m3_gives_three_answers_in_one_run(tmp_path: Path) -> None:
    """A vector of the first token, a weight for each token, a vector for each token: from one run."""
    plain, head = tiny_weights(tiny_config()), tiny_tensors(THREE)
    texts = readings()
    raw = np.concatenate([dense(reference(text.ids, plain, tiny_config()), doubled(head), "sparse_linear") for text in texts])
    head["sparse_linear.bias"] -= np.median(raw).astype(np.float32)  # every other token has no weight
    found = opened(tmp_path, plain | head, head="bge_m3").run(texts, ["unit", "sparse_weights", "multi_vector"], wide=False)
    for place, text in enumerate(texts):
        states = reference(text.ids, plain, tiny_config())
        np.testing.assert_allclose(found["unit"][place], unit(states[0]), atol=2e-5)
        lexical = np.maximum(dense(states, doubled(head), "sparse_linear"), 0)
        np.testing.assert_allclose(found["sparse_weights"][place], lexical, atol=2e-5)
        np.testing.assert_allclose(found["multi_vector"][place], unit(dense(states, doubled(head), "colbert_linear")), atol=2e-5)
    assert 0.4 < np.mean(np.concatenate(found["sparse_weights"]) > 0) < 0.6


def test_roberta_is_bert_whose_positions_begin_after_the_padding_tokens(tmp_path: Path) -> None:
    """RoBERTa is BERT whose positions begin after the padding token's, so it reads two tokens fewer than its table has rows."""
    plain = tiny_weights(tiny_config(type_vocab_size=1))
    table = plain["embeddings.position_embeddings.weight"]
    shifted = plain | {"embeddings.position_embeddings.weight": np.concatenate((np.full((2, WIDTH), 9, np.float32), table))}
    config = {"type_vocab_size": 1, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 66}
    texts = [Reading.of(np.where(text.ids == 1, 2, text.ids)) for text in readings()]
    one = opened(tmp_path / "bert", plain, config={"type_vocab_size": 1}).run(texts, ["unit"], wide=False)["unit"]
    two = opened(tmp_path / "roberta", shifted, config=config).run(texts, ["unit"], wide=False)["unit"]
    np.testing.assert_allclose(np.stack(two), np.stack(one), atol=1e-6)
    assert FAMILIES["roberta"].read(JsonFile(tmp_path / "roberta" / "config.json")).max_positions == 64


def test_a_head_that_a_family_does_not_have_is_refused(tmp_path: Path) -> None:
    """A masked language model's head on T5 is refused by name."""
    config = {"model_type": "t5", "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    with pytest.raises(ConfigError, match="T5 has no masked"):
        opened(tmp_path, tiny_weights(tiny_config()), config=config, head="splade")


def test_a_causal_reranker_without_its_two_words_is_refused(tmp_path: Path) -> None:
    """A causal reranker whose words for yes and no are not known is refused, with the way out."""
    with pytest.raises(ConfigError, match="`answers`"):
        opened(tmp_path, tiny_weights(tiny_config()), head="yes_no")
