"""A folder's own ONNX graph: what is fed to it, what is made of its answers, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.errors import ConfigError
from quadrate.runtime import engine, folder
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import CPU, Way
from quadrate.runtime.sessions.own_graph import MAX_PADDED, OwnGraphSession, rectangles
from quadrate.runtime.store import StoredModel
from quadrate.testing.model_folder import tiny_config, write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WAY = Way("exact", CPU, "float32")
VOCABULARY = tiny_config()["vocab_size"]
TABLE = np.random.default_rng(3).standard_normal((VOCABULARY, 4)).astype(np.float32)
WIDTHS = {"sentence_embedding": 4, "logits": 1}
"""Of what a graph may give for a text as a whole."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def _states(inputs: tuple[str, ...]) -> list[onnx.NodeProto]:
    """Return the nodes that make token states of all inputs, the last of which is the last `state_`."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["state_0"])]
    for place, name in enumerate(inputs[1:]):
        nodes += [
            helper.make_node("Cast", [name], [f"float_{place}"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"float_{place}", "last"], [f"wide_{place}"]),
            helper.make_node("Add", [f"state_{place}", f"wide_{place}"], [f"state_{place + 1}"]),
        ]
    return nodes


def _output(states: str, output: str) -> list[onnx.NodeProto]:
    """Return the nodes that make of token states what a graph gives."""
    if output not in WIDTHS:
        return [helper.make_node("Identity", [states], [output])]
    return [
        helper.make_node("ReduceMax", [states, "middle"], ["top"], keepdims=0),
        helper.make_node("Slice", ["top", "zero", "width", "last_axis"], [output]),
    ]


def own_graph(
    path: Path,
    *,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    output: str = "last_hidden_state",
    location: str | None = None,
    kind: int = TensorProto.INT64,
) -> Path:
    """Write a graph whose token states are the rows of TABLE plus the sum of the other inputs at that place."""
    table = numpy_helper.from_array(TABLE, "table")
    if location is not None:
        onnx.external_data_helper.set_external_data(table, location)
        table.ClearField("raw_data")
    width = WIDTHS.get(output, 4)
    nodes = [*_states(inputs), *_output(f"state_{len(inputs) - 1}", output)]
    constants = {"last": [-1], "middle": [1], "zero": [0], "width": [width], "last_axis": [1]}
    initializers = [table, *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items())]
    shape: list[str | int | None] = ["b", width] if output in WIDTHS else ["b", "s", width]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info(name, kind, ["b", "s"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        initializers,
    )
    file = path / "onnx" / "model.onnx"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return file


def card(path: Path, **changes: Any) -> ModelCard:
    """Return the card of a model that runs by its own graph."""
    source = FolderSource(type="folder", path=path)
    return ModelCard(**{"served_name": "tiny", "task": "embed", "source": source, "graph": "onnx/model.onnx", **changes})


def write_config(path: Path, **changes: Any) -> None:
    """Change what config.json says."""
    (path / "config.json").write_text(json.dumps(tiny_config(**changes)))


def opened(path: Path, **changes: Any) -> OwnGraphSession:
    """Open the model's own graph."""
    return OwnGraphSession(folder.read(path, card(path, **changes)), WAY, threads=1)


def readings(*lengths: int) -> list[Reading]:
    """Return texts of these lengths."""
    random = np.random.default_rng(5)
    return [Reading.of(random.integers(0, VOCABULARY, length).astype(np.int32)) for length in lengths]


def states(reading: Reading, inputs: tuple[str, ...]) -> NDArray[np.float32]:
    """Return what the graph gives for each token of a text."""
    places = np.arange(len(reading))
    more = {"attention_mask": places * 0 + 1, "token_type_ids": (places >= reading.second) * 1, "position_ids": places}
    added = np.sum([more[name] for name in inputs[1:]], axis=0)
    return TABLE[reading.ids] + added[:, None].astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda rows: rows.mean(0)), ("cls", lambda rows: rows[0]), ("last", lambda rows: rows[-1])]
)
def test_a_graph_is_fed_by_its_own_input_names(tmp_path: Path, count: int, kind: int, pooling: str, pool: Any) -> None:
    """Only what the graph names is fed, in its own kind of numbers; token states are pooled over the text's own tokens."""
    path = write_tiny_model(tmp_path)
    own_graph(path, inputs=INPUTS[:count], kind=kind)
    session = opened(path, pooling=pooling)
    texts = readings(3, 17, 5, 1, 16)
    found = session.run(texts, ["pooled", "unit"], wide=False)
    for text, pooled, unit in zip(texts, found["pooled"], found["unit"], strict=True):
        expected = pool(states(text, INPUTS[:count]))
        np.testing.assert_allclose(pooled, expected, rtol=1e-5)
        np.testing.assert_allclose(unit, expected / np.linalg.norm(expected), rtol=1e-5)
    assert {name: (form.per, form.width) for name, form in session.forms.items()} == {"pooled": ("text", 4), "unit": ("text", 4)}


def test_a_graph_that_pools_itself_is_taken_at_its_word(tmp_path: Path) -> None:
    """An output named sentence_embedding is the vector, whatever pooling the card names."""
    path = write_tiny_model(tmp_path)
    own_graph(path, output="sentence_embedding")
    (text,) = readings(6)
    (found,) = opened(path, pooling="cls").run([text], ["pooled"], wide=True)["pooled"]
    np.testing.assert_allclose(found, states(text, INPUTS[:2]).max(0), rtol=1e-6)


