"""A folder's own ONNX graph, exported by torch, against the model that it was exported from."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine
from quadrate.runtime.packing import Reading
from quadrate.runtime.store import StoredModel
from quadrate.testing.model_folder import write_tiny_model
from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.runtime.engine import Model

pytestmark = pytest.mark.parity

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 87}


def export(model: Any, path: Path, inputs: tuple[str, ...], output: str) -> None:
    """Export a model of transformers as optimum does: padded, any batch, any length."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            return self.model(**dict(zip(inputs, given, strict=True)), return_dict=True)[output]

    example = {name: torch.ones((2, 7), dtype=torch.long) for name in inputs}
    example["attention_mask"][1, 4:] = 0  # a mask of ones alone would be left out
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    (path / "onnx").mkdir()
    file = str(path / "onnx" / "model.onnx")
    names = {"input_names": list(inputs), "output_names": [output]}
    with torch.inference_mode():
        given = tuple(example.values())
        torch.onnx.export(Plain(), given, file, **names, dynamic_axes={**axes, output: {0: "batch"}}, opset_version=17, dynamo=False)
    model.eval()  # the exporter leaves it as for training


def load(path: Path, **said: Any) -> Model:
    """Load a folder by its own graph."""
    source = FolderSource(type="folder", path=path)
    card = ModelCard(**{"served_name": "own", "task": "embed", "source": source, "graph": "onnx/model.onnx", **said})
    return engine.load("own", card, StoredModel(path, "test"), EmbedSettings(threads=2))


def bert(kind: str, **changes: Any) -> Any:
    """Return a random model of transformers."""
    import transformers

    config = transformers.BertConfig(**SIZES, max_position_embeddings=64, **changes)
    return folders.shake(getattr(transformers, kind)(config))


@pytest.mark.filterwarnings("ignore::Warning")  # of what exports the graph
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_exported_encoder_gives_what_transformers_gives(tmp_path: Path, pooling: str) -> None:
    """Mixed lengths in one batch, pooled here, equal each text by itself in transformers."""
    import torch

    model = bert("BertModel")
    path = write_tiny_model(tmp_path, pooling=pooling)
    export(model, path, ("input_ids", "attention_mask", "token_type_ids"), "last_hidden_state")
    session = load(path).session
    texts = [Reading.of(reading.ids % 87) for reading in folders.readings((1, 2, 9, 30, 48))]
    found = session.run(texts, ["unit"], wide=False)["unit"]
    for text, row in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([text.ids.tolist()])).last_hidden_state[0].numpy()
        expected = states.mean(0) if pooling == "mean" else states[0]
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.filterwarnings("ignore::Warning")  # of what exports the graph
def test_an_exported_classifier_gives_what_transformers_gives(tmp_path: Path) -> None:
    """Pairs are fed with their token types, and the graph's logits are the raw scores."""
    import torch

    model = bert("BertForSequenceClassification", num_labels=1)
    path = write_tiny_model(tmp_path, id2label={"0": "LABEL_0"}, architectures=["BertForSequenceClassification"])
    (path / "modules.json").unlink()
    export(model, path, ("input_ids", "attention_mask", "token_type_ids"), "logits")
    session = load(path, task="rerank", scoring="cross_encoder").session
    texts = [Reading(reading.ids % 87, reading.second) for reading in folders.readings((3, 9, 30, 48), pairs=True)]
    found = session.run(texts, ["score"], wide=False)["score"]
    for text, row in zip(texts, found, strict=True):
        ids, types = torch.tensor([text.ids.tolist()]), torch.tensor([folders.types(text)])
        with torch.inference_mode():
            np.testing.assert_allclose(row, model(ids, token_type_ids=types).logits[0].numpy(), atol=1e-4)
