"""The graph against BERT written out in numpy, and a text's answer against its company."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from quadrate.config.models import FolderSource, ModelCard
from quadrate.errors import ConfigError
from quadrate.runtime import folder
from quadrate.runtime.graphs import Form, build
from quadrate.runtime.packing import FEEDS, Reading, pack
from quadrate.runtime.sessions import CPU, NullSession, OnnxSession
from quadrate.runtime.weights import Weights
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LENGTHS = (5, 1, 33, 12, 2, 48)


def session(path: Path, *, token_vectors: bool = False, threads: int = 1) -> OnnxSession:
    """Open the model in a folder."""
    source = FolderSource(type="folder", path=path)
    card = ModelCard(served_name="tiny", task="embed", source=source)
    if token_vectors:
        card = ModelCard(served_name="tiny", task="rerank", scoring="late_interaction", source=source)
    return OnnxSession(build(folder.read(path, card), Weights(path)), CPU, threads=threads)


def readings(lengths: tuple[int, ...] = LENGTHS, seed: int = 5) -> list[Reading]:
    """Return random texts of these lengths."""
    random = np.random.default_rng(seed)
    return [Reading.of(random.integers(0, tiny_config()["vocab_size"], length).astype(np.int32)) for length in lengths]


def norm(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """Layer normalisation."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """A linear layer."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


ACTIVATIONS = {
    "gelu": np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def reference(ids: NDArray[np.int32], given: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any]) -> Array:
    """Return the token states of one text, in double precision, as Devlin et al. write them down."""
    weights = {name: array.astype(np.float64) for name, array in given.items()}
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    if config["type_vocab_size"]:
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, weights, "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        split = [dense(x, weights, f"{name}.attention.self.{part}").reshape(len(ids), heads, -1) for part in ("query", "key", "value")]
        query, key, value = split
        logits = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", shares, value).reshape(len(ids), -1)
        x = norm(dense(attended, weights, f"{name}.attention.output.dense") + x, weights, f"{name}.attention.output.LayerNorm")
        inner = ACTIVATIONS[config["hidden_act"]](dense(x, weights, f"{name}.intermediate.dense"))
        x = norm(dense(inner, weights, f"{name}.output.dense") + x, weights, f"{name}.output.LayerNorm")
    return x


def unit(x: Array) -> Array:
    """Bring rows to length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type_vocab_size": 0},
        {"type_vocab_size": 1, "num_hidden_layers": 1},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu", "num_attention_heads": 8},
    ],
)
def test_vectors_are_those_of_the_definition(tmp_path: Path, pooling: str, changes: dict[str, Any]) -> None:
    """Vectors are those of the definition, pooled and of length one, for a batch of every length."""
    config = tiny_config(**changes)
    weights = tiny_weights(config)
    path = write_tiny_model(tmp_path, pooling=pooling, weights=weights, **changes)
    texts = readings()
    found = session(path).run(texts, ["pooled", "unit"], wide=False)
    for place, text in enumerate(texts):
        states = reference(text.ids, weights, config)
        pooled = states[0] if pooling == "cls" else states.mean(0)
        np.testing.assert_allclose(found["pooled"][place], pooled, atol=2e-5)
        np.testing.assert_allclose(found["unit"][place], unit(pooled), atol=2e-5)


def test_token_states_are_those_of_the_definition(tmp_path: Path) -> None:
    """Token states are those of the definition, each text its own rows, all of length one."""
    config = tiny_config()
    weights = tiny_weights(config)
    texts = readings()
    made = session(write_tiny_model(tmp_path, weights=weights), token_vectors=True)
    found = made.run(texts, ["multi_vector"], wide=False)["multi_vector"]
    for text, states in zip(texts, found, strict=True):
        np.testing.assert_allclose(states, unit(reference(text.ids, weights, config)), atol=2e-5)


def test_names_may_begin_with_bert_and_norms_be_called_gamma_and_beta(tmp_path: Path) -> None:
    """Names may begin with `bert.` and norms be called gamma and beta, as in checkpoints converted from TensorFlow."""
    plain = tiny_weights(tiny_config())
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in plain.items()
    }
    texts = readings()
    one = session(write_tiny_model(tmp_path / "one", weights=plain)).run(texts, ["unit"], wide=False)["unit"]
    two = session(write_tiny_model(tmp_path / "two", weights=renamed)).run(texts, ["unit"], wide=False)["unit"]
    assert np.array_equal(np.stack(one), np.stack(two))


def test_half_precision_weights_are_served_in_full(tmp_path: Path) -> None:
    """Half precision weights are widened when loaded and computed with in float32."""
    half = {name: array.astype(np.float16) for name, array in tiny_weights(tiny_config()).items()}
    widened = {name: array.astype(np.float32) for name, array in half.items()}
    texts = readings()
    one = session(write_tiny_model(tmp_path / "half", weights=half)).run(texts, ["unit"], wide=False)["unit"]
    two = session(write_tiny_model(tmp_path / "full", weights=widened)).run(texts, ["unit"], wide=False)["unit"]
    assert np.array_equal(np.stack(one), np.stack(two))


@pytest.mark.parametrize("wide", [False, True])
def test_a_texts_answer_does_not_depend_on_its_company(tmp_path: Path, *, wide: bool) -> None:
    """A text's vector is the same to 1e-5 alone and in any company, in either session."""
    made = session(write_tiny_model(tmp_path), threads=2)
    random = np.random.default_rng(11)
    texts = readings(tuple(int(length) for length in random.integers(1, 49, 40)))
    alone = [made.run([text], ["unit"], wide=False)["unit"][0] for text in texts]
    for _ in range(10):
        company = random.permutation(len(texts))[: random.integers(2, 20)]
        found = made.run([texts[place] for place in company], ["unit"], wide=wide)["unit"]
        for place, vector in zip(company, found, strict=True):
            np.testing.assert_allclose(vector, alone[place], atol=1e-5)


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    """Large weights stay in the file: the proto names where they lie, and only sums are handed over beside it."""
    changes = {"hidden_size": 128, "intermediate_size": 256}
    path = write_tiny_model(tmp_path, weights=tiny_weights(tiny_config(**changes)), **changes)
    card = ModelCard(served_name="tiny", task="embed", source=FolderSource(type="folder", path=path))
    graph = build(folder.read(path, card), Weights(path))
    assert len(graph.proto) < 60_000 < graph.weight_bytes
    external = [entry for entry in onnx.load_model_from_string(graph.proto).graph.initializer if entry.external_data]
    places = {pair.value for entry in external for pair in entry.external_data if pair.key == "location"}
    assert places == {"model.safetensors", "computed"}
    assert len(graph.computed) == 1  # positions and token type


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    """Weights that do not fit the config are refused by the tensor's name."""
    path = write_tiny_model(tmp_path, weights=tiny_weights(tiny_config()), intermediate_size=128)
    with pytest.raises(ConfigError, match="intermediate"):
        session(path)


