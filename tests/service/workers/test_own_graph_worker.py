"""A worker that serves a folder by the ONNX graph that it brings, and says why it does not serve another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from quadrate.testing.model_folder import write_tiny_model
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from tests.service.workers.conftest import running
from tests.unit.test_own_graph import TABLE, own_graph

if TYPE_CHECKING:
    from pathlib import Path


def catalogue(folder: Path) -> Path:
    """Write a catalogue of one model that runs by its own graph."""
    source = {"type": "folder", "path": str(folder)}
    card = {"served_name": "tests/own", "task": "embed", "graph": "onnx/model.onnx", "source": source}
    path = folder.parent / "models.yaml"
    path.write_text(json.dumps({"models": {"own": card}}))
    return path


async def test_a_folders_own_graph_is_served(tmp_path: Path) -> None:
    """Vectors of texts of several lengths are the graph's, pooled and brought to length one; no weights lie beside it."""
    folder = write_tiny_model(tmp_path / "own")
    (folder / "model.safetensors").unlink()
    own_graph(folder)
    texts = ["hello", "hello world the cat", "the cat sat on the mat " * 5]
    async with running("embed", catalogue(folder), "own") as made:
        answer = await made.embed.Embed(embed_pb2.EmbedRequest(model="own", inputs=[options_pb2.Input(text=text) for text in texts]))
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="own"))).model
        told = await made.models.Tokenize(model_pb2.TokenizeRequest(model="own", inputs=[options_pb2.Input(text=text) for text in texts]))
    assert (card.dimensions, card.pooling, card.provider) == (4, "mean", "CPUExecutionProvider")
    for found, read in zip(answer.embeddings, told.tokenizations, strict=True):
        pooled = (TABLE[list(read.ids)] + 1).mean(0)
        np.testing.assert_allclose(found.values, pooled / np.linalg.norm(pooled), rtol=1e-5)


async def test_a_graph_that_cannot_be_served_is_told_with_the_reason(tmp_path: Path) -> None:
    """The model's card says what is wrong with its graph."""
    folder = write_tiny_model(tmp_path / "own")
    own_graph(folder, inputs=("input_ids", "past_key_values"))
    async with running("embed", catalogue(folder), "own") as made:
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="own"))).model
    assert card.state == model_pb2.MODEL_STATE_UNAVAILABLE
    assert "takes 'past_key_values'" in card.state_reason