def test_a_reranker_takes_the_graphs_logits_and_a_late_one_its_states(tmp_path: Path) -> None:
    """A classifier's score is the output named logits; token vectors are the states, of length one."""
    path = write_tiny_model(tmp_path, id2label={"0": "LABEL_0"})
    own_graph(path, output="last_hidden_state")
    (text,) = readings(6)
    (rows,) = opened(path, task="rerank", scoring="late_interaction").run([text], ["multi_vector"], wide=False)["multi_vector"]
    expected = states(text, INPUTS[:2])
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    (path / "modules.json").unlink()
    own_graph(path, output="logits")
    session = opened(path, task="rerank", scoring="cross_encoder")
    (score,) = session.run([text], ["score"], wide=False)["score"]
    np.testing.assert_allclose(score, expected.max(0)[:1], rtol=1e-6)
    session.close()


@pytest.mark.parametrize(
    ("graph", "changes", "said"),
    [
        ({"inputs": ("input_ids", "past_key_values")}, {}, "takes 'past_key_values'"),
        ({"kind": TensorProto.UINT8}, {}, "cannot open the graph"),
        ({"output": "pooler_output"}, {}, "needs sentence_embedding or last_hidden_state"),
        ({"location": "../outside.bin"}, {}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, {}, "outside the model's folder"),
        ({"location": "model.onnx_data"}, {}, "which is not in the folder; fetch it, too"),
        ({}, {"pooling": "splade"}, "served from its weights alone"),
        ({}, {"layer_norm": True}, "the layers after the pooling"),
    ],
)
def test_what_cannot_be_served_right_is_refused(tmp_path: Path, graph: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    """Other inputs and outputs, numbers outside the folder, heads that need more than the graph."""
    path = write_tiny_model(tmp_path / "model")
    (tmp_path / "outside.bin").write_bytes(bytes(TABLE))
    own_graph(path, **graph)
    with pytest.raises(ConfigError, match=said):
        opened(path, **changes)


def test_numbers_behind_a_link_are_refused(tmp_path: Path) -> None:
    """A link inside the folder may not lead out of it."""
    path = write_tiny_model(tmp_path / "model")
    own_graph(path, location="model.onnx_data")
    data = path / "onnx" / "model.onnx_data"
    (tmp_path / "outside.bin").write_bytes(TABLE.tobytes())
    data.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ConfigError, match="outside the model's folder"):
        opened(path)
    data.unlink()
    data.write_bytes(TABLE.tobytes())
    assert opened(path).weight_bytes > TABLE.nbytes


def test_a_damaged_graph_and_other_precisions_are_refused(tmp_path: Path) -> None:
    """What is no graph, and what asks the graph for numbers that it is not written in."""
    path = write_tiny_model(tmp_path)
    own_graph(path)
    with pytest.raises(ConfigError, match="set the precision to exact"):
        OwnGraphSession(folder.read(path, card(path)), Way("small", CPU, "int8"), threads=1)
    (path / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="cannot be read as an ONNX graph"):
        opened(path)


def test_a_pairs_second_text_has_its_type(tmp_path: Path) -> None:
    """A cross-encoder's token types are fed where the tokenizer gives them."""
    path = write_tiny_model(tmp_path, id2label={"0": "LABEL_0"})
    (path / "modules.json").unlink()
    own_graph(path, inputs=INPUTS[:3], output="logits")
    text = Reading(readings(9)[0].ids, 4)
    (score,) = opened(path, task="rerank", scoring="cross_encoder").run([text], ["score"], wide=False)["score"]
    np.testing.assert_allclose(score, states(text, INPUTS[:3]).max(0)[:1], rtol=1e-6)


def test_an_unknown_family_is_served_by_its_own_graph(tmp_path: Path) -> None:
    """The engine loads it as any model; of its config only the sizes are read, by their several names."""
    path = write_tiny_model(tmp_path)
    write_config(path, model_type="mpnet", architectures=["MPNetModel"], hidden_size=None, d_model=4)
    own_graph(path)
    model = engine.load("own", card(path), StoredModel(path, "test"), EmbedSettings(threads=2))
    assert (model.facts.encoder.width, model.forms["unit"].width, model.session.provider) == (4, 4, CPU)
    model.session.close()


def test_a_model_that_says_no_limit_needs_one_in_its_card(tmp_path: Path) -> None:
    """Nothing is guessed about how many tokens a model reads."""
    path = write_tiny_model(tmp_path)
    write_config(path, max_position_embeddings=None)
    (path / "sentence_bert_config.json").unlink()
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="set max_tokens in its card"):
        folder.read(path, card(path))
    assert folder.read(path, card(path, max_tokens=40)).max_tokens == 40


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=64))
def test_rectangles_hold_each_text_once_and_little_padding(lengths: list[int]) -> None:
    """Every text is in one rectangle, whose places are at most MAX_PADDED for each token."""
    found = rectangles(lengths)
    assert sorted(place for places in found for place in places) == list(range(len(lengths)))
    for places in found:
        chosen = [lengths[place] for place in places]
        assert max(chosen) * len(chosen) <= MAX_PADDED * sum(chosen)