def test_a_batch_is_laid_out_as_the_graph_reads_it() -> None:
    """A batch is one row of tokens, with the places of each text."""
    texts = [Reading(np.array([7, 8, 9], np.int32), second=1), Reading.of(np.array([5], np.int32))]
    feeds, layout = pack(texts, FEEDS)
    assert feeds["ids"].tolist() == [7, 8, 9, 5]
    assert feeds["positions"].tolist() == [0, 1, 2, 0]
    assert feeds["places"].tolist() == [[0, 1, 2], [3, 3, 3]]
    assert feeds["tokens"].tolist() == [0, 1, 2, 3]
    assert feeds["bias"].reshape(2, 3).tolist() == [[0, 0, 0], [0, -1e9, -1e9]]
    np.testing.assert_allclose(feeds["shares"], [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1]])
    assert feeds["types"].tolist() == [0, 1, 1, 0]
    assert feeds["first"].tolist() == [0, 3]
    assert feeds["last"].tolist() == [2, 3]
    assert {name: feed.dtype for name, feed in FEEDS.items()} == {name: feeds[name].dtype for name in FEEDS}
    assert layout.bounds.tolist() == [0, 3, 4]


def test_a_provider_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    """A session on a provider that ONNX Runtime does not have is refused: it would fall back to another in silence."""
    path = write_tiny_model(tmp_path)
    card = ModelCard(served_name="tiny", task="embed", source=FolderSource(type="folder", path=path))
    with pytest.raises(ConfigError, match="DmlExecutionProvider"), pytest.warns(UserWarning, match="not in available"):
        OnnxSession(build(folder.read(path, card), Weights(path)), "DmlExecutionProvider", threads=1)


def test_the_null_session_gives_the_right_shapes() -> None:
    """The null session answers with the right shapes and unit lengths, and says what it is."""
    made = NullSession({"unit": Form("text", 16), "multi_vector": Form("token", 16)})
    assert made.provider == "NullExecutionProvider"
    found = made.run(readings((3, 4)), ["unit", "multi_vector"], wide=False)
    assert [row.shape for row in found["unit"]] == [(16,), (16,)]
    assert [row.shape for row in found["multi_vector"]] == [(3, 16), (4, 16)]
    assert np.linalg.norm(found["unit"][0]) == pytest.approx(1.0)


def test_the_null_session_takes_as_long_as_it_is_told() -> None:
    """A null session takes its time for each run and for each token, and no processor."""
    made = NullSession({"unit": Form("text", 16)}, run_seconds=0.02, token_seconds=0.01)
    started, burnt = time.perf_counter(), time.process_time()
    made.run(readings((3, 4)), ["unit"], wide=False)
    assert time.perf_counter() - started >= 0.09
    assert time.process_time() - burnt < 0.05
