"""Folders of tiny random models with heads, laid out as the hub has them, for tests that serve them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from quadrate.testing.model_folder import WIDTH, tiny_config, tiny_tensors, tiny_weights, write_tiny_model
from tests.unit import checkpoints

if TYPE_CHECKING:
    from pathlib import Path


def write_bge_m3(path: Path, *, multi_vector_width: int = WIDTH, **options: Any) -> Path:
    """Write a model with bge-m3's three heads, in the torch files that it has them in; `options` are those of write_tiny_model."""
    write_tiny_model(path, pooling="cls", **options)
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", multi_vector_width)):
        checkpoints.save(path / f"{name}.pt", tiny_tensors({"weight": (outputs, WIDTH), "bias": (outputs,)}))
    return path


def write_splade(path: Path) -> Path:
    """Write a SPLADE model: a masked language model and the module that pools its predictions."""
    vocabulary = tiny_config()["vocab_size"]
    head = {
        "cls.predictions.transform.dense.weight": (WIDTH, WIDTH),
        "cls.predictions.transform.dense.bias": (WIDTH,),
        "cls.predictions.transform.LayerNorm.weight": (WIDTH,),
        "cls.predictions.transform.LayerNorm.bias": (WIDTH,),
        "cls.predictions.bias": (vocabulary,),
    }
    weights = tiny_weights(tiny_config(), prefix="bert.") | tiny_tensors(head)
    write_tiny_model(path, weights=weights, architectures=["BertForMaskedLM"])
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.sparse_encoder.models.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": "sentence_transformers.sparse_encoder.models.SpladePooling"},
    ]
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": vocabulary}
    (path / "1_SpladePooling").mkdir()
    (path / "1_SpladePooling/config.json").write_text(json.dumps(pooling), "utf-8")
    (path / "modules.json").write_text(json.dumps(modules), "utf-8")
    return path
